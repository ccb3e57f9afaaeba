"""A checkpoint is asked before the start whether DeepSpeed can load it."""

import json
from pathlib import Path

import pytest

from score_openrlhf.config.schema import Config
from score_openrlhf.preflight.checkpoints import KEYS, layout, layout_faults


def config(**changes) -> Config:
    cfg = Config(method="rl_guided_score", model_path="owner/model")
    for key, value in changes.items():
        section, name = key.split("__")
        setattr(getattr(cfg, section), name, value)
    return cfg


def faults(before: Config, now: Config) -> list[str]:
    # as trainer.json holds it
    return list(layout_faults(Path("/runs/a/step_4"), json.loads(json.dumps({"layout": layout(before)})), now))


def test_the_same_layout_is_no_fault_whatever_else_has_changed():
    now = config(actor__max_norm=2.0, rollout__batch_size=7, ds__adam_offload=True)
    assert faults(config(), now) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actor__num_gpus_per_node": 2}, "actor.num_nodes x actor.num_gpus_per_node 1 (now 2)"),
        ({"guidance_actor__num_gpus_per_node": 4}, "guidance_actor.num_gpus_per_node 1 (now 4)"),
        ({"ds__zero_stage": 2}, "ds.zero_stage 3 (now 2)"),
        ({"ds__param_dtype": "fp16"}, "ds.param_dtype bf16 (now fp16)"),
        ({"guidance_actor__lora_rank": 8}, "guidance_actor.lora_rank 0 (now 8)"),
        ({"critic__enable": True}, "no critic (now a critic: critic.enable)"),
    ],
)
def test_what_deepspeed_cuts_by_is_named_with_its_key_and_both_values(changes, words):
    (fault,) = faults(config(), config(**changes))
    assert words in fault and "/runs/a/step_4 was written with" in fault
    assert "model_path=.../solver and guidance_model_path=.../guidance" in fault


def test_a_critic_that_is_gone_and_ranks_that_changed_are_one_fault():
    (fault,) = faults(config(critic__enable=True), config(actor__num_gpus_per_node=2))
    assert "(now 2)" in fault and "a critic (now no critic" in fault


def test_every_part_of_a_layout_names_its_key():
    assert set(layout(config(critic__enable=True))) == set(KEYS)


def test_a_checkpoint_of_before_says_nothing():
    assert list(layout_faults(Path("x"), {"step": 3}, config())) == []
