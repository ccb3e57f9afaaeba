"""`score-openrlhf plan` as a user calls it: what it prints, its exit status, and that its advice holds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from score_openrlhf.cli import main, plan
from score_openrlhf.config.keys import keys
from score_openrlhf.config.packaged import PROJECT_CONFIGS
from score_openrlhf.memory_plan.footprint import GIB

CONFIGS = {  # file -> (nodes, GPUs of a node) of 80 GB it is made for
    "playground": (1, 5),
    "score_math": (1, 5),
    "smart_score_math": (1, 6),
    "rl_guided_score_math": (1, 8),
    "rl_guided_score_1.5b_1gpu": (1, 1),
    "rl_guided_score_7b_1.5b_8gpu": (1, 8),
    "rl_guided_score_7b_8gpu": (1, 8),
    "rl_guided_score_7b_4nodes": (4, 8),
}


def run(*arguments: str) -> int:
    return main(["plan", *arguments])


def path(name: str) -> str:
    return str(PROJECT_CONFIGS / f"{name}.yaml")


@pytest.fixture
def planned(capsys):
    """The JSON of a plan and the exit status."""

    def plan_json(name: str, *arguments: str) -> tuple[dict, int]:
        status = run(path(name), *arguments, "--json")
        return json.loads(capsys.readouterr().out), status

    return plan_json


def test_every_shipped_file_has_a_cluster_here():
    assert set(CONFIGS) == {file.stem for file in PROJECT_CONFIGS.glob("*.yaml")}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_file_fits_what_it_is_made_for(planned, name):
    num_nodes, gpus = CONFIGS[name]
    record, status = planned(name, "--nodes", str(num_nodes), "--gpus", str(gpus))
    assert (record["fits"], status, record["problems"], record["advice"]) == (True, 0, [], [])
    assert all(phase["fits"] and phase["total_bytes"] <= 78 * GIB for phase in record["phases"])
    assert sum(role["num_gpus"] * role["fraction"] for role in record["roles"]) <= num_nodes * gpus


@pytest.mark.parametrize("name", CONFIGS)
def test_the_cluster_of_a_file_is_found_where_none_is_given(planned, name):
    record, _ = planned(name)
    assert (record["cluster"]["num_nodes"], record["cluster"]["gpus_per_node"]) == CONFIGS[name]


def test_the_one_gpu_file_does_not_waste_its_gpu(planned):
    """A plan that fits with most of the GPU empty would be a bad start, and so would one without room."""
    record, _ = planned("rl_guided_score_1.5b_1gpu")
    fullest = max(phase["total_bytes"] for phase in record["phases"])
    assert 60 * GIB < fullest < 76 * GIB


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("rl_guided_score_7b_8gpu", ("--gpu-memory", "40GiB")),  # no single change is enough
        ("rl_guided_score_7b_8gpu", ("--gpus", "4")),
        ("rl_guided_score_7b_8gpu", ("--gpu-memory", "24GiB")),  # everything at once
        ("rl_guided_score_1.5b_1gpu", ("--gpu-memory", "24GiB")),
        ("rl_guided_score_1.5b_1gpu", ("train.micro_batch_size=16",)),
        ("rl_guided_score_math", ("--gpus", "2")),
        ("rl_guided_score_math", ("actor.num_gpus_per_node=1", "model_path=Qwen/Qwen2.5-7B", "--gpus", "5")),
        ("rl_guided_score_math", ("ds.zero_stage=2", "model_path=Qwen/Qwen2.5-14B", "--gpus", "8")),
        ("rl_guided_score_7b_4nodes", ("--nodes", "2", "--gpus", "8")),
        ("score_math", ("vllm.gpu_memory_utilization=0.03",)),  # no room for a cache
        ("score_math", ("model_path=Qwen/Qwen2.5-72B", "actor.num_gpus_per_node=8", "--nodes", "4", "--gpus", "8")),
    ],
)
def test_advice_makes_it_fit(planned, name, arguments):
    record, status = planned(name, *arguments)
    assert (record["fits"], status) == (False, 1)
    assert record["problems"] and record["advice"]
    for advice in record["advice"]:
        again, status = planned(name, *arguments, *advice["overrides"])
        assert (again["fits"], status) == (True, 0), advice
        assert max(phase["total_bytes"] for phase in again["phases"]) == advice["peak_bytes"]


def test_advice_names_no_change_that_is_not_needed(planned):
    arguments = ("--gpu-memory", "24GiB")
    record, _ = planned("rl_guided_score_1.5b_1gpu", *arguments)
    (advice,) = record["advice"]
    assert len(advice["overrides"]) > 3
    for left_out in advice["overrides"]:
        others = [override for override in advice["overrides"] if override != left_out]
        assert planned("rl_guided_score_1.5b_1gpu", *arguments, *others)[1] == 1, left_out


def test_what_no_change_can_mend_is_said(capsys):
    assert run(path("rl_guided_score_1.5b_1gpu"), "model_path=Qwen/Qwen2.5-72B", "--gpu-memory", "80GiB") == 1
    out = capsys.readouterr().out
    assert "does not fit" in out and "take more or larger GPUs" in out and "it fits with" not in out


def test_too_few_gpus_show_the_sum(planned):
    record, _ = planned("rl_guided_score_math", "--gpus", "4")
    assert record["problems"] == [
        "roles take solver_actor 2 + solver_engines 1 + solver_reference 2 + guidance_actor 2 + guidance_engines 1 "
        "= 8 GPUs; there are 1 node x 4 GPUs = 4"
    ]


def test_a_group_larger_than_a_node_is_named(planned):
    record, _ = planned("score_math", "actor.num_gpus_per_node=8", "--gpus", "4", "--nodes", "8")
    assert "solver_actor takes 1 nodes x 8 GPUs; there are 8 nodes x 4 GPUs" in record["problems"]


def test_engines_that_cannot_be_divided_are_named(planned):
    record, _ = planned("score_math", "vllm.tensor_parallel_size=8", "--gpus", "4", "--nodes", "4")
    assert record["problems"][:2] == [
        "vllm.tensor_parallel_size 8 is more than a node's 4 GPUs",
        "vllm.tensor_parallel_size 8 does not divide the model's 12 attention heads",
    ]


def test_the_record_has_every_key_with_its_source_and_both_policies_arguments(planned):
    record, _ = planned("rl_guided_score_7b_1.5b_8gpu", "alpha=3")
    assert set(record["config"]) == set(keys())
    assert record["config"]["alpha"] == {"value": 3.0, "source": "command line"}
    assert record["config"]["placement"] == {
        "value": "colocate",
        "source": "configs/rl_guided_score_7b_1.5b_8gpu.yaml",
    }
    assert record["config"]["seed"]["source"] == "default"
    solver, guidance = record["host_arguments"]["solver"], record["host_arguments"]["guidance"]
    assert solver["actor.model_name_or_path"]["value"] == "Qwen/Qwen2.5-7B-Instruct"
    assert guidance["actor.model_name_or_path"]["value"] == "Qwen/Qwen2.5-1.5B-Instruct"
    assert "actor.adam.lr" not in solver  # the host's default, 1e-6
    assert all(row["value"] != row["default"] for rows in (solver, guidance) for row in rows.values())
    assert {role["name"]: role["num_params"] for role in record["roles"]}["guidance_reference"] == 1_543_714_304
    assert {phase["name"] for phase in record["phases"]} == {
        "start-up",
        "rollout",
        "log-probs",
        "solver update",
        "guidance update",
        "sync",
    }


def test_tokens_and_steps_are_the_budgets(planned):
    # 64 problems x 4 attempts; 1024 + 256 + 1024 tokens; 100 + 200 steps
    record, _ = planned("rl_guided_score_math", "guidance_samples=2")
    assert record["tokens"] == {
        "attempts": 256 * 1024,
        "guidances": 512 * 256,
        "revisions": 512 * 1024,
        "per_step": 256 * 1024 + 512 * 1280,
        "num_steps": 300,
        "run": 300 * (256 * 1024 + 512 * 1280),
    }


def test_the_tables_end_in_the_verdict(capsys):
    assert run(path("rl_guided_score_7b_8gpu")) == 0
    out = capsys.readouterr().out
    for words in ("configs/score_math.yaml", "algo.kl.init_coef", "guidance_actor", "0 to 7", "KV cache"):
        assert words in out
    assert "train.max_epochs" not in out
    assert out.splitlines()[-2] == "fits 1 x 8 GPUs of 78.0 GiB"  # what an 80 GB card gives
    assert run(path("rl_guided_score_7b_8gpu"), "--full") == 0
    assert "train.max_epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train.micro_batch=2",), "did you mean train.micro_batch_size"),
        (("model_path=owner/other",), "give the numbers of its config.json: model_shape.hidden_size"),
        (("model_path=owner/other", "model_shape.hidden_size=64"), "model_shape lacks num_hidden_layers"),
        (("model_path=null",), "model_path is not set"),
        (("vllm.num_engines=3",), "3 engines x 1 GPUs = 3, its training group 8"),
    ],
)
def test_a_wrong_configuration_is_status_2(capsys, arguments, words):
    assert run(path("rl_guided_score_7b_8gpu"), *arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == ""


@pytest.mark.parametrize("arguments", [("--gpu-memory", "80parsecs"), ("--gpu-memory", "0GiB"), ("--gpus", "0")])
def test_a_wrong_size_is_refused_with_an_example(capsys, arguments):
    with pytest.raises(SystemExit) as exited:
        run(path("score_math"), *arguments)
    assert exited.value.code == 2 and "give a" in capsys.readouterr().err


def test_sizes_are_read_in_their_units():
    assert [plan._memory(text) for text in ("80GiB", "80", "80 gb", "512MiB")] == [
        80 * GIB,
        80 * GIB,
        80 * 10**9,
        GIB // 2,
    ]


def test_a_plan_needs_no_torch_no_ray_no_vllm_and_no_network():
    code = f"""
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a connection was opened")
socket.socket.connect = socket.create_connection = refuse
from score_openrlhf.cli import parsed
args = parsed(["plan", {path("rl_guided_score_7b_8gpu")!r}])
assert args.run(args) == 0
heavy = {{"torch", "ray", "vllm", "transformers", "deepspeed", "openrlhf"}} & set(sys.modules)
assert not heavy, heavy
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
