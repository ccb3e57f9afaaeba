"""A configuration in; each model of its method as data out, with every "null: as the solver's" resolved.

    for spec in policy_specs(cfg):
        spec.name, spec.start, spec.learns, spec.group.num_gpus, spec.engines.num_engines

The only place that tells the two policies apart: everything else goes by what a spec says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from score_openrlhf.config.derive import guidance_start, has_guidance, method
from score_openrlhf.config.methods import GUIDANCE, POLICIES, SOLVER
from score_openrlhf.config.schema import Config

# What an engine on CUDA takes at once where vllm.max_num_seqs and vllm.max_num_batched_tokens are null. vLLM's own
# 128 and 2,048 for AsyncLLM (vllm/engine/arg_utils.py, get_batch_defaults) leave a GPU of 80 GB idle in decoding.
ENGINE_NUM_SEQS = 512
ENGINE_BATCHED_TOKENS = 8192


@dataclass(frozen=True)
class GroupSpec:
    """A group of processes, one on each GPU."""

    num_nodes: int
    gpus_per_node: int

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node


@dataclass(frozen=True)
class EnginesSpec:
    """The vLLM engines of one model."""

    section: str  # of the configuration: `vllm` or `guidance_vllm`
    num_engines: int
    tensor_parallel_size: int
    gpu_memory_utilization: float
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    seed_offset: int  # added to the run's seed, so that the engines of two models draw apart

    @property
    def num_gpus(self) -> int:
        return self.num_engines * self.tensor_parallel_size

    @property
    def num_seqs(self) -> int:
        """Sequences that an engine takes at once."""
        return self.max_num_seqs or ENGINE_NUM_SEQS

    @property
    def batched_tokens(self) -> int:
        """Tokens that an engine computes at once."""
        return self.max_num_batched_tokens or ENGINE_BATCHED_TOKENS


@dataclass(frozen=True)
class PolicySpec:
    """One model of a method: where it starts, how it is served and, where it learns, how it learns."""

    name: str
    start_key: str  # the key that names `start`
    shape_key: str  # the key that describes its shape where nothing else does
    start: str | None
    learns: bool  # has a training side; False: engines alone
    frozen: bool  # has one, and is not updated
    warmup_steps: int
    update_every: int
    max_steps_without_update: int
    lr: float
    kl_coef: float
    temperature: float
    lora_rank: int  # 0: all weights are trained
    rows_per_group: int  # rows that the host takes for one prompt's: of a problem, or of an attempt
    group: GroupSpec
    reference: GroupSpec
    reference_of: str  # the policy whose reference group serves this one; its own name where it has one
    critic: GroupSpec | None
    engines: EnginesSpec

    @property
    def trains(self) -> bool:
        """Whether it is ever updated."""
        return self.learns and not self.frozen

    def is_due(self, step: int) -> bool:
        """Whether it is updated in step number `step` (from 0): after its warm-up, every `update_every` steps."""
        since = step - self.warmup_steps
        return self.trains and since >= 0 and since % self.update_every == 0


def policy_specs(cfg: Config) -> list[PolicySpec]:
    """The models of the configured method, in the order in which they act."""
    return [spec_of(cfg, name) for name in method(cfg).models]


def learning_specs(cfg: Config) -> list[PolicySpec]:
    """Those of them that have a training side."""
    return [spec for spec in policy_specs(cfg) if spec.learns]


def spec_of(cfg: Config, name: str) -> PolicySpec:
    """One policy; raises ValueError for a name that is none."""
    if name not in _SPECS:
        raise ValueError(f"policy {name!r} is unknown: choose one of {', '.join(POLICIES)}")
    return _SPECS[name](cfg)


def _solver(cfg: Config) -> PolicySpec:
    group = GroupSpec(cfg.actor.num_nodes, cfg.actor.num_gpus_per_node)
    vllm = cfg.vllm
    return PolicySpec(
        name=SOLVER,
        start_key="model_path",
        shape_key="model_shape",
        start=cfg.model_path,
        learns=SOLVER in method(cfg).learning,
        frozen=cfg.solver.freeze,
        warmup_steps=cfg.solver.warmup_steps,
        update_every=1,
        max_steps_without_update=cfg.solver.max_steps_without_update,
        lr=cfg.actor.adam.lr,
        kl_coef=cfg.beta1,
        temperature=cfg.rollout.temperature,
        lora_rank=cfg.ds.lora.rank,
        rows_per_group=cfg.guidance_samples * cfg.rollout.n_samples_per_prompt,
        group=group,
        reference=_of_section(cfg.ref, group),
        reference_of=SOLVER,
        critic=_of_section(cfg.critic, group) if cfg.critic.enable else None,
        engines=EnginesSpec(
            section="vllm",
            num_engines=vllm.num_engines,
            tensor_parallel_size=vllm.tensor_parallel_size,
            gpu_memory_utilization=vllm.gpu_memory_utilization,
            max_num_seqs=vllm.max_num_seqs,
            max_num_batched_tokens=vllm.max_num_batched_tokens,
            seed_offset=0,
        ),
    )


def _guidance(cfg: Config) -> PolicySpec:
    own, vllm, shared = cfg.guidance_actor, cfg.guidance_vllm, shares_reference(cfg)
    solver_group = GroupSpec(cfg.actor.num_nodes, cfg.actor.num_gpus_per_node)
    group = _of_section(own, solver_group)
    return PolicySpec(
        name=GUIDANCE,
        start_key="guidance_model_path",
        shape_key="guidance_model_shape",
        start=guidance_start(cfg),
        learns=GUIDANCE in method(cfg).learning,
        frozen=cfg.guidance.freeze,
        warmup_steps=cfg.guidance.warmup_steps,
        update_every=cfg.guidance.update_every,
        max_steps_without_update=cfg.guidance.max_steps_without_update,
        lr=cfg.guidance_lr,
        kl_coef=cfg.guidance_kl_coef,
        temperature=cfg.rollout.guidance_temperature,
        lora_rank=_or(own.lora_rank, cfg.ds.lora.rank),
        rows_per_group=cfg.guidance_samples,
        group=group,
        reference=_of_section(cfg.ref, solver_group if shared else group),
        reference_of=SOLVER if shared else GUIDANCE,
        critic=None,
        engines=EnginesSpec(
            section="guidance_vllm",
            num_engines=_or(vllm.num_engines, cfg.vllm.num_engines),
            tensor_parallel_size=_or(vllm.tensor_parallel_size, cfg.vllm.tensor_parallel_size),
            gpu_memory_utilization=_or(vllm.gpu_memory_utilization, cfg.vllm.gpu_memory_utilization),
            max_num_seqs=_or(vllm.max_num_seqs, cfg.vllm.max_num_seqs),
            max_num_batched_tokens=_or(vllm.max_num_batched_tokens, cfg.vllm.max_num_batched_tokens),
            seed_offset=1000,
        ),
    )


_SPECS: Mapping[str, Callable[[Config], PolicySpec]] = {SOLVER: _solver, GUIDANCE: _guidance}


def wants_shared_reference(cfg: Config) -> bool | None:
    """Whether one reference is to serve both policies; None where it is left to whether one can."""
    return True if cfg.placement == "shared_reference" else cfg.ref.shared


def shares_reference(cfg: Config) -> bool:
    """Whether one reference group serves both policies: same checkpoint and temperature (the rest is the run's).

    `cfg` has passed `validate`, which refuses to share one where they differ.
    """
    if SOLVER not in method(cfg).learning:
        return False  # there is none to share
    wanted = wants_shared_reference(cfg)
    if wanted is not None:
        return wanted
    same_temperature = cfg.rollout.temperature == cfg.rollout.guidance_temperature
    return has_guidance(cfg) and guidance_start(cfg) == cfg.model_path and same_temperature


def _of_section(section: Any, group: GroupSpec) -> GroupSpec:
    """The sizes that `ref`, `critic` or `guidance_actor` sets, those of `group` where it sets none."""
    return GroupSpec(section.num_nodes or group.num_nodes, section.num_gpus_per_node or group.gpus_per_node)


def _or(own: Any, shared: Any) -> Any:
    return shared if own is None else own
