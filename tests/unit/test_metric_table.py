"""One table of metrics: what the trainer writes, the report shows and the docs say are the same names."""

from __future__ import annotations

from score_openrlhf.config.methods import POLICIES
from score_openrlhf.report.names import CHARTS, COMPARED
from score_openrlhf.rollout.metric_table import METRICS, PAGE, STEP_METRICS, page
from score_openrlhf.rollout.metrics import metric_names, timing_metrics, trajectory_metrics
from tests.support.fakes import trajectory

OF_A_CRITIC = {"solver/critic_nonfinite_steps"}


def test_the_committed_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m score_openrlhf.rollout.metric_table"


def test_what_the_report_compares_and_draws_is_in_the_table():
    drawn = {metric for chart in CHARTS for metric, _ in chart.series}
    assert set(COMPARED) <= set(METRICS)
    assert drawn - OF_A_CRITIC <= set(METRICS)


def test_what_trajectories_say_is_in_the_table():
    rows = [trajectory(n, r1=n % 2, r2=1) for n in range(4)]
    found = trajectory_metrics(rows) | trajectory_metrics(rows, failed_is_wrong=True) | timing_metrics(rows)
    assert "acc_t2" in found and set(found) <= set(METRICS)


def test_a_run_of_one_policy_has_no_names_of_the_other():
    assert metric_names(POLICIES) == [name for name in STEP_METRICS if name != "step"]
    alone = metric_names(["solver"])
    assert "solver/reward" in alone and "acc_t1" in alone and not any(name.startswith("guidance/") for name in alone)


def test_kl_is_of_a_whole_turn_wherever_it_is_shown():
    (chart,) = [chart for chart in CHARTS if chart.title == "KL to the reference"]
    assert "whole turn" in chart.note
    assert all("whole" in METRICS[name].meaning and METRICS[name].unit == "nats" for name, _ in chart.series)
