"""What `benchmarks.logprob_differences` makes of differences whose cause is known."""

from __future__ import annotations

import torch

from benchmarks.logprob_differences import Difference, Sampled, by_position, same_parts

TOKENS, PROMPTS, WORDS, NOISE = 512, 32, 50, 0.2


def sampled_differences(shift: float, *, left_samples: bool) -> list[torch.Tensor]:
    """log p - log q of tokens sampled from p (or from neither), where p and q round the same logits differently.

    `shift` is what p's log-probs are wrong by besides.
    """
    generator = torch.Generator().manual_seed(0)

    def rounded(logits: torch.Tensor) -> torch.Tensor:
        return (logits + NOISE * torch.randn(logits.shape, generator=generator)).log_softmax(-1)

    found = []
    for _ in range(PROMPTS):
        exact = torch.randn(TOKENS, WORDS, generator=generator)
        p = rounded(exact)
        q = rounded(exact) if left_samples else exact.log_softmax(-1)
        sampler = p if left_samples else exact.log_softmax(-1)
        tokens = torch.multinomial(sampler.exp(), 1, generator=generator)
        found.append((p - q).gather(-1, tokens)[:, 0] + shift)
    return found


def test_rounding_leaves_no_bias_whoever_sampled():
    for left in (True, False):
        row = Difference.of("", sampled_differences(0.0, left_samples=left), 1 if left else -1)
        assert row.kl > 0.01 and abs(row.bias) < 4 * row.bias_error < row.kl
        assert row.tokens == TOKENS * PROMPTS and row.mean_abs < row.p99


def test_what_is_no_rounding_shows_as_bias():
    row = Difference.of("", sampled_differences(0.02, left_samples=True), 1)
    assert abs(row.bias - 0.02) < 0.006 and row.bias > 4 * row.bias_error


def test_samples_are_compared_up_to_where_they_part():
    left = Sampled([1], [5, 6, 7], torch.tensor([-1.0, -2.0, -3.0]))
    right = Sampled([1], [5, 6, 8], torch.tensor([-1.5, -2.0, -9.0]))
    assert [row.tolist() for row in same_parts([left, left], [right, left])] == [[0.5, 0.0], [0.0, 0.0, 0.0]]


def test_thirds_of_an_answer():
    assert by_position([torch.tensor([1.0, -1, 2, -2, 3, -3]), torch.tensor([1.0, 2, 3])]) == [1.0, 2.0, 3.0]
