"""Numbers and texts of an evaluation in; estimates with intervals, pass@k, majority@k, diversity and mutual
information out. Imports numpy only.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
NUM_RESAMPLES = 2000
MAX_SUBSETS = 200
MAX_ORDER = 4  # of n-grams in BLEU
NO_MATCH = 0.1  # matches counted where an order has none (Chen and Cherry 2014, smoothing 1)


class Estimate(NamedTuple):
    """A mean with its interval; `cases` is the number of values it is the mean of."""

    value: float
    low: float
    high: float
    cases: int

    @property
    def half_width(self) -> float:
        """Half of the interval; NaN where all draws agree, which says nothing about how far others would be off."""
        return (self.high - self.low) / 2 or math.nan


def bootstrap(groups: Sequence[Sequence[float]], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Estimate:
    """The mean over all values with its 95 % percentile interval, problems drawn again with replacement.

    `groups` holds the values of each problem: those of one problem are not independent, so whole problems are drawn.
    Problems without a value take part and weigh nothing. Raises ValueError if there is no value at all.
    """
    value, means, cases = _means(groups, _draws(len(groups), seed, num_resamples))
    return Estimate(value, *_interval(means), cases)


def bootstrap_change(
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Estimate:
    """The mean of `after` less that of `before` with its interval, as `bootstrap`: the same problems drawn from both.

    Raises ValueError if either has no value at all, or if they are not of equally many problems.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} problems before and {len(after)} after; pass the same ones, empty or not")
    draws = _draws(len(before), seed, num_resamples)
    (old, old_means, _), (new, new_means, cases) = _means(before, draws), _means(after, draws)
    return Estimate(new - old, *_interval(new_means - old_means), cases)


def _means(groups: Sequence[Sequence[float]], draws: np.ndarray) -> tuple[float, np.ndarray, int]:
    """The mean over all values, that of each draw (NaN of one without a value), and the number of values."""
    sums = np.array([math.fsum(group) for group in groups], dtype=float)
    counts = np.array([len(group) for group in groups], dtype=float)
    if not counts.sum():
        raise ValueError("a mean needs at least one value; leave a metric without a case out")
    drawn = draws @ counts
    means = np.divide(draws @ sums, drawn, out=np.full(len(drawn), math.nan), where=drawn > 0)
    return float(sums.sum() / counts.sum()), means, int(counts.sum())


def _interval(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means[~np.isnan(means)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _draws(num_groups: int, seed: int, num_resamples: int) -> np.ndarray:
    """How often each group is in each resample; kept, since all the metrics of an evaluation are drawn alike."""
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=num_resamples)
    return draws.astype(float)  # so that no product converts them again


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The chance that `k` of `num_samples` draws, `num_right` of them right, hold a right one.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374), equation 1. Raises
    ValueError unless 1 <= k <= num_samples.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples: k must be 1 to {num_samples}")
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def majority_at_k(votes: Sequence[Sequence[Hashable | None]], right: Hashable, k: int, *, seed: int = 0) -> float:
    """The chance that the answer most voted for is `right`, when `k` of the ballots in `votes` are drawn.

    A ballot holds the answers of one sample: one answer, or an attempt's and its revision's; None abstains. A tie
    counts as the part of it that is right, as if broken by lot. All subsets of ballots are taken, or MAX_SUBSETS drawn
    with `seed` where there are more. Raises ValueError unless 1 <= k <= len(votes).
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"majority of {k} of {len(votes)} ballots: k must be 1 to {len(votes)}")
    if math.comb(len(votes), k) <= MAX_SUBSETS:
        subsets = list(itertools.combinations(range(len(votes)), k))
    else:
        rng = np.random.default_rng(seed)
        subsets = [tuple(rng.choice(len(votes), size=k, replace=False)) for _ in range(MAX_SUBSETS)]
    return math.fsum(_majority([votes[i] for i in subset], right) for subset in subsets) / len(subsets)


def _majority(ballots: Sequence[Sequence[Hashable | None]], right: Hashable) -> float:
    counts = Counter(answer for ballot in ballots for answer in ballot if answer is not None)
    most = max(counts.values(), default=0)
    winners = [answer for answer, count in counts.items() if count == most]
    return 1 / len(winners) if right in winners else 0.0


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """The n-grams of a text's words with their counts."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams as a part of all n-grams of the texts (Li et al. 2016); None if no text has `n` words."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        counts += ngrams(text.split(), n)
    return len(counts) / counts.total() if counts else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """The mean BLEU-4 of each text against all others as its references (Zhu et al. 2018); 1 where all are the same.

    Orders above a text's length are left out, so that a hint of three words can be a copy too. Texts without words are
    left out; None with fewer than two texts.
    """
    split = [text.split() for text in texts if text.split()]
    if len(split) < 2:
        return None
    orders = range(1, MAX_ORDER + 1)
    counts = [{n: ngrams(words, n) for n in orders} for words in split]
    # The largest count among the others is the largest of all, or the second where the largest is the text's own.
    largest: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for index, by_order in enumerate(counts):
        for n in orders:
            for gram, count in by_order[n].items():
                first, holder, second = largest.get(gram, (0, -1, 0))
                largest[gram] = (count, index, first) if count > first else (first, holder, max(second, count))
    lengths = [len(words) for words in split]
    total = 0.0
    for index, words in enumerate(split):
        logs = []
        for n in range(1, min(MAX_ORDER, len(words)) + 1):
            matches = 0
            for gram, count in counts[index][n].items():
                first, holder, second = largest[gram]
                matches += min(count, second if holder == index else first)
            logs.append(math.log((matches or NO_MATCH) / (len(words) - n + 1)))
        others = lengths[:index] + lengths[index + 1 :]
        nearest = min(others, key=lambda length: (abs(length - len(words)), length))
        total += min(1.0, math.exp(1 - nearest / len(words))) * math.exp(math.fsum(logs) / len(logs))
    return total / len(split)


def mutual_information(pairs: Sequence[tuple[Hashable, Hashable]]) -> float:
    """Bits that one member of a pair tells about the other, from their frequencies; biased upwards for few pairs."""
    if not pairs:
        raise ValueError("mutual information needs at least one pair")
    joint, left, right = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    num = len(pairs)
    bits = math.fsum(c / num * math.log2(c * num / (left[a] * right[b])) for (a, b), c in joint.items())
    return max(bits, 0.0)


def excess_information(
    pairs: Sequence[tuple[Hashable, Hashable]], *, num_permutations: int = 200, seed: int = 0
) -> float:
    """`mutual_information` less its mean when the pairs are shuffled: 0 in expectation where neither tells anything.

    Without this, hints of which no two are alike would seem to tell everything.
    """
    rng = np.random.default_rng(seed)
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    by_chance = [
        mutual_information([(a, right[i]) for a, i in zip(left, rng.permutation(len(right)), strict=True)])
        for _ in range(num_permutations)
    ]
    return mutual_information(pairs) - math.fsum(by_chance) / num_permutations
