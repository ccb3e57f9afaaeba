"""A running Ray cluster in; GPUs reserved for roles, or an error that says what was asked, what is free and what to
change, out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from score_openrlhf.cluster.placement import Group, Node, PlacementError, in_order

POLL_SECONDS = 0.5
ONE_NODE_SECONDS = 10.0  # for a group that may be split, on GPUs that were free a moment ago

reserved: list[PlacementGroup] = []  # by this process, in the order of time


def cluster_nodes() -> list[Node]:
    """The nodes of the cluster this driver is connected to."""
    return [
        Node(node["NodeManagerAddress"], int(node["Resources"].get("GPU", 0)), int(node["Resources"].get("CPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]


def reserve(
    what: str, num_gpus: int, *, strategy: str = "PACK", timeout_seconds: float, waited: float = 0.0
) -> PlacementGroup:
    """`num_gpus` GPUs with a CPU each, reserved for `what`; blocks until they are free.

    Raises PlacementError after `timeout_seconds`, `waited` having been waited before, where Ray itself would wait for
    ever without a word.
    """
    group = placement_group([{"GPU": 1, "CPU": 1} for _ in range(num_gpus)], strategy=strategy)
    if group.wait(timeout_seconds):
        reserved.append(group)
        return group
    remove_placement_group(group)
    apart = {"STRICT_SPREAD": ", each on a node of its own", "STRICT_PACK": ", all on one node"}.get(strategy, "")
    raise PlacementError(
        f"{what} waited {waited + timeout_seconds:g} s for {num_gpus} GPU{'s' * (num_gpus > 1)} with a CPU "
        f"each{apart}. Free: {_free()}. Let what holds the rest end (`ray status` shows it) or ask for fewer GPUs; "
        "ray.placement_timeout_seconds is how long is waited"
    )


def release(groups: Sequence[PlacementGroup]) -> None:
    """Give back what `reserve` got; Ray ends the processes that run there."""
    ids = {group.id for group in groups}
    for group in groups:
        remove_placement_group(group)
    reserved[:] = [group for group in reserved if group.id not in ids]


def reserve_groups(groups: Sequence[Group], *, timeout_seconds: float) -> dict[str, list[PlacementGroup]]:
    """The GPUs of `groups`, none of which shares them, by the role: a role's groups in the order they came in.

    Blocks until there are GPUs for all of them, and takes the largest first (`in_order`). Raises PlacementError after
    `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    needed = sum(group.num_gpus for group in groups)
    while sum(free := _free_gpus()) < needed and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    held: dict[str, list[PlacementGroup]] = {}
    for group in in_order(groups, free):
        found = _on_one_node(group, deadline) if group.num_nodes == 1 and not group.must else None
        if found is None:
            strategy = "PACK" if group.num_nodes == 1 and not group.must else group.strategy
            left = max(0.0, round(deadline - time.monotonic(), 1))
            found = reserve(
                group.role, group.num_gpus, strategy=strategy, timeout_seconds=left, waited=timeout_seconds - left
            )
        held.setdefault(group.role, []).append(found)
    return held


def _on_one_node(group: Group, deadline: float) -> PlacementGroup | None:
    """As `reserve` on one node, or None: what is free was looked at a moment ago, and others reserve too."""
    wait = max(0.0, min(ONE_NODE_SECONDS, deadline - time.monotonic()))
    try:
        return reserve(group.role, group.num_gpus, strategy=group.strategy, timeout_seconds=wait)
    except PlacementError:
        return None


def _free_gpus() -> list[int]:
    """GPUs with a CPU each that are free now, of each node."""
    free = ray._private.state.available_resources_per_node()
    return [int(min(node.get("GPU", 0), node.get("CPU", 0))) for node in free.values()]


def bundle_nodes(group: PlacementGroup) -> list[str]:
    """The node of each bundle of a group, by the bundle's number."""
    places = placement_group_table(group)["bundles_to_node_id"]
    return [places[bundle] for bundle in range(len(places))]


def _free() -> str:
    free = ray._private.state.available_resources_per_node()
    return "; ".join(
        f"{node['NodeManagerAddress']} {free.get(node['NodeID'], {}).get('GPU', 0):g} of "
        f"{node['Resources'].get('GPU', 0):g} GPUs, {free.get(node['NodeID'], {}).get('CPU', 0):g} of "
        f"{node['Resources'].get('CPU', 0):g} CPUs"
        for node in ray.nodes()
        if node["Alive"]
    )
