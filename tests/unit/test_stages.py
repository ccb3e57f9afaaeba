"""When stage I ends: after its steps, or earlier on a metric over a window."""

import pytest

from score_openrlhf.config.schema import Config, StageSwitchConfig
from score_openrlhf.trainer.stages import Stages


def config(**changes) -> Config:
    return Config(**{"stage1_steps": 5, "stage2_steps": 3, **changes})


def test_stages_by_step_count():
    stages = Stages(config())
    assert [stages.stage(step) for step in range(8)] == [1] * 5 + [2] * 3
    assert stages.num_steps == 8
    assert Stages(config(max_steps=6)).num_steps == 6


def test_start_in_stage_two():
    stages = Stages(config(start_stage=2))
    assert stages.stage(0) == 2 and stages.num_steps == 3


def test_metric_ends_stage_one_when_its_mean_reaches_the_threshold():
    stages = Stages(config(stage_switch=StageSwitchConfig(metric="delta", threshold=0.1, window=2)))
    # means over two steps: -, 0.05, 0.10 -> the third step ends stage I
    assert [stages.observe(step, {"delta": value}) for step, value in enumerate((0.0, 0.1, 0.1))] == [
        False,
        False,
        True,
    ]
    assert [stages.stage(step) for step in range(6)] == [1] * 3 + [2] * 3
    assert stages.num_steps == 6


def test_metric_that_never_comes_leaves_the_step_count_in_charge():
    stages = Stages(config(stage_switch=StageSwitchConfig(metric="delta", threshold=0.5, window=1)))
    assert not any(stages.observe(step, {"delta": 0.1}) for step in range(5))
    assert stages.stage(4) == 1 and stages.stage(5) == 2


def test_unknown_metric_is_an_error_that_lists_what_there_is():
    stages = Stages(config(stage_switch=StageSwitchConfig(metric="dleta", threshold=0.5)))
    with pytest.raises(ValueError, match=r"dleta.*acc_t1, delta"):
        stages.observe(0, {"delta": 0.1, "acc_t1": 0.2})


def test_resumed_run_keeps_a_switch_that_has_happened():
    switched = config(stage_switch=StageSwitchConfig(metric="delta", threshold=0.1, window=1))
    stages = Stages(switched)
    assert stages.observe(1, {"delta": 0.2})
    resumed = Stages(switched)
    resumed.restore(stages.state(), step=3)
    assert resumed.stage(1) == 1 and resumed.stage(2) == 2 and resumed.num_steps == 5


def test_resumed_run_remembers_the_metric_of_the_steps_before():
    cfg = config(stage_switch=StageSwitchConfig(metric="delta", threshold=0.1, window=2))
    stages = Stages(cfg)
    assert not stages.observe(0, {"delta": 0.2})
    resumed = Stages(cfg)
    resumed.restore(stages.state(), step=1)
    assert resumed.observe(1, {"delta": 0.0})  # the mean of both steps is there


def test_resumed_run_may_change_the_length_of_a_stage_it_is_still_in():
    stages = Stages(config())
    resumed = Stages(config(stage1_steps=7))
    resumed.restore(stages.state(), step=2)
    assert resumed.stage(6) == 1
