"""A configuration -> what follows from it: the method, the guidance model's start, and the arithmetic of batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from score_openrlhf.config.keys import keys, value_of
from score_openrlhf.config.schema import Config, CriticConfig, RefConfig
from score_openrlhf.config.stages import num_steps, stage_of

SOLVER = "solver"
GUIDANCE = "guidance"
POLICIES = (SOLVER, GUIDANCE)


@dataclass(frozen=True)
class Sizes:
    """How many rows, optimizer steps and updates one policy sees; a row is one trajectory."""

    world_size: int  # training processes (GPUs) of the policy
    ranks: int  # data-parallel ranks: world_size / (ring attention x tensor parallel)
    trajectories_per_step: int  # batch_size x N x K
    train_batch_size: int  # rows per optimizer step, over all ranks
    pad_multiple: int  # rows come in multiples of this: whole optimizer steps and whole log-prob passes on all ranks
    padded_rows: int  # trajectories and rows with empty masks, what the policy trains on in an update
    optimizer_steps_per_update: int
    num_updates: int  # steps of the run in which this policy is updated
    scheduler_steps: int  # length of the learning-rate schedule that a run begins with (`schedule_length`)


def method_of(cfg: Config) -> str:
    """`score`, `smart_score` or `rl_guided_score`: `method` itself, or what the two flags say."""
    if cfg.method is not None:
        return cfg.method
    if cfg.train_guidance_model:
        return "rl_guided_score"
    return "smart_score" if cfg.use_smart_corrections else "score"


def differences(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """Keys of which two runs' configurations have another value, with both; `ray.*`, where a run runs, is no part."""
    pairs = {key: (value_of(before, key), value_of(now, key)) for key in keys() if not key.startswith("ray.")}
    pairs["method"] = (method_of(before), method_of(now))
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def has_guidance(cfg: Config) -> bool:
    """Whether a guidance model writes the hint."""
    return method_of(cfg) != "score"


def trains(cfg: Config, policy: str) -> bool:
    """Whether `policy` is ever updated."""
    if policy == SOLVER:
        return not cfg.solver.freeze
    return method_of(cfg) == "rl_guided_score" and not cfg.guidance.freeze


def guidance_start(cfg: Config) -> str | None:
    """The guidance model's starting model: its own path, else the frozen model's of smart_score, else the solver's."""
    return cfg.guidance_model_path or cfg.correction_model_path or cfg.model_path


def runs_stage(cfg: Config, stage: int) -> bool:
    """Whether the run has a step of `stage` (1 or 2), or may have one where a metric can end stage I early."""
    if stage == 2 and cfg.stage_switch.metric is not None and cfg.stage2_steps and num_steps(cfg) > 1:
        return True
    return any(stage_of(cfg, step) == stage for step in (0, num_steps(cfg) - 1) if 0 <= step < num_steps(cfg))


def is_update_step(cfg: Config, policy: str, step: int) -> bool:
    """Whether `policy` is due in step number `step` (from 0): after its warm-up, every `update_every` steps."""
    if not trains(cfg, policy):
        return False
    if policy == SOLVER:
        return step >= cfg.solver.warmup_steps
    since = step - cfg.guidance.warmup_steps
    return since >= 0 and since % cfg.guidance.update_every == 0


def lora_rank(cfg: Config, policy: str) -> int:
    """Rank of the policy's LoRA adapters; 0 where all its weights are trained."""
    own = cfg.guidance_actor.lora_rank if policy == GUIDANCE else None
    return cfg.ds.lora.rank if own is None else own


def wants_shared_reference(cfg: Config) -> bool | None:
    """Whether one reference is to serve both policies; None where it is left to whether one can."""
    return True if cfg.placement == "shared_reference" else cfg.ref.shared


def world_size(cfg: Config, policy: str) -> int:
    """Training processes of `policy`: nodes x GPUs per node."""
    if policy == SOLVER:
        return cfg.actor.num_nodes * cfg.actor.num_gpus_per_node
    num_nodes = cfg.guidance_actor.num_nodes or cfg.actor.num_nodes
    return num_nodes * (cfg.guidance_actor.num_gpus_per_node or cfg.actor.num_gpus_per_node)


def shares_reference(cfg: Config) -> bool:
    """Whether one reference group serves both policies: same checkpoint and temperature (the rest is the run's).

    `cfg` has passed `validate`, which refuses to share one where they differ.
    """
    wanted = wants_shared_reference(cfg)
    if wanted is not None:
        return wanted
    same_temperature = cfg.rollout.temperature == cfg.rollout.guidance_temperature
    return has_guidance(cfg) and guidance_start(cfg) == cfg.model_path and same_temperature


def group_sizes(cfg: Config, policy: str) -> dict[str, int]:
    """Processes (GPUs) of each group that passes over the policy's rows: its own, its reference's, the critic's."""
    shared = policy == GUIDANCE and shares_reference(cfg)
    found = {policy: world_size(cfg, policy), "ref": _size_of(cfg, cfg.ref, SOLVER if shared else policy)}
    if policy == SOLVER and cfg.critic.enable:
        found["critic"] = _size_of(cfg, cfg.critic, SOLVER)
    return found


def _size_of(cfg: Config, section: RefConfig | CriticConfig, policy: str) -> int:
    own = cfg.guidance_actor if policy == GUIDANCE else cfg.actor
    num_nodes = section.num_nodes or own.num_nodes or cfg.actor.num_nodes
    return num_nodes * (section.num_gpus_per_node or own.num_gpus_per_node or cfg.actor.num_gpus_per_node)


def trajectories_per_step(cfg: Config) -> int:
    """Problems x attempts per problem (N) x revisions per attempt (K)."""
    return cfg.rollout.batch_size * cfg.rollout.n_samples_per_prompt * cfg.guidance_samples


def sizes(cfg: Config, policy: str) -> Sizes:
    """The arithmetic of one policy's updates; `cfg` has passed `validate`.

    The host hands micro batches of log-prob passes to the ranks of each group, the reference's and the critic's too,
    and hangs where a rank gets more of them than another; rows that fill no whole accumulation window it drops. So an
    update trains on rows padded to a multiple of all. Without `train.batch_size` they are one optimizer step.
    """
    world = world_size(cfg, policy)
    split = cfg.ds.ring_attn_size * cfg.ds.tensor_parallel_size
    groups = {group: num_gpus // split for group, num_gpus in group_sizes(cfg, policy).items()}
    ranks = groups[policy]
    rows = trajectories_per_step(cfg)
    # Dynamic batches fill micro batches by tokens: any number of rows per rank will do.
    dynamic = cfg.train.dynamic_batch_enable
    train_unit = math.lcm(ranks, groups.get("critic", 1)) * (1 if dynamic else cfg.train.micro_batch_size)
    rollout_unit = math.lcm(*groups.values()) * (1 if dynamic else cfg.rollout.micro_batch_size)
    train_batch_size = cfg.train.batch_size or _round_up(rows, math.lcm(train_unit, rollout_unit))
    pad_multiple = math.lcm(train_batch_size, rollout_unit)
    padded_rows = _round_up(rows, pad_multiple)
    steps_per_update = padded_rows // train_batch_size * cfg.train.max_epochs
    steps = range(num_steps(cfg))
    scheduled = steps if cfg.carry_optimizer else [s for s in steps if stage_of(cfg, s) == stage_of(cfg, 0)]
    return Sizes(
        world_size=world,
        ranks=ranks,
        trajectories_per_step=rows,
        train_batch_size=train_batch_size,
        pad_multiple=pad_multiple,
        padded_rows=padded_rows,
        optimizer_steps_per_update=steps_per_update,
        num_updates=_num_updates(cfg, policy, steps),
        scheduler_steps=max(1, _num_updates(cfg, policy, scheduled) * steps_per_update),
    )


def schedule_length(cfg: Config, policy: str, steps: Iterable[int]) -> int:
    """Optimizer steps of `policy` in these steps of the run: the length of a learning-rate schedule over them.

    Without `carry_optimizer` each stage has a schedule of its own. At least 1: a frozen policy's needs a length too.
    """
    return max(1, _num_updates(cfg, policy, steps) * sizes(cfg, policy).optimizer_steps_per_update)


def _num_updates(cfg: Config, policy: str, steps: Iterable[int]) -> int:
    return sum(is_update_step(cfg, policy, step) for step in steps)


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
