"""Statistics of an evaluation against numbers worked by hand, and what must hold for any numbers."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from score_openrlhf.evaluation.statistics import (
    bootstrap,
    bootstrap_change,
    distinct_n,
    excess_information,
    majority_at_k,
    mutual_information,
    pass_at_k,
    self_bleu,
)

VALUES = st.lists(st.lists(st.floats(0, 1), max_size=4), min_size=1, max_size=8).filter(lambda g: any(g))


def test_bootstrap_interval_is_the_binomial_one():
    """100 problems, 30 right: the normal interval is 0.3 +- 1.96 sqrt(0.3 * 0.7 / 100) = 0.210 to 0.390."""
    estimate = bootstrap([[1.0]] * 30 + [[0.0]] * 70)
    assert estimate.value == pytest.approx(0.3) and estimate.cases == 100
    assert estimate.low == pytest.approx(0.210, abs=0.02) and estimate.high == pytest.approx(0.390, abs=0.02)
    # four times as many: half as wide, 0.255 to 0.345; one-sided ends would be at 0.262 and 0.338
    estimate = bootstrap([[1.0]] * 120 + [[0.0]] * 280)
    assert estimate.low == pytest.approx(0.255, abs=0.004) and estimate.high == pytest.approx(0.345, abs=0.004)


def test_bootstrap_draws_problems_and_not_samples():
    """Ten copies of each problem's value say nothing new: the interval stays as wide as without them."""
    once = bootstrap([[1.0]] * 10 + [[0.0]] * 10)
    copied = bootstrap([[1.0] * 10] * 10 + [[0.0] * 10] * 10)
    assert (copied.value, copied.low, copied.high) == pytest.approx((once.value, once.low, once.high))


def test_bootstrap_weighs_samples_alike_and_skips_empty_problems():
    assert bootstrap([[1.0, 1.0, 1.0], [0.0], []]).value == 0.75
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap([[], []])


@given(VALUES)
@settings(max_examples=50, deadline=None)
def test_bootstrap_stays_in_the_range_of_the_values(groups):
    values = [v for group in groups for v in group]
    estimate = bootstrap(groups, num_resamples=100)
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9
    assert estimate.value == pytest.approx(math.fsum(values) / len(values))


def test_a_change_is_that_of_the_same_problems():
    """100 problems, 5 of them better: 0.05 +- 1.96 sqrt(0.05 * 0.95 / 100); as independent ones +- 0.128."""
    before, after = ([[float(i < right)] for i in range(100)] for right in (30, 35))
    change = bootstrap_change(before, after)
    assert change.value == pytest.approx(0.05) and change.cases == 100
    assert change.half_width == pytest.approx(1.96 * math.sqrt(0.05 * 0.95 / 100), rel=0.1)
    assert math.isnan(bootstrap_change(before, before).half_width)
    with pytest.raises(ValueError, match="100 problems before and 99 after"):
        bootstrap_change(before, after[1:])


def test_a_change_weighs_each_side_by_its_own_cases():
    change = bootstrap_change([[1.0, 0.0], [], [0.0]], [[1.0], [1.0, 0.0], []])
    assert change.value == pytest.approx(2 / 3 - 1 / 3)
    assert -1 <= change.low <= change.high <= 1  # draws in which one side has no case are left out


def test_pass_at_k_by_hand():
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)  # 3 of the 6 pairs hold the right one
    assert pass_at_k(5, 2, 3) == pytest.approx(0.9)  # only 1 of the 10 triples holds neither
    assert pass_at_k(3, 0, 3) == 0 and pass_at_k(3, 1, 3) == 1
    with pytest.raises(ValueError, match="k must be 1 to 3"):
        pass_at_k(3, 1, 4)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.lists(st.booleans(), min_size=n, max_size=n))))
def test_pass_at_k_is_the_mean_over_all_subsets(case):
    (right,) = case
    for k in range(1, len(right) + 1):
        subsets = [any(subset) for subset in itertools.combinations(right, k)]
        assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(subsets) / len(subsets))


def test_majority_by_hand():
    assert majority_at_k([["a"], ["a"], ["b"]], "a", 3) == 1
    assert majority_at_k([["a"], ["b"]], "a", 2) == 0.5  # a tie, broken by lot
    # pairs of a, a, b: (a, a) wins, (a, b) twice is a tie: (1 + 0.5 + 0.5) / 3
    assert majority_at_k([["a"], ["a"], ["b"]], "a", 2) == pytest.approx(2 / 3)
    # an attempt and its revision are one ballot of two answers
    assert majority_at_k([["b", "a"], ["c", "a"]], "a", 2) == 1
    assert majority_at_k([[None], [None]], "a", 2) == 0  # nobody voted
    assert majority_at_k([[None], [None], ["a"]], "a", 3) == 1  # who abstains does not vote for nothing


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.data())
def test_majority_chances_of_all_answers_add_up_to_one(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    assert sum(majority_at_k([[a] for a in answers], right, k) for right in "abc") == pytest.approx(1)


def test_majority_of_many_ballots_is_drawn_and_close():
    votes = [["a"]] * 20 + [["b"]] * 10
    # hypergeometric: P(at least 2 of 3 are a) = (C(20,2) 10 + C(20,3)) / C(30,3) = (1900 + 1140) / 4060
    assert majority_at_k(votes, "a", 3) == pytest.approx(3040 / 4060, abs=0.08)
    # no ballot twice: of 21 at most 10 are b
    assert majority_at_k(votes, "a", 21) == 1


def test_distinct_n_by_hand():
    assert distinct_n(["check the ones", "check the tens"], 1) == pytest.approx(4 / 6)
    assert distinct_n(["check the ones", "check the tens"], 2) == pytest.approx(3 / 4)
    assert distinct_n(["word"], 2) is None


def test_self_bleu_by_hand():
    assert self_bleu(["check the ones", "check the ones"]) == pytest.approx(1)
    assert self_bleu(["a"]) is None
    # both share 2 of 3 words and 1 of 2 word pairs, and no triple (0.1 of 1 counted): (2/3 * 1/2 * 0.1) ** (1/3)
    assert self_bleu(["check the ones", "check the tens"]) == pytest.approx((2 / 3 * 1 / 2 * 0.1) ** (1 / 3))
    # "a" against "a b": brevity exp(1 - 2), precision 1; "a b" against "a": 1/2 and 0.1 of 1, no brevity penalty
    assert self_bleu(["a", "a b"]) == pytest.approx((math.exp(-1) + math.sqrt(0.5 * 0.1)) / 2)


def test_self_bleu_takes_a_word_as_often_as_the_others_have_it():
    # "a a" against "a b": one of its two a counts, no pair: (1/2 * 0.1) ** (1/2); the other way the same
    assert self_bleu(["a a", "a b"]) == pytest.approx((1 / 2 * 0.1) ** 0.5)


WORDS = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6).map(" ".join), min_size=2, max_size=5)


@given(WORDS)
def test_self_bleu_is_a_fraction_and_knows_no_order(texts):
    value = self_bleu(texts)
    assert 0 < value <= 1 + 1e-12
    assert self_bleu(list(reversed(texts))) == pytest.approx(value)


@given(WORDS)
def test_self_bleu_of_copies_is_one(texts):
    assert self_bleu([text for text in texts for _ in range(2)]) == pytest.approx(1)


def test_mutual_information_by_hand():
    assert mutual_information([("ones", "1"), ("tens", "2")] * 5) == pytest.approx(1)
    assert mutual_information([(a, b) for a in "xy" for b in "uv"]) == pytest.approx(0)
    # 3/4 of the pairs agree: 1 - H(1/4) bits
    pairs = [("x", "x")] * 3 + [("y", "y")] * 3 + [("x", "y"), ("y", "x")]
    assert mutual_information(pairs) == pytest.approx(1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))


def test_excess_information_of_unlike_hints_is_none():
    """Hints of which no two are alike fit any error: by frequencies alone they would tell a whole bit."""
    pairs = [("ones" if i % 2 else "tens", f"hint {i}") for i in range(40)]
    assert mutual_information(pairs) == pytest.approx(1)
    assert excess_information(pairs) == pytest.approx(0, abs=1e-9)
    assert excess_information([("ones", "1"), ("tens", "2")] * 50) > 0.95
