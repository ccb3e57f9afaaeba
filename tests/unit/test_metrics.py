"""The metrics of a run, on five trajectories worked out by hand."""

import pytest

from score_openrlhf.trainer.metrics import num_sampled_tokens, trajectory_metrics
from tests.fakes import trajectory

FIVE = [
    trajectory(0, r1=0, r2=1, hint_metrics={"hint_accuracy": 1.0, "right_column_rate": 1.0}),  # fixed
    trajectory(1, r1=0, r2=0, hint_metrics={"hint_accuracy": 0.0, "right_column_rate": 0.0}, leak=1.0),
    trajectory(2, r1=1, r2=1, hint_metrics={"hint_accuracy": 1.0}),
    trajectory(3, r1=1, r2=0, hint_metrics={"hint_accuracy": 0.0}),  # broken
    trajectory(4, failure="guide: ValueError", revision=()),
]


def test_fractions_are_of_trajectories_with_a_revision():
    metrics = trajectory_metrics(FIVE)
    assert metrics["acc_t1"] == 2 / 4
    assert metrics["acc_t2"] == 2 / 4
    assert metrics["delta"] == 0
    assert metrics["i2c"] == 1 / 4  # of all problems
    assert metrics["c2i"] == 1 / 4
    assert metrics["fix_rate"] == 1 / 2  # of the wrong ones
    assert metrics["break_rate"] == 1 / 2
    assert metrics["rollout/failed"] == 1 / 5


def test_hint_metrics_are_means_over_the_cases_they_apply_to():
    metrics = trajectory_metrics(FIVE)
    assert metrics["guidance/hint_accuracy"] == 2 / 4
    assert metrics["guidance/right_column_rate"] == 1 / 2  # wrong first answers alone
    assert metrics["guidance/leak"] == 1 / 5
    assert metrics["guidance/distinct"] == 1 / 5  # all five say the same
    assert metrics["guidance/length"] == 2


def test_conditional_metrics_without_a_case_are_absent():
    metrics = trajectory_metrics([trajectory(r1=1, r2=1)])
    assert "fix_rate" not in metrics and metrics["break_rate"] == 0


def test_edit_ratio_compares_words():
    # "10 11" -> "20 21 22": two replaced and one added, of three
    assert trajectory_metrics([trajectory()])["edit_ratio"] == pytest.approx(1.0)
    same = trajectory(attempt=(10, 11), revision=(10, 11))
    assert trajectory_metrics([same])["edit_ratio"] == 0


def test_shared_attempt_is_counted_once():
    shared = [trajectory(0, 0, k) for k in range(3)]
    assert num_sampled_tokens(shared) == {"solver": 2 + 3 * 3, "guidance": 3 * 2}
