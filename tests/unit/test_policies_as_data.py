"""What a policy's spec resolves: every "null: as the solver's", and who shares a reference."""

from __future__ import annotations

import pytest

from score_openrlhf.config.policies import learning_specs, policy_specs, shares_reference, spec_of
from score_openrlhf.config.schema import Config


def configured(method: str = "rl_guided_score", **changes) -> Config:
    cfg = Config(method=method, model_path="one")
    cfg.ds.lora.rank = 8
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        setattr(getattr(cfg, section) if section else cfg, key, value)
    return cfg


@pytest.mark.parametrize(
    ("method", "models", "learning"),
    [
        ("score", ["solver"], ["solver"]),
        ("smart_score", ["solver", "guidance"], ["solver"]),
        ("rl_guided_score", ["solver", "guidance"], ["solver", "guidance"]),
    ],
)
def test_a_method_says_who_takes_part_and_who_learns(method, models, learning):
    cfg = configured(method)
    assert [spec.name for spec in policy_specs(cfg)] == models
    assert [spec.name for spec in learning_specs(cfg)] == learning


@pytest.mark.parametrize(("own", "expected"), [(None, 8), (0, 0), (4, 4)])
def test_a_rank_of_zero_is_a_rank(own, expected):
    assert spec_of(configured(guidance_actor__lora_rank=own), "guidance").lora_rank == expected


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({}, True),
        ({"guidance_model_path": "other"}, False),
        ({"rollout__guidance_temperature": 0.5}, False),
        ({"guidance_model_path": "other", "rollout__guidance_temperature": 0.5}, False),
    ],
)
def test_one_reference_serves_both_where_start_and_temperature_are_the_same(changes, shared):
    cfg = configured(**changes)
    assert shares_reference(cfg) == shared
    assert spec_of(cfg, "guidance").reference_of == ("solver" if shared else "guidance")


def test_a_group_that_sets_nothing_is_as_large_as_the_solvers():
    cfg = configured(actor__num_nodes=2, actor__num_gpus_per_node=4)
    assert spec_of(cfg, "guidance").group == spec_of(cfg, "solver").group
    cfg.guidance_actor.num_gpus_per_node = 1
    assert spec_of(cfg, "guidance").group.num_gpus == 2
