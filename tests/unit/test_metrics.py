"""The metrics of a run, on eight trajectories worked out by hand."""

import pytest

from score_openrlhf.rollout.metrics import num_sampled_tokens, trajectory_metrics
from score_openrlhf.tasks.base import Grade
from tests.support.fakes import trajectory

# No two of what is counted are alike: three are fixed, one is broken, one stays right, two stay wrong, one failed.
EIGHT = [
    trajectory(0, r1=0, r2=1, hint_metrics={"hint_accuracy": 1.0, "right_column_rate": 1.0}),
    trajectory(1, r1=0, r2=1, hint_metrics={"hint_accuracy": 1.0, "right_column_rate": 0.0}, leak=1.0),
    trajectory(2, r1=0, r2=1, guidance=()),
    trajectory(3, r1=1, r2=0, hint_metrics={"hint_accuracy": 0.0}),
    trajectory(4, r1=1, r2=1, hint_metrics={"hint_accuracy": 1.0}, guidance=(30, 31, 32, 33)),
    trajectory(5, r1=0, r2=0, hint_metrics={"hint_accuracy": 1.0, "right_column_rate": 1.0}),
    trajectory(6, r1=0, r2=0, guidance=()),
    trajectory(7, r1=1, r2=1, failure="revise: ValueError"),  # a revision that was sampled and not graded
]


def test_fractions_are_of_trajectories_with_a_revision():
    metrics = trajectory_metrics(EIGHT)
    assert metrics["acc_t1"] == 2 / 7
    assert metrics["acc_t2"] == 4 / 7
    assert metrics["delta"] == pytest.approx(2 / 7)
    assert metrics["i2c"] == 3 / 7  # of all problems
    assert metrics["c2i"] == 1 / 7
    assert metrics["fix_rate"] == 3 / 5  # of the wrong ones
    assert metrics["break_rate"] == 1 / 2  # of the right ones
    assert metrics["rollout/failed"] == 1 / 8


def test_hint_metrics_are_means_over_the_cases_they_apply_to():
    metrics = trajectory_metrics(EIGHT)
    assert metrics["guidance/hint_accuracy"] == 4 / 5
    assert metrics["guidance/right_column_rate"] == 2 / 3  # wrong first answers alone
    assert metrics["guidance/leak"] == 1 / 6  # of those with guidance
    assert metrics["guidance/distinct"] == 2 / 6  # five say the same
    assert metrics["guidance/length"] == (5 * 2 + 4) / 6


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


# One right attempt of which one row of four is left, and one wrong attempt with all its four: two attempts, not five.
BROKEN_OFF = [
    trajectory(0, 0, 0, r1=1, r2=1, leak=1.0, hint_metrics={"hint_accuracy": 1.0}),
    *(trajectory(0, 0, k, r1=1, failure="guide: LeakUndecided", revision=None) for k in (1, 2, 3)),
    *(trajectory(0, 1, k, r1=0, r2=float(k == 0), hint_metrics={"hint_accuracy": float(k < 2)}) for k in range(4)),
]


def test_an_attempt_of_which_some_rows_failed_weighs_as_one():
    metrics = trajectory_metrics(BROKEN_OFF)
    assert metrics["acc_t1"] == 1 / 2  # by rows: 1 / 5
    assert metrics["acc_t2"] == (1 + 1 / 4) / 2  # by rows: 2 / 5
    assert metrics["delta"] == pytest.approx(metrics["acc_t2"] - metrics["acc_t1"])
    assert metrics["i2c"] == (0 + 1 / 4) / 2 and metrics["c2i"] == 0
    assert metrics["fix_rate"] == 1 / 4 and metrics["break_rate"] == 0
    assert metrics["guidance/hint_accuracy"] == (1 + 2 / 4) / 2  # by rows: 3 / 5
    assert metrics["guidance/leak"] == pytest.approx((1 / 4 + 0) / 2)  # all four hints of the first were written


def test_grades_of_an_attempt_count_once_beside_its_revisions():
    lost = [trajectory(0, 0, k, failure="revise: ValueError" if k else None, r1=0.0, r2=0.0) for k in range(4)]
    for t in lost:
        t.grade_t1 = Grade("timeout")
        t.grade_t2 = None if t.failure else t.grade_t2
    assert trajectory_metrics(lost)["grade/timeout"] == 1 / 2  # of one attempt and its revisions; by rows 4 / 5


def test_a_failed_trajectory_counts_as_wrong_in_an_evaluation():
    evaluated = [
        trajectory(0, r1=1, r2=1),
        trajectory(1, r1=0, r2=1),
        trajectory(2, r1=1, failure="revise: PromptTooLong", revision=None),  # its attempt was graded
        trajectory(3, r1=1, r2=1, failure="revise: ValueError"),  # after its revision was graded
        trajectory(4, failure="attempt: PromptTooLong", revision=None),
    ]
    evaluated[2].grade_t2 = None
    evaluated[4].attempt = evaluated[4].grade_t1 = evaluated[4].grade_t2 = None
    metrics = trajectory_metrics(evaluated, failed_is_wrong=True)
    assert metrics["acc_t1"] == 3 / 5 and metrics["acc_t2"] == 2 / 5
    assert metrics["i2c"] == 1 / 5 and metrics["c2i"] == 2 / 5
    assert metrics["delta"] == pytest.approx(metrics["i2c"] - metrics["c2i"])
    assert metrics["num_failed"] == 3 and metrics["rollout/failed"] == 3 / 5
    assert trajectory_metrics(evaluated)["acc_t2"] == 1  # in training they take no part
    assert "num_failed" not in trajectory_metrics(evaluated)


def test_an_evaluation_in_which_all_failed_has_no_right_answer():
    failed = trajectory(0, failure="attempt: PromptTooLong", revision=None, guidance=None)
    failed.attempt = failed.grade_t1 = failed.grade_t2 = None
    metrics = trajectory_metrics([failed], failed_is_wrong=True)
    assert metrics["acc_t1"] == metrics["acc_t2"] == 0 and metrics["num_failed"] == 1


def test_hints_that_could_not_be_judged_are_counted_apart_from_leaks():
    hints = [trajectory(0, leak=1.0), trajectory(1), trajectory(2), trajectory(3)]
    hints[1].leak_unjudged = True
    metrics = trajectory_metrics(hints)
    assert metrics["guidance/leak"] == 1 / 4 and metrics["guidance/leak_unjudged"] == 1 / 4
