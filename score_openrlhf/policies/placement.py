"""A configuration in; which role sits on how many GPUs, and the fractions of shared ones, out. Imports no ray."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from score_openrlhf.config.derive import guidance_start, has_guidance, method_of, shares_reference
from score_openrlhf.config.schema import Config


@dataclass(frozen=True)
class Role:
    """One group of processes: a training or reference group, or a set of engines."""

    name: str
    num_nodes: int
    gpus_per_node: int

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node


@dataclass(frozen=True)
class Placement:
    """All roles of a run; `fraction` of a GPU each where they share (`colocate`), else whole GPUs."""

    roles: dict[str, Role]
    colocate: bool

    @property
    def fraction(self) -> float:
        """GPU share of one process: OpenRLHF's fixed 0.2 does not fit six roles into one GPU."""
        if not self.colocate:
            return 1.0
        return int(100 / len(self.roles)) / 100

    @property
    def num_gpus(self) -> int:
        sizes = [role.num_gpus for role in self.roles.values()]
        return max(sizes) if self.colocate else sum(sizes)


class PlacementError(ValueError):
    """Roles do not get the GPUs they need; says what was asked, what there is and what to change."""


@dataclass(frozen=True)
class Node:
    """What Ray counts on one node."""

    name: str
    num_gpus: int
    num_cpus: int

    @property
    def usable(self) -> int:
        """GPUs that roles can have: a process on a GPU is given a CPU too."""
        return min(self.num_gpus, self.num_cpus)


def guidance_path(cfg: Config) -> str | None:
    """The guidance model's starting checkpoint, or None for method score."""
    return guidance_start(cfg) if has_guidance(cfg) else None


def place(cfg: Config) -> Placement:
    """The roles of the configured method and their sizes."""
    actor = Role("solver_actor", cfg.actor.num_nodes, cfg.actor.num_gpus_per_node)
    roles = [actor, Role("solver_engines", 1, math.prod(engine_sizes(cfg, "solver")))]
    roles.append(
        Role(
            "solver_reference", cfg.ref.num_nodes or actor.num_nodes, cfg.ref.num_gpus_per_node or actor.gpus_per_node
        )
    )
    if cfg.critic.enable:
        roles.append(
            Role(
                "solver_critic",
                cfg.critic.num_nodes or actor.num_nodes,
                cfg.critic.num_gpus_per_node or actor.gpus_per_node,
            )
        )
    method = method_of(cfg)
    if method != "score":
        roles.append(Role("guidance_engines", 1, math.prod(engine_sizes(cfg, "guidance"))))
    if method == "rl_guided_score":
        guidance = Role(
            "guidance_actor",
            cfg.guidance_actor.num_nodes or actor.num_nodes,
            cfg.guidance_actor.num_gpus_per_node or actor.gpus_per_node,
        )
        roles.append(guidance)
        if not shares_reference(cfg):
            roles.append(
                Role(
                    "guidance_reference",
                    cfg.ref.num_nodes or guidance.num_nodes,
                    cfg.ref.num_gpus_per_node or guidance.gpus_per_node,
                )
            )
    return Placement({role.name: role for role in roles}, cfg.placement == "colocate")


def check_cluster(cfg: Config, nodes: Sequence[Node]) -> None:
    """Raise PlacementError, with the arithmetic, where the cluster can never hold the roles: Ray would wait for ever.

    What other jobs hold at the moment is not looked at; `policies/cluster.py` waits for that, up to a deadline.
    """
    placement = place(cfg)
    problems = list(_cluster_problems(cfg, placement, nodes))
    if problems:
        there = "; ".join(f"{node.name} {node.num_gpus} GPUs and {node.num_cpus} CPUs" for node in nodes)
        remedy = "lower the sizes of roles (`score-openrlhf plan CONFIG --nodes M --gpus N` tries some)"
        largest = max(role.num_gpus for role in placement.roles.values())
        if not placement.colocate and largest <= sum(node.usable for node in nodes):
            remedy += f", share GPUs (placement=colocate takes {largest})"
        raise PlacementError(f"{'. '.join(problems)}. The cluster has: {there}. Add nodes, or {remedy}")


def _cluster_problems(cfg: Config, placement: Placement, nodes: Sequence[Node]) -> Iterator[str]:
    usable = sum(node.usable for node in nodes)
    sizes = [f"{role.name} {role.num_gpus}" for role in placement.roles.values()]
    if placement.num_gpus > usable:
        asked = f"the largest of {', '.join(sizes)}" if placement.colocate else " + ".join(sizes)
        yield f"The roles take {asked} = {placement.num_gpus} GPUs with a CPU each; there are {usable}"
        return
    for role in placement.roles.values():
        if role.name.endswith("_engines"):
            continue
        large = sum(node.usable >= role.gpus_per_node for node in nodes)
        if large < role.num_nodes:
            yield (f"{role.name} takes {role.num_nodes} nodes x {role.gpus_per_node} GPUs; {large} nodes have as many")
    for policy in ("solver", "guidance"):
        if f"{policy}_engines" not in placement.roles:
            continue
        num_engines, size = engine_sizes(cfg, policy)
        room = sum(node.usable // size for node in nodes)
        if room < num_engines:
            yield (
                f"{num_engines} {policy} engines of {size} GPUs (tensor parallel, so on one node) need room on the "
                f"nodes for as many; there is room for {room}"
            )


def engine_sizes(cfg: Config, policy: str) -> tuple[int, int]:
    """(engines, GPUs of each) of a policy."""
    own = cfg.guidance_vllm if policy == "guidance" else cfg.vllm
    return (
        own.num_engines or cfg.vllm.num_engines,
        own.tensor_parallel_size or cfg.vllm.tensor_parallel_size,
    )


def engine_bundles(nodes: Sequence[str], num_engines: int, tensor_parallel: int) -> list[list[int]]:
    """The bundles of each engine on GPUs that it shares; `nodes` is the node of each of the group's bundles.

    Engines stand on the first `num_engines x tensor_parallel` bundles, those on which their policy trains, so that
    each engine's GPUs receive the weights from a trainer on the same GPU; one engine's bundles are of one node.
    Raises PlacementError where a node's share of them does not divide.
    """
    by_node: dict[str, list[int]] = {}
    for bundle, node in enumerate(nodes[: num_engines * tensor_parallel]):
        by_node.setdefault(node, []).append(bundle)
    if any(len(bundles) % tensor_parallel for bundles in by_node.values()):
        shares = ", ".join(f"{len(bundles)} on {node}" for node, bundles in by_node.items())
        raise PlacementError(
            f"{num_engines} engines of {tensor_parallel} GPUs each got GPUs as follows: {shares}; a node's do not "
            f"divide by vllm.tensor_parallel_size {tensor_parallel}. Use nodes with as many free GPUs each, or a "
            "smaller vllm.tensor_parallel_size"
        )
    ordered = [bundle for bundles in by_node.values() for bundle in bundles]
    return [ordered[i * tensor_parallel : (i + 1) * tensor_parallel] for i in range(num_engines)]
