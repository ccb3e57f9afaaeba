"""A configuration and a policy in; the arithmetic of its batches, updates and schedule out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from score_openrlhf.config.derive import trajectories_per_step
from score_openrlhf.config.policies import PolicySpec, spec_of
from score_openrlhf.config.schema import Config
from score_openrlhf.config.stages import num_steps, stage_of


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


def group_sizes(spec: PolicySpec) -> dict[str, int]:
    """Processes (GPUs) of each group that passes over the policy's rows: its own, its reference's, the critic's."""
    found = {spec.name: spec.group.num_gpus, "ref": spec.reference.num_gpus}
    return found | ({"critic": spec.critic.num_gpus} if spec.critic else {})


def sizes(cfg: Config, policy: str) -> Sizes:
    """The arithmetic of one policy's updates; `cfg` has passed `validate`.

    The host hands micro batches of log-prob passes to the ranks of each group, the reference's and the critic's too,
    and hangs where a rank gets more of them than another; rows that fill no whole accumulation window it drops. So an
    update trains on rows padded to a multiple of all. Without `train.batch_size` they are one optimizer step.
    """
    spec = spec_of(cfg, policy)
    split = cfg.ds.ring_attn_size * cfg.ds.tensor_parallel_size
    groups = {group: num_gpus // split for group, num_gpus in group_sizes(spec).items()}
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
        world_size=spec.group.num_gpus,
        ranks=ranks,
        trajectories_per_step=rows,
        train_batch_size=train_batch_size,
        pad_multiple=pad_multiple,
        padded_rows=padded_rows,
        optimizer_steps_per_update=steps_per_update,
        num_updates=_num_updates(spec, steps),
        scheduler_steps=max(1, _num_updates(spec, scheduled) * steps_per_update),
    )


def schedule_length(cfg: Config, policy: str, steps: Iterable[int]) -> int:
    """Optimizer steps of `policy` in these steps of the run: the length of a learning-rate schedule over them.

    Without `carry_optimizer` each stage has a schedule of its own. At least 1: a frozen policy's needs a length too.
    """
    return max(1, _num_updates(spec_of(cfg, policy), steps) * sizes(cfg, policy).optimizer_steps_per_update)


def _num_updates(spec: PolicySpec, steps: Iterable[int]) -> int:
    return sum(spec.is_due(step) for step in steps)


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
