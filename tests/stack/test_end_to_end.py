"""Both policies trained on the real stack by the command a user types: what the run leaves, and that it can go on."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from score_openrlhf.rollout.metric_table import STEP_METRICS
from score_openrlhf.trainer import manifest
from tests.stack.conftest import score_openrlhf


def test_every_metric_has_its_name_on_every_line(guided_run):
    assert [line["step"] for line in guided_run.metrics] == [1, 2, 3]
    for line in guided_run.metrics:
        missing = [name for name in STEP_METRICS if name not in line]
        assert not missing


def test_tensorboard_holds_the_same_numbers(guided_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(guided_run.folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    read: dict[int, dict[str, float]] = {1: {}, 2: {}, 3: {}}
    for tag in board.Tags()["scalars"]:
        for event in board.Scalars(tag):
            read[event.step][tag] = event.value
    for line in guided_run.metrics:
        written = {key: value for key, value in line.items() if isinstance(value, (int, float)) and key != "step"}
        assert written == pytest.approx(read[line["step"]], rel=1e-6, nan_ok=True)


def test_stages_follow_one_another(guided_run):
    assert [line["stage"] for line in guided_run.metrics] == [1, 2, 2]


def test_both_optimizers_step_once_a_step(guided_run):
    for step, line in enumerate(guided_run.metrics, start=1):
        for policy in ("solver", "guidance"):
            assert line[f"{policy}/optimizer_steps"] == step
            assert line[f"{policy}/updated"] == 1
            assert line[f"{policy}/grad_norm"] > 0


def test_engines_hold_the_weights_of_the_trainer(guided_run):
    """Log-probs of the sampled tokens, engine against trainer, at the start and after synced updates.

    vLLM-CPU packs the tied output head of the guidance model and its reload passes it by: seen as a growing distance.
    """
    for line in guided_run.metrics:
        for policy in ("solver", "guidance"):
            assert line[f"{policy}/engine_logprob_diff"] < 1e-4


def test_trajectories_hold_what_was_sampled(guided_run):
    rows = guided_run.trajectories("step_000002")
    assert len(rows) == 3 * 2 * 3
    for row in rows:
        for part in ("attempt", "guidance", "revision"):
            sample = row[part]
            assert sample["token_ids"] and sample["log_prob_sum"] < 0
            assert sample["policy_version"] == 1  # sampled by the weights of the first update
        assert row["r1"] in (0.0, 1.0) and row["r2"] in (0.0, 1.0)
    # the K trajectories of an attempt share it, and their guidances are draws of their own
    shared = {(row["group"], row["attempt_index"]): row["attempt"]["token_ids"] for row in rows}
    assert len(shared) == 6
    assert all(row["attempt"]["token_ids"] == shared[row["group"], row["attempt_index"]] for row in rows)
    assert len({tuple(row["guidance"]["token_ids"]) for row in rows}) > 6


def test_second_turn_extends_the_first(guided_run):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(guided_run.folder / "solver")
    row = guided_run.trajectories("step_000001")[0]
    text = tokenizer.decode(row["prompt_ids"] + row["attempt"]["token_ids"] + row["bridge_ids"])
    assert text.startswith(tokenizer.decode(row["prompt_ids"]))
    assert text.endswith("<|im_start|>assistant\n")
    assert text.count("<|im_start|>user") == 2


def test_models_moved_and_are_exported(bench, guided_run):
    for policy, start_folder, family in (("solver", "model", "qwen2"), ("guidance", "tutor", "llama")):
        start = load_file(bench.folder / start_folder / "model.safetensors")
        end = load_file(guided_run.folder / policy / "model.safetensors")
        assert set(end) == set(start)
        assert any(not torch.equal(start[name], end[name]) for name in start)
        assert json.loads((guided_run.folder / policy / "config.json").read_text())["model_type"] == family


# A process with not one word of ours but the environment of vLLM on CPU: transformers and vLLM read the export alike.
SAME_GREEDY_TOKENS = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm import LLM, SamplingParams
if __name__ == '__main__':
    for path in sys.argv[1:]:
        tokenizer = AutoTokenizer.from_pretrained(path)
        messages = [{"role": "user", "content": "1 plus 2"}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        model = AutoModelForCausalLM.from_pretrained(path)
        assert model.config.use_cache
        greedy = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids):].tolist()
        llm = LLM(path, dtype="float32", enforce_eager=True, max_model_len=256)
        params = SamplingParams(temperature=0, max_tokens=6)
        out = llm.generate({"prompt_token_ids": ids}, params)[0].outputs[0].token_ids
        assert list(out) == greedy, (out, greedy)
    print("all load")
"""


def test_exports_load_in_transformers_and_in_plain_vllm(guided_run):
    paths = [str(guided_run.folder / policy) for policy in ("solver", "guidance")]
    done = subprocess.run(
        [sys.executable, "-c", SAME_GREEDY_TOKENS, *paths],
        capture_output=True, text=True, timeout=300, cwd=guided_run.folder,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_PLUGINS": ""},
    )  # fmt: skip
    assert "all load" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]


def test_checkpoint_is_whole_and_its_manifest_true(guided_run):
    checkpoint = guided_run.folder / "checkpoints" / "step_3"
    written = json.loads((checkpoint / "manifest.json").read_text())
    assert written["policies"] == ["solver", "guidance"]
    assert len(written["files"]) == sum(path.is_file() for path in checkpoint.rglob("*")) - 2  # itself and the state
    for name, (size, digest) in written["files"].items():
        data = (checkpoint / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)
    state = json.loads((checkpoint / "trainer.json").read_text())
    assert state["step"] == 3 and state["data_position"] == 9 and state["stage"] == 2
    assert not list((guided_run.folder / "checkpoints").glob("*.tmp"))


def test_fifty_flipped_bits_in_a_checkpoint_are_fifty_found(guided_run, tmp_path):
    checkpoint = tmp_path / "step_3"
    shutil.copytree(guided_run.folder / "checkpoints" / "step_3", checkpoint)
    assert manifest.fault(checkpoint, full=True) is None
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)
    chance = random.Random(3)
    for _ in range(50):
        with chance.choice(files).open("r+b") as file:
            place = chance.randrange(os.fstat(file.fileno()).st_size)
            file.seek(place)
            (byte,) = file.read(1)
            for value in (byte ^ 1 << chance.randrange(8), byte):  # flipped, and flipped back
                file.seek(place)
                file.write(bytes([value]))
                file.flush()
                assert (manifest.fault(checkpoint, full=True) is None) == (value == byte), (file.name, place)


@pytest.fixture(scope="module")
def resumed_run(bench, guided_run):
    """The run as it stood after its second step, started again on another placement: the third step is made once more.

    All roles share one (logical) GPU, engines sleep and take turns in phases, states are offloaded between updates.
    None of it may change a number.
    """
    folder = bench.folder / "resumed"
    shutil.copytree(guided_run.folder, folder)
    for gone in (folder / "checkpoints" / "step_3", folder / "solver", folder / "guidance"):
        shutil.rmtree(gone)
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "acc_t')  # what a killed run was writing
    sleeping = {"vllm.enable_sleep": "true", "ds.enable_sleep": "true", "rollout.schedule": "phased"}
    return bench.train("resumed", output_dir=folder, run_name="guided", placement="colocate", **sleeping)


def test_resume_goes_on_where_the_run_stopped(resumed_run):
    assert "going on from" in resumed_run.output and "step_2" in resumed_run.output
    assert [line["step"] for line in resumed_run.metrics] == [1, 2, 3]
    last = resumed_run.metrics[-1]
    for policy in ("solver", "guidance"):
        assert last[f"{policy}/optimizer_steps"] == 3
        assert last[f"{policy}/engine_logprob_diff"] < 1e-4  # engines were brought to the loaded weights
    assert resumed_run.summary["steps"] == 3


def test_resumed_step_equals_the_step_of_the_unbroken_run(guided_run, resumed_run):
    """Sampling, rewards and both updates of step 3 are the same as when the run was not interrupted."""
    pairs = zip(resumed_run.trajectories("step_000003"), guided_run.trajectories("step_000003"), strict=True)
    for resumed, straight in pairs:
        for part in ("attempt", "guidance", "revision"):
            assert resumed[part]["token_ids"] == straight[part]["token_ids"]
    for key in ("solver/loss", "solver/grad_norm", "guidance/loss", "guidance/grad_norm", "solver/kl_t2"):
        assert resumed_run.metrics[-1][key] == pytest.approx(guided_run.metrics[-1][key], rel=1e-4, abs=1e-6)


def test_finished_run_is_not_run_again(bench, guided_run):
    again = bench.train("guided", max_steps=3)
    assert "finished already at step 3" in again.output
    assert "starting engines" not in again.output


def test_another_run_s_folder_is_refused(bench, guided_run):
    words = bench.overrides("guided", model_path=bench.folder / "tutor")
    output = score_openrlhf("train", "configs/rl_guided_score_math.yaml", *words, expect=2)
    assert "holds a run with model_path=" in output and "resume=false" in output


def test_two_ranks_give_the_numbers_of_one(bench, guided_run):
    """18 rows over two ranks under ZeRO-3: padded, and the same losses and gradients within rounding."""
    two = bench.train(
        "two_ranks", max_steps=3, **{"actor.num_gpus_per_node": 2, "ref.num_gpus_per_node": 1, "ckpt.save_steps": -1}
    )
    for one_line, two_line in zip(guided_run.metrics, two.metrics, strict=True):
        for key in ("solver/loss", "solver/grad_norm", "guidance/loss", "guidance/grad_norm", "acc_t1"):
            assert two_line[key] == pytest.approx(one_line[key], rel=1e-3, abs=1e-5), key
    for policy, start in (("solver", "model"), ("guidance", "tutor")):
        before, one_end, two_end = (
            load_file(folder / "model.safetensors")
            for folder in (bench.folder / start, guided_run.folder / policy, two.folder / policy)
        )
        moved = {name: one_end[name] - before[name] for name in before}
        apart = {name: two_end[name] - one_end[name] for name in before}
        # measured: 6e-6 and 3e-6 of the way
        assert length(apart) < 1e-3 * length(moved), policy


def length(values: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in values.values()]).norm())


@pytest.fixture(scope="module")
def smart_run(bench):
    """One step of smart_score in bf16; correction_model_path null: the solver's start is the frozen guide."""
    changes = {"ds.param_dtype": "bf16", "guidance_model_path": "null"}
    return bench.train("smart", "smart_score_math", max_steps=1, **changes)


def test_smart_score_trains_the_solver_under_a_frozen_guide(smart_run):
    line = smart_run.metrics[-1]
    assert line["solver/optimizer_steps"] == 1 and "guidance/optimizer_steps" not in line
    assert line["solver/engine_logprob_diff"] < 0.05  # bf16
    assert all(row["guidance"]["text"] for row in smart_run.trajectories("step_000001"))
    assert not (smart_run.folder / "guidance").exists()


def test_unmodified_host_resumes_the_solver(bench, smart_run, tmp_path):
    """OpenRLHF's own train_ppo_ray, which knows bf16 and no fp32, takes the solver's next optimizer step."""
    agent = tmp_path / "reward.py"
    agent.write_text(
        "def reward_func(queries, prompts, labels):\n    import torch\n"
        "    return {'rewards': torch.tensor([float(len(q) % 2) for q in queries]),"
        " 'scores': torch.tensor([float(len(q) % 2) for q in queries])}\n"
    )
    shutil.copytree(smart_run.folder / "checkpoints" / "step_1" / "solver", tmp_path / "solver")
    words = f"""
        --actor.model_name_or_path {bench.folder / "model"} --reward.remote_url {agent}
        --actor.num_nodes 1 --actor.num_gpus_per_node 1 --ref.num_nodes 1 --ref.num_gpus_per_node 1
        --vllm.num_engines 1 --vllm.enforce_eager --vllm.sync_backend gloo
        --data.prompt_dataset {bench.folder / "train.jsonl"} --data.input_key problem --data.label_key answer
        --data.apply_chat_template --data.max_len 256 --rollout.max_new_tokens 16
        --rollout.batch_size 4 --rollout.micro_batch_size 4 --rollout.n_samples_per_prompt 2
        --train.batch_size 8 --train.micro_batch_size 4 --data.max_samples 12
        --algo.advantage.estimator reinforce --actor.adam.lr 1e-4 --ds.zero_stage 3
        --ckpt.path {tmp_path / "solver"} --ckpt.load_enable --ckpt.output_dir {tmp_path / "out"} --ckpt.save_steps 1
    """.split()
    done = subprocess.run(
        [sys.executable, "-m", "score_openrlhf.platform.run_host", "--", *words],
        capture_output=True, text=True, timeout=600, cwd=tmp_path, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    # 12 problems are three steps: begun anew they end at step 3, after the solver's first step they end at 4
    assert (tmp_path / "solver" / "_actor" / "global_step4").is_dir()


def test_score_trains_the_solver_under_a_fixed_text_with_a_critic(bench):
    changes = {"critic.enable": "true", "critic.lr": 1e-3, "guidance_model_path": "null", "guidance_samples": 1}
    run = bench.train("score", "score_math", max_steps=1, **changes)
    line = run.metrics[-1]
    assert line["solver/optimizer_steps"] == 1 and line["solver/critic_grad_norm"] > 0
    assert all(row["guidance"] is None for row in run.trajectories("step_000001"))
    assert (run.folder / "checkpoints" / "step_1" / "solver" / "_critic").is_dir()


def test_unknown_key_is_refused_with_the_nearest(bench):
    output = score_openrlhf("train", "configs/rl_guided_score_math.yaml", "guidance_lrr=1e-5", expect=2)
    assert "guidance_lr" in output and "guidance_lrr" in output


def test_nothing_is_left_running(guided_run):
    left = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
    mine = [line for line in left.splitlines() if str(guided_run.folder) in line]
    assert not mine
