"""One small real run (Ray, vLLM, DeepSpeed ZeRO-3, both policies) that many tests look at."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from benchmarks.tiny_models import make_model
from score_openrlhf import platform
from score_openrlhf.platform import forking

ROOT = Path(__file__).resolve().parents[2]

# A random model answers nothing right, so the run's reward is one it can earn: whether the text has an even number of
# letters. Grading still runs in its own processes, through OpenRLHF's reward_func interface.
REWARD = """
def reward_func(queries, prompts, labels):
    scores = [float(sum(c.isalpha() for c in q) % 2 == 0) for q in queries]
    return {"rewards": scores, "scores": scores}
"""


@pytest.fixture(scope="module")
def ray_session(request: pytest.FixtureRequest) -> Iterator[None]:
    """A Ray for the file's tests, as the commands start theirs, of the file's NUM_GPUS where it says so."""
    platform.start_fork_server()
    platform.start_ray(getattr(request.module, "NUM_GPUS", 16), log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@dataclass
class Run:
    """A finished command and what it left."""

    folder: Path
    output: str

    @property
    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").open()]

    @property
    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text())

    def trajectories(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "trajectories" / f"{name}.jsonl").open()]


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> None:
    """One server for these tests and all commands that they start: what all of them import is imported once."""
    platform.start_fork_server()
    executable = forking.python()
    assert executable is not None
    os.environ[forking.SWITCH] = str(Path(executable).parent)


# The console command in a process that has torch, vLLM and DeepSpeed (`platform/fork_server.py`)
FORKED = "import sys; from score_openrlhf.cli import main; sys.exit(main())"


def module(name: str) -> list[str]:
    """The command that runs the module `name` as a program, in a process that has torch, vLLM and DeepSpeed."""
    return [forking.python() or sys.executable, "-c", f"import runpy; runpy.run_module({name!r}, run_name='__main__')"]


def score_openrlhf(*words: str, expect: int = 0, timeout: float = 600, as_a_user: bool = False) -> str:
    """Run the console command; returns its output; fails the test with it on another status.

    `as_a_user` runs the installed script, with a fork server of its own.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [forking.python() or sys.executable, "-c", FORKED, *words]
    if as_a_user:
        command = [str(Path(sys.executable).with_name("score-openrlhf")), *words]
        del environment[forking.SWITCH]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment)
    output = done.stdout + done.stderr
    assert done.returncode == expect, output[-6000:]
    return output


@dataclass
class Bench:
    """A tiny model, problems and a reward, and the words that make the MATH configuration run on them."""

    folder: Path

    def overrides(self, name: str, **changes: object) -> list[str]:
        values: dict[str, object] = {
            "model_path": self.folder / "model",
            "guidance_model_path": self.folder / "tutor",  # another family: tokenizer, template, tied embeddings
            "data.train": self.folder / "train.jsonl",
            "data.eval": self.folder / "eval.jsonl",
            "data.max_len": 700,
            "task.reward_func": self.folder / "reward.py",
            "output_dir": self.folder / name,
            "run_name": name,
            "seed": 7,
            "max_steps": 3,
            "stage1_steps": 1,
            "guidance_samples": 3,
            "rollout.batch_size": 3,
            "rollout.n_samples_per_prompt": 2,
            "rollout.attempt_max_tokens": 12,
            "rollout.guidance_max_tokens": 8,
            "rollout.revision_max_tokens": 12,
            "rollout.micro_batch_size": 4,
            "train.micro_batch_size": 4,  # 18 rows: neither micro batches of 4 nor two ranks divide them
            "actor.num_gpus_per_node": 1,
            "actor.adam.lr": 1e-3,
            "actor.gradient_checkpointing_enable": "false",
            "guidance_lr": 1e-3,
            "ds.param_dtype": "fp32",
            "ckpt.save_steps": 1,
            "ckpt.max_num": 3,
            "eval.steps": -1,
        }
        values |= changes
        return [f"{key}={value}" for key, value in values.items()]

    def train(
        self, name: str, config: str = "rl_guided_score_math", *, as_a_user: bool = False, **changes: object
    ) -> Run:
        words = self.overrides(name, **changes)
        output = score_openrlhf("train", f"configs/{config}.yaml", *words, as_a_user=as_a_user)
        return Run(self.folder / name, output)


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    make_model(folder / "model", "qwen2")
    make_model(folder / "tutor", "llama", seed=1)
    for part, count in (("train", 24), ("eval", 6)):
        rows = [{"problem": f"What is {a} plus {a + 3}?", "answer": str(2 * a + 3)} for a in range(count)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    return Bench(folder)


@pytest.fixture(scope="session")
def guided_run(bench) -> Run:
    """Three steps of rl_guided_score, one in stage I and two in stage II, with a checkpoint after each.

    The guidance model is of another family than the solver, so it has a reference of its own.
    """
    return bench.train("guided", as_a_user=True, **{"logger.wandb_mode": "offline"})
