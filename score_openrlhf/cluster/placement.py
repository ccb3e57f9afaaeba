"""A configuration in; which role sits on how many GPUs, and the fractions of shared ones, out. Imports no ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from score_openrlhf.config.policies import EnginesSpec, GroupSpec, policy_specs
from score_openrlhf.config.schema import Config
from score_openrlhf.errors import RunError


class Kind(StrEnum):
    """What a role does for its policy."""

    ACTOR = "actor"
    ENGINES = "engines"
    REFERENCE = "reference"
    CRITIC = "critic"


@dataclass(frozen=True)
class Role:
    """One group of processes of a policy: one that trains, one that only passes forward, or a set of engines."""

    policy: str
    kind: Kind
    num_nodes: int
    gpus_per_node: int

    @property
    def name(self) -> str:
        return f"{self.policy}_{self.kind}"

    @property
    def trains(self) -> bool:
        """Whether it holds an optimizer."""
        return self.kind in (Kind.ACTOR, Kind.CRITIC)

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
    def learners(self) -> list[str]:
        """The roles that train."""
        return [name for name, role in self.roles.items() if role.trains]

    @property
    def num_gpus(self) -> int:
        sizes = [role.num_gpus for role in self.roles.values()]
        return max(sizes) if self.colocate else sum(sizes)


@dataclass(frozen=True)
class Group:
    """GPUs that are reserved together, and on how many nodes; None: on any, because nobody talks to anybody."""

    role: str
    num_gpus: int
    num_nodes: int | None
    must: bool = False  # whether it cannot work on other nodes

    @property
    def strategy(self) -> str:
        """Ray's name for it; PACK is on as few nodes as can hold them."""
        if self.num_nodes == 1:
            return "STRICT_PACK"
        return "STRICT_SPREAD" if self.num_nodes == self.num_gpus else "PACK"


class PlacementError(RunError):
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


def place(cfg: Config) -> Placement:
    """The roles of the configured method and their sizes."""
    roles = []
    for spec in policy_specs(cfg):
        of_kind: dict[Kind, GroupSpec | None] = {Kind.ENGINES: GroupSpec(1, spec.engines.num_gpus)}
        if spec.learns:
            own_reference = spec.reference if spec.reference_of == spec.name else None
            of_kind = {Kind.ACTOR: spec.group, **of_kind, Kind.REFERENCE: own_reference, Kind.CRITIC: spec.critic}
        roles += [Role(spec.name, kind, of.num_nodes, of.gpus_per_node) for kind, of in of_kind.items() if of]
    return Placement({role.name: role for role in roles}, cfg.placement == "colocate")


def check_cluster(cfg: Config, nodes: Sequence[Node]) -> None:
    """Raise PlacementError, with the arithmetic, where the cluster can never hold the roles: Ray would wait for ever.

    What other jobs hold at the moment is not looked at; `cluster/reservation.py` waits for that, up to a deadline.
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
        if role.kind == Kind.ENGINES:
            continue
        large = sum(node.usable >= role.gpus_per_node for node in nodes)
        if large < role.num_nodes:
            yield (f"{role.name} takes {role.num_nodes} nodes x {role.gpus_per_node} GPUs; {large} nodes have as many")
    for spec in policy_specs(cfg):
        size = spec.engines.tensor_parallel_size
        room = sum(node.usable // size for node in nodes)
        if room < spec.engines.num_engines:
            yield (
                f"{spec.engines.num_engines} {spec.name} engines of {size} GPUs (tensor parallel, so on one node) "
                f"need room on the nodes for as many; there is room for {room}"
            )


def groups_of(cfg: Config) -> list[Group]:
    """What the roles of `cfg` reserve where they share no GPU.

    The ranks of a training or reference group talk at every layer, and so do the GPUs of one engine (tensor parallel),
    which vLLM wants on one node. Single-GPU engines are reserved together and may stand anywhere.
    """
    groups, engines = [], {spec.name: spec.engines for spec in policy_specs(cfg)}
    for role in place(cfg).roles.values():
        if role.kind == Kind.ENGINES:
            groups += engine_groups(role.name, engines[role.policy])
        else:
            spread = role.num_nodes > 1 and role.gpus_per_node == 1
            groups.append(Group(role.name, role.num_gpus, role.num_nodes, must=spread))
    return groups


def engine_groups(role: str, engines: EnginesSpec) -> list[Group]:
    """What one model's engines reserve."""
    if engines.tensor_parallel_size == 1:
        return [Group(role, engines.num_engines, None)]
    return [Group(role, engines.tensor_parallel_size, 1, must=True)] * engines.num_engines


def in_order(groups: Sequence[Group], free: Sequence[int]) -> list[Group]:
    """The order in which to reserve `groups` on nodes with so many `free` GPUs each: largest first.

    In another order a small group takes a part of a node that a large one needs whole, and Ray splits the large one
    over two (8, 4, 8, 4, 8 on four nodes of 8). Where the nodes cannot hold them all so, those that must be on one are
    first, then as many others as find room; the rest may be split.
    """
    largest_first = sorted(groups, key=lambda group: (group.num_nodes is None, -group.num_gpus))
    fitted, all_fit = _fitted(largest_first, free)
    return fitted if all_fit else _fitted(sorted(largest_first, key=lambda group: not group.must), free)[0]


def _fitted(groups: Sequence[Group], free: Sequence[int]) -> tuple[list[Group], bool]:
    """`groups`, placed one after the other as Ray does it, and whether all are on as many nodes as they should be; one
    that finds no node with room may be split."""
    left = list(free)
    fitted, all_fit = [], True
    for group in groups:
        fullest_last = sorted(range(len(left)), key=left.__getitem__, reverse=True)
        if group.num_nodes == 1:
            room = [node for node in fullest_last if left[node] >= group.num_gpus]
            if room:
                left[room[-1]] -= group.num_gpus
                fitted.append(group)
                continue
            all_fit = False
            if not group.must:
                group = replace(group, num_nodes=None)
        fitted.append(group)
        missing = group.num_gpus
        for node in fullest_last:
            taken = min(left[node], missing, 1 if group.strategy == "STRICT_SPREAD" else missing)
            left[node] -= taken
            missing -= taken
        all_fit = all_fit and not missing
    return fitted, all_fit


def most_ranks_on_a_node(placement: Placement, nodes: Mapping[str, Sequence[str]]) -> int:
    """The most training processes that step at once on one node; `nodes` is that of each bundle of each learner.

    Where they share GPUs one group takes its turn; else all may be at it.
    """
    counts = [Counter(on[: placement.roles[name].num_gpus]) for name, on in nodes.items()]
    if not placement.colocate:
        counts = [sum(counts, Counter())]
    return max(ranks for count in counts for ranks in count.values())


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
