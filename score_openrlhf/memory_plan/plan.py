"""A configuration and a cluster's size -> what every GPU holds in every phase of a step, and what does not fit.

    plan = plan_memory(cfg, Cluster(num_nodes=1, gpus_per_node=8, gpu_memory=80 * GIB))
    plan.fits, plan.problems, [(phase.name, phase.total) for phase in plan.phases]

Imports no torch: the arithmetic is `memory_plan/footprint.py`'s, the roles are `placement.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from score_openrlhf.cluster.placement import Kind, Placement, place
from score_openrlhf.config.policies import policy_specs, spec_of
from score_openrlhf.config.schema import Config
from score_openrlhf.memory_plan.footprint import GIB, Engine
from score_openrlhf.memory_plan.model_shape import KnownShape, shape_of
from score_openrlhf.memory_plan.role_memory import (
    LOG_PROBS,
    ROLLOUT,
    START,
    SYNC,
    RoleMemory,
    engine_of,
    host_bytes,
    role_memory,
    update_of,
)

NODE_GPUS = 8  # GPUs of a node where the command line does not say


@dataclass(frozen=True)
class Cluster:
    """The GPUs there are."""

    num_nodes: int
    gpus_per_node: int
    gpu_memory: int  # bytes of one GPU

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node


@dataclass(frozen=True)
class PhaseMemory:
    """One phase on the GPUs that a set of roles stands on; the fullest of them."""

    name: str
    num_gpus: int
    loads: tuple[RoleMemory, ...]
    gpu_memory: int

    @property
    def roles(self) -> list[str]:
        return [load.role for load in self.loads]

    @property
    def where(self) -> str:
        """The GPUs in words."""
        return "the shared GPUs" if len(self.loads) > 1 else f"the GPUs of {self.loads[0].role}"

    @property
    def total(self) -> int:
        """Roles on one GPU take turns, so the largest of what they need in their turns is added to what all hold."""
        resident = sum(sum(load.resident.values()) for load in self.loads)
        return resident + max(sum(load.working.values()) for load in self.loads)

    @property
    def fits(self) -> bool:
        return self.total <= self.gpu_memory

    def parts(self) -> dict[str, int]:
        """What `total` consists of: the part's name -> bytes."""
        parts: dict[str, int] = {}
        busiest = max(self.loads, key=lambda load: sum(load.working.values()))
        for counted in (*(load.resident for load in self.loads), busiest.working):
            for name, size in counted.items():
                parts[name] = parts.get(name, 0) + size
        return {name: size for name, size in parts.items() if size}


@dataclass(frozen=True)
class MemoryPlan:
    """Roles, phases, engines and whether all of it fits."""

    placement: Placement
    cluster: Cluster
    shapes: dict[str, KnownShape]  # of each policy
    phases: tuple[PhaseMemory, ...]
    engines: dict[str, Engine]  # of each policy
    host_bytes: dict[
        str, int
    ]  # role -> host memory that its processes take in all while their states are off the GPUs
    problems: tuple[str, ...]  # one sentence with the arithmetic for each thing that does not fit

    @property
    def fits(self) -> bool:
        return not self.problems

    @property
    def peak(self) -> PhaseMemory:
        """The phase with the most memory on a GPU."""
        return max(self.phases, key=lambda phase: phase.total)


def model_shapes(cfg: Config) -> dict[str, KnownShape]:
    """The shape of each policy's model. Raises ConfigError where one is not known."""
    by_start: dict[str, KnownShape] = {}
    shapes = {}
    for spec in policy_specs(cfg):
        assert spec.start is not None
        if spec.start not in by_start:
            by_start[spec.start] = shape_of(cfg, spec.shape_key, spec.start)
        shapes[spec.name] = by_start[spec.start]
    return shapes


def default_cluster(cfg: Config, gpu_memory: int) -> Cluster:
    """As many GPUs as the configuration's roles take, in nodes of NODE_GPUS or of its largest group's."""
    placement = place(cfg)
    groups = [role for role in placement.roles.values() if role.kind != Kind.ENGINES]
    gpus_per_node = min(placement.num_gpus, max(NODE_GPUS, *(role.gpus_per_node for role in groups)))
    num_nodes = max(-(-placement.num_gpus // gpus_per_node), *(role.num_nodes for role in groups))
    return Cluster(num_nodes, -(-placement.num_gpus // num_nodes), gpu_memory)


def plan_memory(cfg: Config, cluster: Cluster, shapes: dict[str, KnownShape] | None = None) -> MemoryPlan:
    """What each GPU holds in each phase; `cfg` has passed `validate`, `shapes` are looked up where not given.

    Raises ConfigError where a model's shape is not known.
    """
    shapes = shapes or model_shapes(cfg)
    placement = place(cfg)
    specs = policy_specs(cfg)
    engines = {spec.name: engine_of(cfg, spec, shapes[spec.name].shape, cluster.gpu_memory) for spec in specs}
    roles = list(placement.roles.values())
    names = [START, ROLLOUT, LOG_PROBS, *(update_of(spec.name) for spec in specs if spec.trains), SYNC]
    phases = []
    for shared in [roles] if placement.colocate else [[role] for role in roles]:
        for name in names:
            loads = tuple(role_memory(cfg, role, name, engines[role.policy]) for role in shared)
            phases.append(PhaseMemory(name, max(role.num_gpus for role in shared), loads, cluster.gpu_memory))
    problems = (
        *_counts(cfg, placement, cluster),
        *(problem for policy in engines for problem in _engine_problems(cfg, policy, engines[policy], cluster)),
        *_too_full(phases),
    )
    host = {role.name: host_bytes(cfg, role, engines[role.policy]) for role in roles}
    return MemoryPlan(placement, cluster, shapes, tuple(phases), engines, host, problems)


def _counts(cfg: Config, placement: Placement, cluster: Cluster) -> Iterator[str]:
    """Roles against the number of GPUs and nodes."""
    there = f"{cluster.num_nodes} node{'s' * (cluster.num_nodes > 1)} x {cluster.gpus_per_node} GPUs"
    sizes = [f"{role.name} {role.num_gpus}" for role in placement.roles.values()]
    if placement.num_gpus > cluster.num_gpus:
        joined = f"the largest of {', '.join(sizes)}" if placement.colocate else " + ".join(sizes)
        yield f"roles take {joined} = {placement.num_gpus} GPUs; there are {there} = {cluster.num_gpus}"
        return
    for role in placement.roles.values():
        if role.kind == Kind.ENGINES:
            continue  # placed one by one: what must fit on a node is one engine
        if role.num_nodes > cluster.num_nodes or role.gpus_per_node > cluster.gpus_per_node:
            yield f"{role.name} takes {role.num_nodes} nodes x {role.gpus_per_node} GPUs; there are {there}"


def _engine_problems(cfg: Config, policy: str, engine: Engine, cluster: Cluster) -> Iterator[str]:
    """Tensor parallelism against nodes and heads, and the cache against one sequence."""
    section = spec_of(cfg, policy).engines.section
    size, heads = engine.tensor_parallel, engine.shape.num_attention_heads
    if size > cluster.gpus_per_node:
        yield f"{section}.tensor_parallel_size {size} is more than a node's {cluster.gpus_per_node} GPUs"
    if heads % size:
        yield f"{section}.tensor_parallel_size {size} does not divide the model's {heads} attention heads"
    if engine.kv_tokens() < cfg.data.max_len:
        terms = (
            f"{engine.gpu_memory_utilization} x {engine.gpu_memory / GIB:.1f} GiB - weights "
            f"{engine.weights() / GIB:.1f} - workspace {(engine.workspace() + engine.graphs()) / GIB:.1f}"
        )
        yield (
            f"a {policy} engine's KV cache is {terms} = {engine.kv_cache() / GIB:.1f} GiB = "
            f"{engine.kv_tokens()} tokens, less than one sequence of data.max_len {cfg.data.max_len}"
        )


def _too_full(phases: list[PhaseMemory]) -> Iterator[str]:
    """Phases that need more than a GPU has; those with the same parts are one problem."""
    names: dict[tuple[str, str], list[str]] = {}
    for phase in phases:
        if not phase.fits:
            parts = sorted(phase.parts().items(), key=lambda item: -item[1])
            terms = " + ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
            needs = f"{terms} = {phase.total / GIB:.1f} GiB of {phase.gpu_memory / GIB:.1f} GiB"
            names.setdefault((phase.where, needs), []).append(phase.name)
    yield from (f"{' and '.join(same)} on {where}: {needs}" for (where, needs), same in names.items())
