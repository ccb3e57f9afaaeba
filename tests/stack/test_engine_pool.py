"""Two runs in one Ray session, against the second in a session of its own: same engines, same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from score_openrlhf.cluster.engine_pool import kind_of
from score_openrlhf.platform import forking
from tests.stack.conftest import ROOT

SCRIPT = """
import json, sys
from score_openrlhf import platform
from score_openrlhf.cli import main
from score_openrlhf.cluster import engine_pool, reservation

runs = json.loads(sys.argv[1])
platform.start_fork_server()
with engine_pool.shared_session(num_gpus=6):
    for words, status in runs:
        assert main(words) == status, words
        kept = [engine._actor_id.hex() for kept in engine_pool.pool._kept for engine in kept.handles]
        print("KEPT", json.dumps({"engines": kept, "reserved": len(reservation.reserved)}), flush=True)
"""
ABOVE_ONE = """
def reward_func(queries, prompts, labels):
    return {"rewards": [1.1] * len(queries)}
"""


@pytest.fixture(scope="module")
def shared(bench, guided_run):
    """A run of other weights and texts, then that of `guided_run`, then its pair and its solver alone evaluated, then
    an evaluation that fails."""
    config, own = "configs/rl_guided_score_math.yaml", str(bench.folder / "shared")
    alone = ["--guidance", "none", "--no-controls"]
    reward = f"task.reward_func={bench.folder}/above_one.py"
    (bench.folder / "above_one.py").write_text(ABOVE_ONE)
    runs = [
        (["train", config, *bench.overrides("other", seed=8, max_steps=1, **{"actor.adam.lr": 1e-2})], 0),
        (["train", config, *bench.overrides("shared")], 0),
        (["evaluate", own, "--no-controls", "--output", own + "_eval"], 0),
        (["evaluate", own, *alone, "--output", own + "_eval_score"], 0),
        # on engines of another length, by a reward function of which every grade is refused
        (["evaluate", own, *alone, "--output", own + "_eval_failed", "data.max_len=690", reward], 1),
    ]  # fmt: skip
    done = subprocess.run(
        [forking.python() or sys.executable, "-c", SCRIPT, json.dumps(runs)], cwd=ROOT, capture_output=True, text=True,
        timeout=600, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    said = " ".join(done.stderr.split())
    assert "the grader failed on 6 of 6 trajectories under condition 'fixed', more than task.max_error" in said
    assert "reward 1.1" in said
    return [json.loads(line.removeprefix("KEPT ")) for line in done.stdout.splitlines() if line.startswith("KEPT ")]


def test_the_engines_of_the_first_run_serve_the_others_and_nothing_else_is_kept(shared):
    first, second, evaluated, alone, failed = shared
    assert len(first["engines"]) == 2
    assert second == first
    assert evaluated == first
    assert all(each["reserved"] == len(each["engines"]) for each in shared)
    assert len(alone["engines"]) == 1 and alone["engines"][0] in first["engines"]  # the idle one was ended
    assert failed == {"engines": [], "reserved": 0}  # of another length, so new; and nothing is kept of a failure


def test_only_models_of_the_same_shape_and_end_share_engines(shared, bench):
    options = {"max_model_len": 700}
    model, trained = str(bench.folder / "model"), str(bench.folder / "shared" / "solver")
    assert kind_of(trained, 1, options) == kind_of(model, 1, options)
    others = [kind_of(str(bench.folder / "tutor"), 1, options), kind_of(model, 2, options), kind_of(model, 1, {})]
    assert kind_of(model, 1, options) not in others


def test_a_run_on_used_engines_samples_what_it_samples_on_its_own(shared, bench, guided_run):
    """The same tokens and grades; which requests a batch holds moves the last bit of a log-prob, in any two runs."""
    for step in (1, 2, 3):
        name = f"step_{step:06d}.jsonl"
        own, again = (
            [json.loads(line) for line in (folder / "trajectories" / name).open()]
            for folder in (guided_run.folder, bench.folder / "shared")
        )
        for row, other in zip(own, again, strict=True):
            for part in ("attempt", "guidance", "revision"):
                sums = [each[part].pop("log_prob_sum") for each in (row, other)]
                assert sums[0] == pytest.approx(sums[1], abs=1e-3), (step, part)
            assert {**other, "seconds": None} == {**row, "seconds": None}, f"step {step}"


def test_the_evaluation_within_training_is_that_of_evaluate(shared, bench):
    within = json.loads((bench.folder / "shared" / "evaluations" / "eval_after.json").read_text())
    alone = json.loads((bench.folder / "shared_eval" / "evaluation.json").read_text())
    assert within["main_condition"] == "own" and within["step"] == 3
    for key in ("num_problems", "conditions", "lead", "scaling", "guidance"):
        assert within[key] == alone[key], key
