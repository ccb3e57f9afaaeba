"""Batch arithmetic of both policies, and how it reaches the host's arguments."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_openrlhf.cluster.placement import place
from score_openrlhf.config.host_args import OURS, host_args
from score_openrlhf.config.host_defaults import HOST_DEFAULTS
from score_openrlhf.config.policies import spec_of
from score_openrlhf.config.schema import Config
from score_openrlhf.config.sizes import schedule_length, sizes
from score_openrlhf.config.stages import num_steps, stage_of


def config(**values) -> Config:
    cfg = Config(model_path="owner/model", method="rl_guided_score")
    for name, value in values.items():
        *sections, last = name.split("__")
        node = cfg
        for section in sections:
            node = getattr(node, section)
        setattr(node, last, value)
    return cfg


def args_of(cfg: Config, policy: str):
    return host_args(cfg, policy, checkpoint_path=f"ckpt/{policy}", model_path=f"models/{policy}")


@st.composite
def configs(draw):
    """Configurations that pass validate's arithmetic: an explicit batch divides by ranks x micro batch."""
    small = st.integers(1, 7)
    cfg = config(
        rollout__batch_size=draw(st.integers(1, 40)),
        rollout__n_samples_per_prompt=draw(small),
        guidance_samples=draw(small),
        rollout__micro_batch_size=draw(st.integers(1, 12)),
        train__micro_batch_size=draw(st.integers(1, 12)),
        train__max_epochs=draw(st.integers(1, 3)),
        train__dynamic_batch_enable=draw(st.booleans()),
        actor__num_nodes=draw(st.integers(1, 2)),
        guidance_actor__num_gpus_per_node=draw(st.one_of(st.none(), st.integers(1, 4))),
    )
    cfg.ds.ring_attn_size = draw(st.integers(1, 2))
    cfg.actor.num_gpus_per_node = cfg.ds.ring_attn_size * draw(st.integers(1, 4))
    if cfg.guidance_actor.num_gpus_per_node:
        cfg.guidance_actor.num_gpus_per_node *= cfg.ds.ring_attn_size
    if draw(st.booleans()):
        ranks = math.lcm(*(sizes(cfg, policy).ranks for policy in ("solver", "guidance")))
        micro = 1 if cfg.train.dynamic_batch_enable else cfg.train.micro_batch_size
        cfg.train.batch_size = ranks * micro * draw(small)
    return cfg


@given(configs(), st.sampled_from(["solver", "guidance"]))
def test_padding_fills_whole_windows_on_every_rank(cfg, policy):
    size = sizes(cfg, policy)
    dynamic = cfg.train.dynamic_batch_enable
    assert size.trajectories_per_step <= size.padded_rows < size.trajectories_per_step + size.pad_multiple
    assert size.padded_rows % size.pad_multiple == 0
    assert size.padded_rows % size.train_batch_size == 0
    assert size.padded_rows % (size.ranks * (1 if dynamic else cfg.rollout.micro_batch_size)) == 0
    assert size.train_batch_size % (size.ranks * (1 if dynamic else cfg.train.micro_batch_size)) == 0
    if cfg.train.batch_size is None:
        assert size.padded_rows == size.train_batch_size  # all of a step's trajectories in one optimizer step
        assert size.optimizer_steps_per_update == cfg.train.max_epochs
    else:
        assert size.train_batch_size == cfg.train.batch_size
    assert size.scheduler_steps == size.num_updates * size.optimizer_steps_per_update


@given(configs(), st.sampled_from(["solver", "guidance"]))
def test_dynamic_batches_train_every_padded_row(cfg, policy):
    """openrlhf/trainer/ppo_utils/replay_buffer.py:97-103 gives this many optimizer steps to a buffer of local rows."""
    size, args = sizes(cfg, policy), args_of(cfg, policy)
    local_train_batch_size = args.train.batch_size // size.ranks
    local_rows = size.padded_rows // size.ranks
    expected = args.rollout.batch_size * args.rollout.n_samples_per_prompt // args.train.batch_size
    steps = min(expected, local_rows // local_train_batch_size)
    assert steps * local_train_batch_size == local_rows


@given(configs(), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_every_group_gets_whole_micro_batches_in_equal_numbers(cfg, ref_gpus, critic_gpus, own_model):
    """openrlhf/trainer/ray/launcher.py:354 hands out ceil(batches / ranks) each: 5 to two ranks as 3 and 2, a hang."""
    cfg.train.dynamic_batch_enable, cfg.train.batch_size, cfg.ds.ring_attn_size = False, None, 1
    cfg.ref.num_gpus_per_node, cfg.critic.num_gpus_per_node, cfg.critic.enable = ref_gpus, critic_gpus, True
    cfg.guidance_model_path = "owner/other" if own_model else None
    for policy in ("solver", "guidance"):
        size = sizes(cfg, policy)
        num_batches = size.padded_rows // cfg.rollout.micro_batch_size
        roles = place(cfg).roles
        reference = roles.get(f"{policy}_reference", roles["solver_reference"])
        groups = [roles[f"{policy}_actor"], reference, *([roles["solver_critic"]] if policy == "solver" else [])]
        assert not any(num_batches % group.num_gpus for group in groups)
    critic = roles["solver_critic"].num_gpus
    assert sizes(cfg, "solver").train_batch_size % (critic * cfg.train.micro_batch_size) == 0


def test_sizes_of_a_worked_example():
    # 3 problems x 2 attempts x 3 guidances = 18 rows; 2 ranks x micro 2 = 4 rows a pass; 8 a step -> 24 = 3 x 8
    cfg = config(
        rollout__batch_size=3,
        guidance_samples=3,
        rollout__micro_batch_size=2,
        train__micro_batch_size=2,
        train__batch_size=8,
        actor__num_gpus_per_node=2,
        stage1_steps=4,
        stage2_steps=6,
        solver__warmup_steps=1,
        guidance__warmup_steps=2,
        guidance__update_every=3,
    )
    solver, guidance = sizes(cfg, "solver"), sizes(cfg, "guidance")
    assert (solver.trajectories_per_step, solver.padded_rows, solver.optimizer_steps_per_update) == (18, 24, 3)
    assert (solver.num_updates, solver.scheduler_steps) == (9, 27)
    assert [step for step in range(10) if spec_of(cfg, "guidance").is_due(step)] == [2, 5, 8]
    assert (guidance.num_updates, guidance.scheduler_steps) == (3, 9)
    # stage II, steps 4 to 9: six updates of the solver and two of the guidance model, of three optimizer steps each
    assert schedule_length(cfg, "solver", range(4, 10)) == 18 and schedule_length(cfg, "guidance", range(4, 10)) == 6
    args = args_of(cfg, "guidance")
    assert (args.rollout.n_samples_per_prompt, args.rollout.batch_size, args.train.batch_size) == (3, 8, 8)


@pytest.mark.parametrize(
    ("values", "solver_updates", "guidance_updates"),
    [
        (dict(), 30, 30),
        (dict(start_stage=2), 20, 20),
        (dict(max_steps=12), 12, 12),
        (dict(solver__freeze=True), 0, 30),
        (dict(guidance__freeze=True), 30, 0),
        (dict(method="smart_score"), 30, 0),
        (dict(guidance__update_every=4), 30, 8),
        (dict(guidance__warmup_steps=40), 30, 0),
    ],
)
def test_updates_follow_stages_freezing_and_schedules(values, solver_updates, guidance_updates):
    cfg = config(**{"stage1_steps": 10, "stage2_steps": 20, **values})
    assert sizes(cfg, "solver").num_updates == solver_updates
    assert sizes(cfg, "guidance").num_updates == guidance_updates
    assert sizes(cfg, "guidance").scheduler_steps == max(1, guidance_updates)


@pytest.mark.parametrize(
    ("values", "first", "second"),
    [
        (dict(), 30, 20),  # one schedule over both stages; what a new one over stage II would have
        (dict(carry_optimizer=False), 10, 20),
        (dict(carry_optimizer=False, start_stage=2), 20, 20),
        (dict(carry_optimizer=False, stage1_steps=0), 20, 20),
        (dict(carry_optimizer=False, max_steps=12), 10, 2),
        (dict(carry_optimizer=False, guidance__update_every=4), 3, 5),  # steps 0, 4, 8 and 12, 16, .., 28
    ],
)
def test_each_stage_has_a_schedule_where_the_optimizer_is_not_carried_over(values, first, second):
    cfg = config(**{"stage1_steps": 10, "stage2_steps": 20, **values})
    assert sizes(cfg, "guidance").scheduler_steps == first
    last = num_steps(cfg)
    stage2 = range(next(step for step in range(last) if stage_of(cfg, step) == 2), last)
    assert schedule_length(cfg, "guidance", stage2) == second


def test_each_policy_has_its_own_arguments():
    cfg = config(
        guidance_lr=3e-6,
        guidance_kl_coef=0.2,
        guidance_samples=4,
        actor__adam__lr=2e-6,
        beta1=0.03,
        rollout__temperature=0.9,
        rollout__guidance_temperature=0.8,
        actor__num_gpus_per_node=2,
        guidance_actor__num_gpus_per_node=4,
        vllm__num_engines=1,
        guidance_vllm__num_engines=2,
        output_dir="out",
    )
    solver, guidance = args_of(cfg, "solver"), args_of(cfg, "guidance")
    assert (solver.actor.adam.lr, guidance.actor.adam.lr) == (2e-6, 3e-6)
    assert (solver.algo.kl.init_coef, guidance.algo.kl.init_coef) == (0.03, 0.2)
    assert (solver.rollout.temperature, guidance.rollout.temperature) == (0.9, 0.8)
    assert (solver.actor.num_gpus_per_node, guidance.actor.num_gpus_per_node) == (2, 4)
    assert (solver.vllm.num_engines, guidance.vllm.num_engines) == (1, 2)
    assert (solver.ckpt.path, guidance.ckpt.path) == ("ckpt/solver", "ckpt/guidance")
    assert (solver.ckpt.output_dir, guidance.ckpt.output_dir) == ("out/solver", "out/guidance")
    assert (solver.actor.model_name_or_path, guidance.actor.model_name_or_path) == ("models/solver", "models/guidance")
    assert (solver.rollout.n_samples_per_prompt, guidance.rollout.n_samples_per_prompt) == (8, 4)
    low, high = solver.reward.clip_range
    assert low < -(1 + cfg.alpha) and high > 1 + cfg.alpha  # the host's (-10, 10) would cut a shaped reward of 11


def test_what_the_host_adjusts_after_parsing_is_adjusted():
    args = args_of(config(train__dynamic_batch_enable=True, train__max_tokens_per_gpu=9000), "solver")
    assert args.ds.packing_samples and args.rollout.max_tokens_per_gpu == 9000
    assert args.actor.eps_clip_low_high == (0.2, 0.2)
    assert args.eval.steps == math.inf and args.ckpt.save_steps == math.inf  # step % -1 == 0 would be always due


def test_arguments_are_not_shared_between_policies():
    solver, guidance = args_of(config(), "solver"), args_of(config(), "guidance")
    solver.algo.advantage.is_correction_threshold.append(1.0)
    assert guidance.algo.advantage.is_correction_threshold == [0.5, 5.0]
    assert HOST_DEFAULTS["algo.advantage.is_correction_threshold"] == [0.5, 5.0]


def test_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="policy 'critic' is unknown: choose one of solver, guidance"):
        args_of(config(), "critic")


def test_every_argument_of_ours_is_one_of_the_hosts():
    assert set(OURS) <= set(HOST_DEFAULTS)
    assert all(OURS.values())
