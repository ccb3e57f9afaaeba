"""Roles against clusters: what fits, what is refused with its arithmetic, and where engines stand on shared GPUs."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from score_openrlhf.cluster.placement import (
    Group,
    Node,
    Placement,
    PlacementError,
    Role,
    check_cluster,
    engine_bundles,
    groups_of,
    in_order,
    most_ranks_on_a_node,
    place,
)
from score_openrlhf.config.compose import load_config
from score_openrlhf.config.packaged import PROJECT_CONFIGS
from score_openrlhf.config.policies import shares_reference
from score_openrlhf.config.schema import Config
from score_openrlhf.config.validate import validate


def configured(name: str, *overrides: str) -> Config:
    cfg = load_config(str(PROJECT_CONFIGS / f"{name}.yaml"), list(overrides)).cfg
    validate(cfg, check_paths=False)
    return cfg


def nodes(*gpus: int, cpus: int = 96) -> list[Node]:
    return [Node(f"10.0.0.{n}", count, cpus) for n, count in enumerate(gpus, 1)]


def refusal(cfg: Config, cluster: list[Node]) -> str:
    with pytest.raises(PlacementError) as error:
        check_cluster(cfg, cluster)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "cluster"),
    [
        ("playground", nodes(5, cpus=16)),
        ("score_math", nodes(5)),
        ("rl_guided_score_math", nodes(8)),
        ("rl_guided_score_math", nodes(4, 4)),
        ("rl_guided_score_1.5b_1gpu", nodes(1)),
        ("rl_guided_score_7b_1.5b_8gpu", nodes(8)),
        ("rl_guided_score_7b_8gpu", nodes(8)),
        ("rl_guided_score_7b_4nodes", nodes(8, 8, 8, 8)),
    ],
)
def test_shipped_files_fit_the_clusters_they_are_made_for(name, cluster):
    check_cluster(configured(name), cluster)


def test_too_few_gpus_are_refused_with_the_sum_the_nodes_and_what_to_change():
    message = refusal(configured("rl_guided_score_math"), nodes(4, 2, cpus=32))
    assert message == (
        "The roles take solver_actor 2 + solver_engines 1 + solver_reference 2 + guidance_actor 2 + guidance_engines "
        "1 = 8 GPUs with a CPU each; there are 6. The cluster has: 10.0.0.1 4 GPUs and 32 CPUs; 10.0.0.2 2 GPUs and "
        "32 CPUs. Add nodes, or lower the sizes of roles (`score-openrlhf plan CONFIG --nodes M --gpus N` tries some)"
        ", share GPUs (placement=colocate takes 2)"
    )


def test_colocated_roles_take_the_largest():
    message = refusal(configured("rl_guided_score_7b_8gpu"), nodes(4))
    assert "the largest of solver_actor 8, solver_engines 8" in message
    assert "= 8 GPUs with a CPU each; there are 4" in message
    assert "placement=colocate" not in message


def test_gpus_without_a_cpu_each_do_not_count():
    assert "8 GPUs with a CPU each; there are 2" in refusal(configured("rl_guided_score_math"), nodes(8, cpus=2))


def test_a_group_needs_nodes_of_its_size():
    message = refusal(configured("rl_guided_score_7b_4nodes"), nodes(*[4] * 8))
    assert "solver_actor takes 1 nodes x 8 GPUs; 0 nodes have as many" in message


def test_an_engine_over_several_gpus_needs_them_on_one_node():
    cfg = configured("score_math", "vllm.tensor_parallel_size=4", "vllm.num_engines=2")
    check_cluster(cfg, nodes(8, 8))
    message = refusal(cfg, nodes(4, 3, 3, 2))
    assert "2 solver engines of 4 GPUs (tensor parallel, so on one node)" in message
    assert "there is room for 1" in message


def test_a_placement_can_ask_for_one_reference():
    overrides = ("placement=shared_reference",)
    cfg = configured("rl_guided_score_math", *overrides)
    assert shares_reference(cfg) and "guidance_reference" not in place(cfg).roles
    assert place(cfg).roles == place(configured("rl_guided_score_math")).roles  # these two models are the same
    apart = configured("rl_guided_score_math", "ref.shared=false")
    assert "guidance_reference" in place(apart).roles


@pytest.mark.parametrize(
    ("on", "num_engines", "tensor_parallel", "expected"),
    [
        ("aaaa", 4, 1, [[0], [1], [2], [3]]),
        ("aaaa", 2, 1, [[0], [1]]),  # a policy on fewer GPUs than there are: those on which it trains
        ("abab", 2, 2, [[0, 2], [1, 3]]),  # Ray numbers bundles of two nodes as it likes; no engine across nodes
        ("bbaaaabb", 2, 2, [[0, 1], [2, 3]]),  # not bundles 2 to 5, where half would have no trainer
    ],
)
def test_engines_stand_on_the_gpus_of_their_policy_and_on_one_node(on, num_engines, tensor_parallel, expected):
    assert engine_bundles(list(on), num_engines, tensor_parallel) == expected


def test_engines_that_would_cross_nodes_are_refused():
    with pytest.raises(PlacementError, match=r"3 on a, 5 on b; a node's do not divide by .*tensor_parallel_size 4"):
        engine_bundles(list("aaabbbbb"), 2, 4)


# ── The order of reservation ──

EIGHTS = [Group(name, size, 1) for name, size in zip("abcde", (8, 4, 8, 4, 8), strict=True)]


def nodes_of(groups: list[Group], free: list[int]) -> dict[str, int]:
    """The number of nodes each group comes to stand on, reserved one after the other as Ray does it: on one node the
    fullest that has room, else from the emptiest on."""
    left, found = list(free), {}
    for group in groups:
        room = [node for node in range(len(left)) if left[node] >= group.num_gpus]
        assert room or group.strategy == "PACK", f"{group} waits for ever"
        order = [min(room, key=left.__getitem__)] if room else sorted(range(len(left)), key=left.__getitem__)[::-1]
        missing, used = group.num_gpus, 0
        for node in order:
            taken = min(left[node], missing)
            left[node], missing, used = left[node] - taken, missing - taken, used + (taken > 0)
        found[group.role] = used
    return found


def test_large_groups_are_reserved_first_and_on_one_node():
    ordered = in_order(EIGHTS, [8, 8, 8, 8])
    assert [group.num_gpus for group in ordered] == [8, 8, 8, 4, 4]
    assert {group.strategy for group in ordered} == {"STRICT_PACK"}
    assert set(nodes_of(ordered, [8] * 4).values()) == {1}


def test_groups_that_no_node_can_hold_are_split_and_not_refused():
    ordered = in_order([Group("a", 5, 1), Group("b", 5, 1), Group("c", 5, 1)], [8, 8])
    assert [group.strategy for group in ordered] == ["STRICT_PACK", "STRICT_PACK", "PACK"]
    assert nodes_of(ordered, [8, 8]) == {"a": 1, "b": 1, "c": 2}


def test_what_must_be_on_one_node_comes_first_where_not_all_fit():
    engine = Group("engine", 4, 1, must=True)
    ordered = in_order([Group("a", 6, 1), Group("b", 6, 1), engine], [8, 8])
    assert ordered[0] == engine and nodes_of(ordered, [8, 8]) == {"engine": 1, "a": 1, "b": 2}
    # and largest first where they do: the engines fill what the groups leave
    pair = [Group("engine", 2, 1, must=True)] * 2
    assert in_order([*pair, Group("a", 6, 1), Group("b", 6, 1)], [8, 8])[2:] == pair


def test_single_gpu_engines_take_what_is_left():
    engines, actor = Group("engines", 8, None), Group("actor", 4, 1)
    assert in_order([engines, actor], [8, 4]) == [actor, engines]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_order_waits_for_ever(data):
    """Whatever is asked of whatever nodes: every group of the order finds its GPUs, if there are enough in all."""
    free = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    sizes = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=6))
    assume(sum(sizes) <= sum(free))
    groups = [Group(str(i), size, data.draw(st.sampled_from([1, None]))) for i, size in enumerate(sizes)]
    ordered = in_order(groups, free)
    assert sorted(group.role for group in ordered) == sorted(group.role for group in groups)
    nodes_of(ordered, free)


def test_groups_of_a_configuration():
    words = ("vllm.num_engines=2", "vllm.tensor_parallel_size=4", "guidance_vllm.tensor_parallel_size=1")
    cfg = configured(
        "rl_guided_score_math", *words, "actor.num_nodes=2", "actor.num_gpus_per_node=1", "ref.num_nodes=1"
    )
    engine = Group("solver_engines", 4, 1, must=True)
    assert groups_of(cfg) == [
        Group("solver_actor", 2, 2, must=True),
        engine,
        engine,
        Group("solver_reference", 1, 1),
        Group("guidance_actor", 2, 2, must=True),
        Group("guidance_engines", 2, None),
    ]


@pytest.mark.parametrize(
    ("placement", "nodes_of_groups", "expected"),
    [
        ("split", {"solver_actor": "aaaa", "guidance_actor": "aabb"}, 6),
        ("split", {"solver_actor": "aaaa", "guidance_actor": "bbbb"}, 4),
        ("colocate", {"solver_actor": "aabb", "guidance_actor": "aabb"}, 2),  # one after the other
        ("colocate", {"solver_actor": "aabbcc", "guidance_actor": "aabbcc"}, 2),  # more bundles than ranks
    ],
)
def test_ranks_that_step_at_once_on_a_node(placement, nodes_of_groups, expected):
    roles = {name: Role(name.removesuffix("_actor"), "actor", 1, 4) for name in nodes_of_groups}
    found = most_ranks_on_a_node(Placement(roles, placement == "colocate"), nodes_of_groups)
    assert found == expected
