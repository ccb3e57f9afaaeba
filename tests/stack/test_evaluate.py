"""`evaluate` and `solve` on the real stack, on tiny models: one run of each that the tests look at."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys

import pytest

from score_openrlhf.platform import forking
from tests.stack.conftest import FORKED, ROOT

BUDGETS = ["rollout.attempt_max_tokens=12", "rollout.guidance_max_tokens=8", "rollout.revision_max_tokens=12"]
NUM_PROBLEMS, SAMPLES, SEEDS = 6, 2, (3, 4)


def command(*words: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [forking.python() or sys.executable, "-c", FORKED, *words], cwd=ROOT, capture_output=True, text=True,
        timeout=300, env={**os.environ, "VLLM_LOGGING_LEVEL": "WARNING"}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done


def settings(bench) -> list[str]:
    return [*BUDGETS, "data.max_len=700", "ds.param_dtype=fp32", f"task.reward_func={bench.folder / 'reward.py'}"]


@pytest.fixture(scope="module")
def evaluated(bench):
    """Solver and guidance model of different families, all controls, two seeds, two attempts a problem."""
    folder = bench.folder / "evaluated"
    done = command(
        "evaluate", "--solver", str(bench.folder / "model"), "--guidance", str(bench.folder / "tutor"),
        "--problems", str(bench.folder / "eval.jsonl"), "--samples", str(SAMPLES), "--seeds", "3,4",
        "--temperature", "1", "--output", str(folder), "--json", *settings(bench),
    )  # fmt: skip
    return json.loads(done.stdout), folder


@pytest.fixture(scope="module")
def rows(evaluated):
    """Trajectories by condition, each by (seed, problem, attempt)."""
    by_condition: dict[str, dict] = {}
    for line in (evaluated[1] / "trajectories.jsonl").open():
        row = json.loads(line)
        place = (row["seed"], row["group"], row["attempt_index"])
        by_condition.setdefault(row["condition"], {})[place] = row
    return by_condition


def test_a_solver_without_a_guidance_model_is_evaluated(bench):
    folder = bench.folder / "evaluated_alone"
    done = command(
        "evaluate", "--solver", str(bench.folder / "model"), "--guidance", "none",
        "--problems", str(bench.folder / "eval.jsonl"), "--output", str(folder), *settings(bench),
    )  # fmt: skip
    results = json.loads((folder / "evaluation.json").read_text())
    assert results["main_condition"] == "fixed" and list(results["conditions"]) == ["fixed", "none"]
    assert (results["solver_path"], results["guidance_path"]) == (str(bench.folder / "model"), None)
    assert "guidance" not in results  # there are no hints to judge
    assert {row["condition"] for row in csv.DictReader((folder / "evaluation.csv").open())} >= {"fixed", "none"}
    assert "the fixed text" in done.stdout and "distinct" not in done.stdout


def test_every_condition_has_every_attempt(evaluated, rows):
    assert list(rows) == ["own", "none", "fixed", "shuffled", "masked", "alone"]
    assert {len(found) for found in rows.values()} == {NUM_PROBLEMS * SAMPLES * len(SEEDS)}
    for condition in evaluated[0]["conditions"].values():
        assert condition["metrics"]["rollout/failed"]["value"] == 0


@pytest.mark.parametrize("control", ["none", "fixed", "shuffled", "masked"])
def test_controls_revise_the_same_attempts(rows, control):
    for place, row in rows[control].items():
        own = rows["own"][place]
        for key in ("problem_id", "prompt_ids", "attempt", "r1"):
            assert row[key] == own[key]
        assert row["revision"]["token_ids"]


def test_controls_differ_in_what_stands_between_the_answers(rows):
    for place, own in rows["own"].items():
        bridges = {name: rows[name][place]["bridge_ids"] for name in ("own", "none", "fixed", "shuffled")}
        assert len({tuple(ids) for ids in bridges.values()}) == 4
        assert rows["none"][place]["guidance"]["text"] == "" and rows["fixed"][place]["guidance"] is None
        assert own["guidance"]["text"] not in ("", None)
    fixed = {tuple(row["bridge_ids"]) for row in rows["fixed"].values()}
    assert len(fixed) <= 2  # one text; the turn's end is sampled in some attempts and added in others


def test_shuffled_hints_were_written_for_another_problem(rows):
    for (seed, group, index), row in rows["shuffled"].items():
        others = [
            r["guidance"]["text"] for (s, g, i), r in rows["own"].items() if (s, i) == (seed, index) and g != group
        ]
        assert row["guidance"]["text"] in others


def test_masked_hints_do_not_state_the_answer(rows):
    from score_openrlhf.tasks.math import MathTask

    task = MathTask()
    for place, row in rows["masked"].items():
        own = rows["own"][place]["guidance"]["text"]
        text = row["guidance"]["text"]
        assert not task.states_answer(text, "", "", row["answer"])
        if not task.states_answer(own, "", "", row["answer"]):
            # nothing to mask: the same request, hence the same revision
            assert text == own and row["revision"] == rows["own"][place]["revision"]


def test_metrics_are_those_of_the_trajectories(evaluated, rows):
    results, _ = evaluated
    for name, condition in results["conditions"].items():
        if name == "alone":
            continue
        found = rows[name].values()
        for metric, mean in (
            ("acc_t1", sum(r["r1"] for r in found) / len(found)),
            ("acc_t2", sum(r["r2"] for r in found) / len(found)),
            ("i2c", sum(r["r2"] > r["r1"] for r in found) / len(found)),
        ):
            estimate = condition["metrics"][metric]
            assert estimate["value"] == pytest.approx(mean)
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
    for name, lead in results["lead"].items():
        difference = [rows["own"][place]["r2"] - row["r2"] for place, row in rows[name].items()]
        assert lead["value"] == pytest.approx(sum(difference) / len(difference))
    by_seed = results["conditions"]["own"]["by_seed"]
    mean = sum(by_seed[str(seed)]["acc_t2"] for seed in SEEDS) / len(SEEDS)
    assert mean == pytest.approx(results["conditions"]["own"]["metrics"]["acc_t2"]["value"])


def test_seeds_draw_attempts_of_their_own(rows):
    first, second = (
        [r["attempt"]["token_ids"] for (s, _, _), r in rows["own"].items() if s == seed] for seed in SEEDS
    )
    assert sum(a == b for a, b in zip(first, second, strict=True)) < len(first) / 2


def test_scaling_spends_the_same_answers_in_parallel_and_in_sequence(evaluated, rows):
    """Four attempts a problem over both seeds: two in parallel, against one attempt and its revision."""
    scaling = {(r["samples"], r["measure"]): r["value"] for r in evaluated[0]["scaling"]}
    right: dict[int, list[tuple[float, float]]] = {}
    for (_, group, _), row in rows["own"].items():
        right.setdefault(group, []).append((row["r1"], row["r2"]))
    pairs = [p for found in right.values() for p in found]
    assert scaling["sequential", "pass@2"] == pytest.approx(sum(max(p) for p in pairs) / len(pairs))
    all_four = [any(r1 for r1, _ in found) for found in right.values()]
    assert scaling["parallel", "pass@4"] == pytest.approx(sum(all_four) / len(all_four))
    assert ("parallel", "majority@4") in scaling and ("sequential", "majority@8") in scaling


def test_csv_says_what_the_json_says(evaluated):
    results, folder = evaluated
    table = {(r["condition"], r["metric"]): r for r in csv.DictReader((folder / "evaluation.csv").open())}
    assert json.loads((folder / "evaluation.json").read_text()) == results
    for name, condition in results["conditions"].items():
        for metric, estimate in condition["metrics"].items():
            assert float(table[name, metric]["high"]) == pytest.approx(estimate["high"])
    assert float(table["own - none", "acc_t2"]["value"]) == results["lead"]["none"]["value"]
    assert ("own", "guidance/self_bleu_within") in table


def test_solve_shows_attempt_hint_and_revision_of_each_problem(bench):
    """One model in both roles, so one engine; a problem with an answer and one without."""
    rows = [{"problem": "What is 1 plus 2?", "answer": "3"}, {"problem": "What is 2 plus 2?"}]
    file = bench.folder / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(bench.folder / "model")
    done = command("solve", "--solver", model, "--guidance", model, "--file", str(file), "--json", *settings(bench))
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    for row in (first, second):
        assert row["failure"] is None
        assert all(row[part]["token_ids"] for part in ("attempt", "guidance", "revision"))
    assert first["grade_t2"] in ("right", "wrong")
    shown = done.stderr
    assert shown.index("What is 1 plus 2?") < shown.index("hint") < shown.index("revision")
    assert len(re.findall("attempt: (right|wrong)", shown)) == 1  # graded where there is an answer
