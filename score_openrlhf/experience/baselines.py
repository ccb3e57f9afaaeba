"""The rows of a batch in; the baseline of each row's return, by name, out.

    baseline_of(BASELINES_T1, "leave_one_out")(draws)  # (B,)

The tables of names are in `config/choices.py`; what they compute is `objective.py`'s. A baseline may read every row
but the row's own draw, or the gradient is biased: `docs/method.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from score_openrlhf import objective
from score_openrlhf.config.choices import Choices


@dataclass(frozen=True)
class Draws:
    """What a baseline is estimated from, all (B,): one row for each draw that is to be credited."""

    returns: Tensor  # of the draw
    problem: Tensor  # integer ids
    attempt: Tensor  # integer ids
    r1: Tensor  # the attempt's grade
    mask: Tensor  # False: the row failed or is padding; it informs no other and gets 0


Baseline = Callable[[Draws], Tensor]


def baseline_of(choices: Choices, name: str) -> Baseline:
    """The baseline of that name; raises KeyError for one that is not among `choices`."""
    return choices[name].load()


def none(draws: Draws) -> Tensor:
    return torch.zeros_like(draws.returns)


def batch_mean(draws: Draws) -> Tensor:
    return _over_attempts(draws, "batch_mean")


def group_mean(draws: Draws) -> Tensor:
    return _over_attempts(draws, "group_mean")


def leave_one_out(draws: Draws) -> Tensor:
    return _over_attempts(draws, "leave_one_out")


def state_value(draws: Draws) -> Tensor:
    return objective.state_value(draws.returns, draws.problem, draws.attempt, draws.r1, mask=draws.mask)


def batch_mean_of_guidances(draws: Draws) -> Tensor:
    return _over_guidances(draws, "batch_mean")


def leave_one_guidance_out(draws: Draws) -> Tensor:
    return _over_guidances(draws, "leave_one_out")


def _over_attempts(draws: Draws, kind: str) -> Tensor:
    return objective.baseline(draws.returns, draws.problem, kind=kind, unit=draws.attempt, mask=draws.mask)


def _over_guidances(draws: Draws, kind: str) -> Tensor:
    return objective.guidance_baseline(draws.returns, draws.attempt, draws.r1, kind=kind, mask=draws.mask)
