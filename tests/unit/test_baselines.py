"""The named baselines by hand: four rows that count, and one that failed and must inform nobody."""

from __future__ import annotations

import pytest
import torch

from score_openrlhf.config.choices import BASELINES_T1, BASELINES_T2, GUIDANCE_BASELINES
from score_openrlhf.experience.baselines import Draws, baseline_of

USED = torch.tensor([True, True, True, True, False])
RETURNS = torch.tensor([1.0, 0.0, 1.0, 1.0, 9.0])
RIGHT = torch.zeros(5)
# problem 0 has the attempts of rows 0 and 1, problem 1 those of rows 2, 3 and the failed 4
ATTEMPTS = Draws(RETURNS, torch.tensor([0, 0, 1, 1, 1]), torch.arange(5), RIGHT, USED)
# two hints of attempt 0, and of attempt 1 two and the failed one
HINTS = Draws(RETURNS, torch.zeros(5, dtype=torch.long), torch.tensor([0, 0, 1, 1, 1]), RIGHT, USED)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [0, 0, 0, 0, 0]),
        ("batch_mean", [0.75, 0.75, 0.75, 0.75, 0]),
        ("group_mean", [0.5, 0.5, 1, 1, 0]),
        ("leave_one_out", [0, 1, 1, 1, 0]),
    ],
)
def test_baselines_over_attempts(name, expected):
    for choices in (BASELINES_T1, BASELINES_T2):
        assert baseline_of(choices, name)(ATTEMPTS).tolist() == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("none", [0, 0, 0, 0, 0]), ("batch_mean", [0.75, 0.75, 0.75, 0.75, 0]), ("leave_one_out", [0, 1, 1, 1, 0])],
)
def test_baselines_over_guidances(name, expected):
    assert baseline_of(GUIDANCE_BASELINES, name)(HINTS).tolist() == expected


def test_the_state_value_reads_all_rows_but_the_own_and_the_failed():
    """Row 0: the like row is row 1, with 0; the rate over the other attempts is 2 / 3 and weighs as two rows."""
    assert baseline_of(BASELINES_T2, "state_value")(ATTEMPTS)[0] == pytest.approx((0 + 2 * 2 / 3) / 3)
    assert baseline_of(BASELINES_T2, "state_value")(ATTEMPTS)[4] == 0
