"""Adapters on both policies, by the command a user types: engines, checkpoints, exports have the adapted weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

ADAPTERS = {
    "ds.lora.rank": 4,
    "guidance_actor.lora_rank": 2,
    "actor.num_gpus_per_node": 2,
    "ref.num_gpus_per_node": 1,
    "actor.gradient_checkpointing_enable": "true",
    "actor.adam.lr": 1e-2,
    "guidance_lr": 1e-2,
    "eval.before_and_after": "false",
    "max_steps": 2,
}


@pytest.fixture(scope="module")
def lora_run(bench):
    """Two steps with adapters of rank 4 on the solver and of rank 2 on the guidance model, two ZeRO-3 ranks each."""
    return bench.train("lora", **ADAPTERS)


def test_engines_sample_from_the_adapted_weights(lora_run):
    """In step 2, log-probs of the engines, which got whole weights, and of the trainers, which add the adapters."""
    for line in lora_run.metrics:
        for policy in ("solver", "guidance"):
            assert line[f"{policy}/updated"] == 1 and line[f"{policy}/grad_norm"] > 0
            assert line[f"{policy}/engine_logprob_diff"] < 1e-4
    # and the adapters had moved by then: engines that had kept the old weights would be seen
    assert abs(lora_run.metrics[1]["solver/kl_t1"]) > 1e-5 and abs(lora_run.metrics[1]["guidance/kl"]) > 1e-5


@pytest.mark.parametrize(("policy", "start", "rank"), [("solver", "model", 4), ("guidance", "tutor", 2)])
def test_the_export_is_the_start_with_the_adapters_added(bench, lora_run, policy, start, rank):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = lora_run.folder / policy
    before, after = load_file(bench.folder / start / "model.safetensors"), load_file(folder / "model.safetensors")
    assert set(after) == set(before)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}  # and nothing else, to the bit

    adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["base_model_name_or_path"]) == (rank, str(bench.folder / start))
    model = AutoModelForCausalLM.from_pretrained(bench.folder / start)
    model = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload()
    for name, value in model.state_dict().items():
        if name in after:
            assert torch.allclose(value, after[name], atol=1e-6), name


def test_the_export_loads_in_transformers_and_in_plain_vllm(lora_run):
    from tests.stack.test_end_to_end import SAME_GREEDY_TOKENS

    done = subprocess.run(
        [sys.executable, "-c", SAME_GREEDY_TOKENS, str(lora_run.folder / "solver")],
        capture_output=True, text=True, timeout=300, cwd=lora_run.folder,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_PLUGINS": ""},
    )  # fmt: skip
    assert "all load" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]


def test_adapters_are_of_the_type_of_the_weights(bench):
    """bf16, as on a GPU: ZeRO-3 would keep PEFT's floats beside it."""
    changes = {"ds.param_dtype": "bf16", "guidance_model_path": "null", "ds.lora.rank": 4, "actor.adam.lr": 1e-2}
    run = bench.train("lora_bf16", "smart_score_math", max_steps=2, **changes, **{"eval.before_and_after": "false"})
    assert [line["solver/optimizer_steps"] for line in run.metrics] == [1, 2]
    assert run.metrics[1]["solver/engine_logprob_diff"] < 0.05  # bf16
    assert abs(run.metrics[1]["solver/kl_t1"]) > 1e-4
    adapters = load_file(run.folder / "solver" / "adapter" / "adapter_model.safetensors")
    assert {str(value.dtype) for value in adapters.values()} == {"torch.bfloat16"}


def test_a_run_with_adapters_goes_on_from_its_checkpoint(bench, lora_run):
    folder = bench.folder / "lora_resumed"
    shutil.copytree(lora_run.folder, folder)
    for gone in (folder / "checkpoints" / "step_2", folder / "solver", folder / "guidance"):
        shutil.rmtree(gone)
    (folder / "summary.json").unlink()
    resumed = bench.train("lora_resumed", **ADAPTERS, run_name="lora", output_dir=folder)
    assert "going on from" in resumed.output
    for key in ("solver/loss", "solver/grad_norm", "guidance/loss", "guidance/grad_norm", "solver/kl_t2"):
        assert resumed.metrics[-1][key] == pytest.approx(lora_run.metrics[-1][key], rel=1e-4, abs=1e-6), key
    assert resumed.metrics[-1]["solver/engine_logprob_diff"] < 1e-4
    one, other = (load_file(run.folder / "solver" / "model.safetensors") for run in (lora_run, resumed))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5
