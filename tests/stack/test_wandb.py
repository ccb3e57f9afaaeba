"""A real run's offline W&B files: the numbers of metrics.jsonl under their names, and the stages."""

from __future__ import annotations

import math

from score_openrlhf.rollout.metric_table import STEP_METRICS
from tests.support.wandb_files import read


def test_offline_files_hold_the_numbers_of_every_step(guided_run):
    _, history = read(guided_run.folder)
    assert [line["step"] for line in history] == [1, 2, 3]
    for line, written in zip(history, guided_run.metrics, strict=True):
        scalars = {name: value for name, value in written.items() if isinstance(value, (int, float))}
        assert set(scalars) <= set(line)
        for name, value in scalars.items():
            assert line[name] == value or math.isnan(value), name
        assert set(line) - set(scalars) <= {"_step", "_timestamp", "_runtime"}


def test_names_are_those_of_the_metrics_and_stages_can_be_read(guided_run):
    _, history = read(guided_run.folder)
    nulls = {name for line in guided_run.metrics for name, value in line.items() if value is None}
    assert set(STEP_METRICS) - set(history[-1]) <= nulls
    assert {"acc_t2", "solver/kl_t2", "guidance/reward", "timing/total", "tokens_per_second"} <= set(history[-1])
    assert [line["stage"] for line in history] == [1, 2, 2]


def test_offline_run_carries_the_configuration(guided_run):
    config, _ = read(guided_run.folder)
    assert config["method"] == "rl_guided_score" and config["stage1_steps"] == 1
    assert config["actor"]["adam"]["lr"] == 1e-3
