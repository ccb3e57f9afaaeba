"""Roles against clusters: what fits, what is refused with its arithmetic, and where engines stand on shared GPUs."""

from __future__ import annotations

import pytest

from score_openrlhf.config.compose import load_config
from score_openrlhf.config.derive import shares_reference
from score_openrlhf.config.schema import Config
from score_openrlhf.config.sources import PROJECT_CONFIGS
from score_openrlhf.config.validate import validate
from score_openrlhf.policies.placement import (
    Node,
    PlacementError,
    check_cluster,
    engine_bundles,
    place,
)


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
        "The roles take solver_actor 2 + solver_engines 1 + solver_reference 2 + guidance_engines 1 + guidance_actor "
        "2 = 8 GPUs with a CPU each; there are 6. The cluster has: 10.0.0.1 4 GPUs and 32 CPUs; 10.0.0.2 2 GPUs and "
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
