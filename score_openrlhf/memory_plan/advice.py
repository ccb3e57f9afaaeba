"""A plan that does not fit -> changes of the configuration under which it does, each tried by planning again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from score_openrlhf.config.derive import has_guidance
from score_openrlhf.config.errors import ConfigError
from score_openrlhf.config.keys import set_value, value_of
from score_openrlhf.config.policies import policy_specs
from score_openrlhf.config.schema import Config
from score_openrlhf.config.validate import validate
from score_openrlhf.memory_plan.plan import Cluster, MemoryPlan, plan_memory

Change = tuple[tuple[str, Any], ...]  # keys and their new values, set together

UTILIZATIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
MAX_CHANGES = 3  # looked for together
MAX_ADVICE = 4


@dataclass(frozen=True)
class Advice:
    """Overrides under which the run fits, and the fullest GPU then."""

    overrides: tuple[str, ...]
    peak_bytes: int


def advise(cfg: Config, cluster: Cluster, plan: MemoryPlan) -> list[Advice]:
    """The smallest sets of changes that make `plan` fit its cluster, at most MAX_ADVICE; empty where none does.

    They trade memory for time or spread roles over GPUs in another way; none alters what is learned.
    """
    trial = _Trial(copy.deepcopy(cfg), cluster, plan)
    options = [values for values in _options(cfg, cluster) if values]
    for count in range(1, MAX_CHANGES + 1):
        found = [advice for chosen in combinations(options, count) if (advice := _mildest(trial, chosen))]
        if found:
            return found[:MAX_ADVICE]
    return _everything(trial, options)


def _mildest(trial: _Trial, options: tuple[list[Change], ...]) -> Advice | None:
    """One value of each option, the first that are enough together."""
    # What saves memory saves most at its last value: where those are not enough, nothing before them is.
    strongest = product(*(values if _has_best_value(values) else values[-1:] for values in options))
    if not any(trial.fits(changes) for changes in strongest):
        return None
    return next(advice for changes in product(*options) if (advice := trial.fits(changes)))


def _everything(trial: _Trial, options: list[list[Change]]) -> list[Advice]:
    """All changes at their strongest, then without each that turns out not to be needed."""
    engines = [values for values in options if _has_best_value(values) and not _resizes(values)]
    fixed = [values[-1] for values in options if not _has_best_value(values)]
    for chosen in product(*engines):
        needed = [*fixed, *chosen]
        if not trial.fits(needed):
            continue
        for change in (*fixed, *chosen):
            fewer = [other for other in needed if other is not change]
            if trial.fits(fewer):
                needed = fewer
        advice = trial.fits(needed)
        return [advice] if advice else []
    return []


def _has_best_value(values: list[Change]) -> bool:
    """Whether values lie around a best one: of engines and groups, where less of one thing is more of another."""
    return _resizes(values) or values[0][0][0].startswith(("vllm", "guidance_vllm"))


def _resizes(values: list[Change]) -> bool:
    """Whether changes move roles to other GPUs."""
    return values[0][0][0] in ("placement", "actor.num_gpus_per_node")


@dataclass
class _Trial:
    """A configuration to change and put back, and the plan that it is tried for."""

    cfg: Config
    cluster: Cluster
    plan: MemoryPlan

    def fits(self, changes: Sequence[Change]) -> Advice | None:
        """The advice to make `changes`, None where they do not fit, contradict each other or another key."""
        values = [pair for change in changes for pair in change]
        if len(values) != len(dict(values)):
            return None
        before = [(key, value_of(self.cfg, key)) for key, _ in values]
        for key, value in values:
            set_value(self.cfg, key, value)
        try:
            validate(self.cfg, check_paths=False)
            planned = plan_memory(self.cfg, self.cluster, self.plan.shapes)
        except ConfigError:
            return None
        finally:
            for key, value in before:
                set_value(self.cfg, key, value)
        overrides = tuple(f"{key}={_shown(value)}" for key, value in values)
        return Advice(overrides, planned.peak.total) if planned.fits else None


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _options(cfg: Config, cluster: Cluster) -> Iterator[list[Change]]:
    """For each thing that can be changed its other values, the mildest first."""
    if not cfg.actor.gradient_checkpointing_enable:
        yield [(("actor.gradient_checkpointing_enable", True),)]
    if cfg.train.dynamic_batch_enable:
        for key, value in (
            ("train.max_tokens_per_gpu", cfg.train.max_tokens_per_gpu),
            ("rollout.max_tokens_per_gpu", cfg.rollout.max_tokens_per_gpu or cfg.train.max_tokens_per_gpu),
        ):
            yield [((key, tokens),) for tokens in _halves(value, cfg.data.max_len)]
    else:
        yield [(("train.micro_batch_size", rows),) for rows in _halves(cfg.train.micro_batch_size, 1)]
        yield [(("rollout.micro_batch_size", rows),) for rows in _halves(cfg.rollout.micro_batch_size, 1)]
    if cfg.ds.zero_stage == 2:
        yield [(("ds.zero_stage", 3),)]
    if not cfg.ds.adam_offload:
        yield [(("ds.adam_offload", True),)]
    if not cfg.ref.offload:
        yield [(("ref.offload", True),)]
    if cfg.placement == "colocate" and cfg.rollout.schedule == "pipelined" and has_guidance(cfg):
        yield [(("rollout.schedule", "phased"),)]
    for section in ("vllm", "guidance_vllm"):
        now = getattr(cfg, section).gpu_memory_utilization
        if now is not None:
            nearest = sorted((value for value in UTILIZATIONS if value != now), key=lambda value: abs(value - now))
            yield [((f"{section}.gpu_memory_utilization", value),) for value in nearest]
    yield list(_tensor_parallel(cfg, cluster))
    yield list(_group_sizes(cfg, cluster))
    if cfg.placement != "colocate":
        yield [_colocated(cfg)]


def _halves(value: int, least: int) -> list[int]:
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found


def _tensor_parallel(cfg: Config, cluster: Cluster) -> Iterator[Change]:
    """Engines over more GPUs each, on as many GPUs as before where they can be."""
    size, gpus = cfg.vllm.tensor_parallel_size, cfg.vllm.num_engines * cfg.vllm.tensor_parallel_size
    while size * 2 <= cluster.gpus_per_node:
        size *= 2
        yield (("vllm.tensor_parallel_size", size), ("vllm.num_engines", max(1, gpus // size)))


def _group_sizes(cfg: Config, cluster: Cluster) -> Iterator[Change]:
    """Training groups of other sizes; where GPUs are shared the engines stand on the same ones."""
    now = cfg.actor.num_gpus_per_node
    sizes = [size for size in range(1, cluster.gpus_per_node + 1) if size != now]
    for size in sorted(sizes, key=lambda size: (size < now, abs(size - now))):
        change: Change = (("actor.num_gpus_per_node", size),)
        if cfg.placement == "colocate":
            num_engines = cfg.actor.num_nodes * size // cfg.vllm.tensor_parallel_size
            change = (*change, ("vllm.num_engines", max(1, num_engines)))
        yield change


def _colocated(cfg: Config) -> Change:
    """All roles on the solver's GPUs, or on all there are when its group is smaller."""
    values: dict[str, Any] = {
        "placement": "colocate",
        "vllm.enable_sleep": True,
        "ds.enable_sleep": True,
    }
    for spec in policy_specs(cfg):
        key = f"{spec.engines.section}.num_engines"
        if value_of(cfg, key) is not None:  # null: as the solver's
            values[key] = max(1, spec.group.num_gpus // spec.engines.tensor_parallel_size)
    if has_guidance(cfg):
        values["rollout.schedule"] = "phased"
    return tuple(values.items())
