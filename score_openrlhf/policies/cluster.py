"""A running Ray cluster in; GPUs reserved for roles, or an error that says what was asked, what is free and what to
change, out."""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from score_openrlhf.policies.placement import Node, PlacementError, Role

reserved: list[PlacementGroup] = []  # by this process, in the order of time


def cluster_nodes() -> list[Node]:
    """The nodes of the cluster this driver is connected to."""
    return [
        Node(node["NodeManagerAddress"], int(node["Resources"].get("GPU", 0)), int(node["Resources"].get("CPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]


def reserve(
    what: str, num_gpus: int, *, strategy: str = "PACK", timeout_seconds: float, remedy: str = ""
) -> PlacementGroup:
    """`num_gpus` GPUs with a CPU each, reserved for `what`; blocks until they are free.

    Raises PlacementError after `timeout_seconds`, where Ray itself would wait for ever without a word.
    """
    group = placement_group([{"GPU": 1, "CPU": 1} for _ in range(num_gpus)], strategy=strategy)
    if group.wait(timeout_seconds):
        reserved.append(group)
        return group
    remove_placement_group(group)
    apart = {"STRICT_SPREAD": ", each on a node of its own", "STRICT_PACK": ", all on one node"}.get(strategy, "")
    raise PlacementError(
        f"{what} waited {timeout_seconds:g} s for {num_gpus} GPU{'s' * (num_gpus > 1)} with a CPU each{apart}. "
        f"Free: {_free()}. {remedy or 'Let what holds the rest end (`ray status` shows it) or ask for fewer GPUs'}; "
        "ray.placement_timeout_seconds is how long is waited"
    )


def release(groups: Sequence[PlacementGroup]) -> None:
    """Give back what `reserve` got; Ray ends the processes that run there."""
    ids = {group.id for group in groups}
    for group in groups:
        remove_placement_group(group)
    reserved[:] = [group for group in reserved if group.id not in ids]


def reserve_role(role: Role, *, timeout_seconds: float) -> PlacementGroup:
    """The GPUs of a training or reference group that shares them with nobody.

    As few nodes as can hold them, which fills whole nodes; of single GPUs on several nodes one on each.
    """
    spread = role.num_nodes > 1 and role.gpus_per_node == 1
    return reserve(
        role.name, role.num_gpus, strategy="STRICT_SPREAD" if spread else "PACK", timeout_seconds=timeout_seconds
    )


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
