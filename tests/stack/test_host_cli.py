"""OpenRLHF's unmodified train_ppo_ray through the launcher: ZeRO-3, reference, engine, two steps, a saved model."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys

import pytest

from benchmarks.tiny_models import make_model

REWARD = """
import torch

def reward_func(queries, prompts, labels, **kwargs):
    rewards = torch.tensor([float(len(set(query)) % 2) for query in queries])
    return {"rewards": rewards, "scores": rewards, "extra_logs": {}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run and the status line of each step."""
    folder = tmp_path_factory.mktemp("host")
    make_model(folder / "model", dtype="bfloat16")
    (folder / "reward.py").write_text(REWARD)
    rows = [{"input": [{"role": "user", "content": f"What is {n} plus {n}?"}], "label": str(2 * n)} for n in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # No --vllm.sync_backend and no --ds.attn_implementation: the host's defaults are nccl and flash_attention_2.
    options = {
        "actor.model_name_or_path": folder / "model",
        "actor.num_gpus_per_node": 1,
        "actor.adam.lr": 1e-3,
        "actor.lr_warmup_ratio": 0,
        "ref.num_gpus_per_node": 1,
        "vllm.num_engines": 1,
        "reward.remote_url": folder / "reward.py",
        "data.prompt_dataset": folder / "prompts.jsonl",
        "data.input_key": "input",
        "data.label_key": "label",
        "data.max_len": 96,
        "rollout.max_new_tokens": 16,
        "rollout.batch_size": 4,
        "rollout.micro_batch_size": 4,
        "rollout.n_samples_per_prompt": 2,
        "train.batch_size": 8,
        "train.micro_batch_size": 4,
        "train.num_episodes": 1,
        "train.max_epochs": 1,
        "algo.advantage.estimator": "reinforce",
        "algo.advantage.is_correction_level": "token",
        "algo.kl.init_coef": 0.01,
        "ds.zero_stage": 3,
        "ckpt.output_dir": folder / "saved",
        "ckpt.path": folder / "checkpoints",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    arguments += ["--data.apply_chat_template", "--vllm.enforce_eager"]
    launcher = [sys.executable, "-m", "score_openrlhf.platform.run_host", "--num-gpus", "3", "--"]
    done = subprocess.run(
        launcher + arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return folder, re.findall(r"Global step \d+: (\{.*?\})", done.stdout)


def test_both_steps_update_the_policy_and_reach_the_engine(run):
    _, lines = run
    steps = [ast.literal_eval(line) for line in lines]

    assert len(steps) == 2
    for step in steps:
        assert step["actor_grad_norm"] > 0
        # the engine samples from the weights the trainer has just made
        assert abs(step["vllm_kl"]) < 1e-3
    assert steps[1]["kl"] != 0  # to the reference: the weights have moved


def test_the_saved_model_differs_from_the_start(run):
    import torch
    from safetensors.torch import load_file

    folder, _ = run
    start, saved = (load_file(folder / name / "model.safetensors") for name in ("model", "saved"))

    assert start.keys() == saved.keys()
    assert any(not torch.equal(start[name], saved[name]) for name in start)
