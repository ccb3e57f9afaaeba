"""A run's evaluations over its whole life, stopped, resumed, made longer and measured otherwise: what is best, what is
kept, what is made anew. The loop, files and checkpoints are real; sampling and the cluster are stood in for."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import score_openrlhf  # noqa: F401  before OpenRLHF, which imports flash_attn

# isort: split
from score_openrlhf.config.compose import load_config
from score_openrlhf.errors import UserError
from score_openrlhf.policies.build import Roles
from score_openrlhf.report.run_data import read_run
from score_openrlhf.trainer import checkpoint, run
from score_openrlhf.trainer.score import SCoReTrainer
from tests.support.fakes import trajectory
from tests.unit.test_faults import FakePolicy


class Stopped(UserError):
    """The process is gone."""


class Bench:
    """One run's folder; the accuracy of the pair after each step, step 0 first, is what the test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.accuracies, self.stop_at = folder, [0.0] * 20, ""
        self.deltas = [0.0] * 20
        self.repeats: dict[int, float] = {}  # step -> share of right answers that repeat the problem
        self.evaluated: list[tuple[str, int]] = []
        self.steps: list[int] = []
        for name in ("train", "eval"):
            rows = [{"problem": f"{n} plus 1?", "answer": str(n + 1)} for n in range(10)]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "run.yaml").write_text("method: score\n")
        bench = self

        class Trainer(SCoReTrainer):
            def train_step(self) -> dict[str, Any]:
                self.step += 1
                bench.steps.append(self.step)
                stage = self.stages.stage(self.step - 1)
                share = bench.repeats.get(self.step)
                return {
                    "stage": stage, "delta": bench.deltas[self.step - 1], "timing/total": 1.0,
                    "grade/right_repeats": share,
                }  # fmt: skip

            def evaluate(self, name: str) -> dict[str, float]:
                bench.evaluated.append((name, self.step))
                if name == bench.stop_at:
                    raise Stopped
                return super().evaluate(name)

            def collect(self, problems, plan):
                right = round(bench.accuracies[self.step] * len(problems))
                return [trajectory(n, r2=float(n < right)) for n in range(len(problems))]

        def build(cfg, templates, *, resume_from=None):
            step = int(resume_from.rpartition("_")[2]) if resume_from else 0
            solver = FakePolicy("solver", loaded_step=step)
            return Roles([solver], {"solver": solver.engines})

        monkeypatch.setattr(run, "trainer_class", lambda cfg: Trainer)
        monkeypatch.setattr(run, "build", build)
        monkeypatch.setattr(run, "ask", lambda cfg, templates, sets, *_, **__: sets)
        monkeypatch.setattr(run, "ray_session", lambda *_, **__: nullcontext())
        monkeypatch.setattr(run, "_export", lambda *_: {"solver_path": None, "guidance_path": None})
        watch = SimpleNamespace(sample=lambda: None, peak_bytes=0, peak_by_process={})
        monkeypatch.setattr(run, "MemoryWatch", lambda: nullcontext(watch))

    def train(self, **changes: Any) -> dict[str, Any]:
        """What the command does; `said` is what it printed."""
        values = {
            "model_path": self.folder / "model", "output_dir": self.folder / "out", "logger.tensorboard": "false",
            "data.train": self.folder / "train.jsonl", "data.eval": self.folder / "eval.jsonl",
            "stage1_steps": 1, "stage2_steps": 3, "ckpt.save_steps": 1, "ckpt.max_num": 1,
        } | changes  # fmt: skip
        resolved = load_config(str(self.folder / "run.yaml"), [f"{key}={value}" for key, value in values.items()])
        console = Console(record=True, width=200, quiet=False, file=(self.folder / "said").open("w"))
        self.evaluated.clear()
        self.steps.clear()
        try:
            return run.train(run.prepare(resolved, console), console)
        finally:
            self.said = console.export_text()

    @property
    def checkpoints(self) -> list[int]:
        return [saved.step for saved in checkpoint.whole_checkpoints(self.folder / "out" / "checkpoints")]

    def best(self, step: int) -> Any:
        state = json.loads((self.folder / "out" / "checkpoints" / f"step_{step}" / "trainer.json").read_text())
        return state["best"]


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


# ── best ──


def test_the_evaluation_after_training_names_a_checkpoint_that_knows_it(bench):
    bench.accuracies = [0.1, 0.2, 0.3, 0.2, 0.9]
    summary = bench.train(**{"eval.steps": 1})
    folder = bench.folder / "out" / "checkpoints" / "step_4"
    assert summary["best"] == {"step": 4, "acc_t2": 0.9, "checkpoint": str(folder)}
    assert bench.best(4) == {"step": 4, "acc_t2": 0.9}
    assert bench.evaluated == [("eval_before", 0), *((f"eval_step_{n:06d}", n) for n in (1, 2, 3)), ("eval_after", 4)]


def test_a_finished_run_made_longer_keeps_the_best_it_ended_with(bench):
    bench.accuracies = [0.1, 0.2, 0.3, 0.2, 0.9, 0.4, 0.5, 0.8]
    bench.train(**{"eval.steps": 1})
    summary = bench.train(**{"eval.steps": 1, "stage2_steps": 6})
    assert bench.steps == [5, 6, 7]
    assert summary["best"]["step"] == 4 and summary["best"]["acc_t2"] == 0.9
    assert bench.checkpoints == [4, 7]  # max_num is 1: the newest, and the best


def test_the_start_competes(bench):
    bench.accuracies = [0.5, 0.2, 0.4, 0.3, 0.5]
    summary = bench.train(**{"eval.steps": 1})
    assert summary["best"] == {"step": 0, "acc_t2": 0.5, "checkpoint": None}
    assert bench.checkpoints == [4] and bench.best(4) == {"step": 0, "acc_t2": 0.5}


def test_best_survives_a_resume(bench):
    bench.accuracies, bench.stop_at = [0.1, 0.2, 0.6, 0.3, 0.4], "eval_after"
    with pytest.raises(Stopped):
        bench.train(**{"eval.steps": 1})
    assert bench.checkpoints == [2, 4]
    bench.stop_at = ""
    assert bench.train(**{"eval.steps": 1})["best"]["step"] == 2
    assert bench.evaluated == [("eval_after", 4)] and bench.steps == []


def test_the_last_step_is_evaluated_where_nothing_follows_it(bench):
    bench.accuracies = [0.1, 0.2, 0.3, 0.2, 0.9]
    summary = bench.train(**{"eval.steps": 2, "eval.before_and_after": "false"})
    assert bench.evaluated == [("eval_step_000002", 2), ("eval_step_000004", 4)]
    assert summary["best"]["step"] == 4 and bench.best(4) == {"step": 4, "acc_t2": 0.9}


@pytest.mark.parametrize("format_1", [False, True])
def test_a_checkpoint_is_amended_as_one_step(bench, format_1):
    """Also one whose manifest holds sizes alone, that of trainer.json among them."""
    bench.train()
    root = bench.folder / "out" / "checkpoints"
    manifest = json.loads((root / "step_4" / "manifest.json").read_text())
    assert "trainer.json" not in manifest["files"]
    if format_1:
        files = {name: size for name, (size, _) in manifest["files"].items()}
        files["trainer.json"] = (root / "step_4" / "trainer.json").stat().st_size
        old = {"format": 1, "step": 4, "policies": ["solver"], "files": files}
        (root / "step_4" / "manifest.json").write_text(json.dumps(old))
    state = checkpoint.newest(root, ["solver"]).state
    checkpoint.amend(root, 4, {**state, "best": {"step": 1, "acc_t2": 0.123456789}})
    assert checkpoint.newest(root, ["solver"]).state["best"]["step"] == 1


# ── before and after are of the same problems and settings ──


def test_a_resumed_run_keeps_its_evaluation_before(bench):
    bench.stop_at = "eval_after"
    with pytest.raises(Stopped):
        bench.train()
    bench.stop_at = ""
    bench.train()
    assert bench.evaluated == [("eval_after", 4)]


@pytest.mark.parametrize(
    "change",
    [{"eval.num_samples": 2}, {"data.max_eval_problems": 5}, {"eval.temperature": 0.5}, {"data.max_len": 999},
     {"rollout.revision_max_tokens": 9}, {"templates.static_revision": "Again."}],
)  # fmt: skip
def test_on_a_change_the_start_is_evaluated_anew_too(bench, change):
    bench.accuracies, bench.stop_at = [0.1, 0.2, 0.3, 0.4, 0.5], "eval_after"
    with pytest.raises(Stopped):
        bench.train(**{"eval.steps": 2})
    bench.stop_at = ""
    summary = bench.train(**{"eval.steps": 2, **change})
    assert bench.evaluated == [("eval_before", 0), ("eval_after", 4)]
    (key,) = change
    assert f"eval_before is made anew: {key} was" in bench.said
    assert "step 2 was the best pair so far" in bench.said and "the search begins anew" in bench.said
    assert summary["best"]["step"] == 4
    kept = [json.loads((bench.folder / "out" / f"eval_{when}.json").read_text()) for when in ("before", "after")]
    assert kept[0]["settings"] == kept[1]["settings"] == summary["evaluation_settings"]


def test_a_finished_run_is_evaluated_anew_on_a_change_and_only_then(bench):
    bench.train()
    assert bench.train()["steps"] == 4 and bench.evaluated == [] and "finished already at step 4" in bench.said
    rows = (bench.folder / "eval.jsonl").read_text().splitlines()
    (bench.folder / "eval.jsonl").write_text("\n".join(rows[:5]) + "\n")  # the same file's name, other problems
    summary = bench.train()
    assert bench.evaluated == [("eval_before", 0), ("eval_after", 4)] and bench.steps == []
    assert "the problems themselves changed" in bench.said
    assert summary["before"]["num_problems"] == summary["after"]["num_problems"] == 5
    assert bench.train() == summary and bench.evaluated == []


def test_what_does_not_change_the_meaning_changes_nothing(bench):
    bench.train()
    bench.train(**{"eval.steps": 3, "task.grader_processes": 1})
    assert bench.evaluated == []


def test_the_report_leaves_out_evaluations_of_other_settings_and_says_so(bench):
    bench.accuracies, bench.stop_at = [0.1, 0.2, 0.3, 0.4, 0.5], "eval_step_000003"
    with pytest.raises(Stopped):
        bench.train(**{"eval.steps": 1})
    bench.stop_at = ""
    bench.train(**{"eval.steps": 1, "eval.num_samples": 3})
    found = read_run(bench.folder / "out")
    assert [evaluation.step for evaluation in found.evaluations] == [0, 3, 4]
    assert found.notes == ["other problems or settings were evaluated at step 1, 2; that is left out"]
    assert all(isinstance(value, (int, float)) for e in found.evaluations for value in e.metrics.values())


# ── a run that is finished ──


def test_a_run_whose_stage_1_ended_early_is_finished(bench):
    bench.deltas = [0.5] * 20
    early = {"stage1_steps": 6, "stage2_steps": 2, "stage_switch.metric": "delta", "stage_switch.threshold": 0.1}
    early |= {"stage_switch.window": 2}
    assert bench.train(**early)["steps"] == 4
    again = bench.train(**early)
    assert again["steps"] == 4 and bench.steps == [] and bench.evaluated == []
    assert "finished already at step 4" in bench.said


def test_a_longer_run_that_was_stopped_at_its_end_is_not_finished(bench):
    """summary.json is still that of the shorter run."""
    bench.train()
    bench.stop_at = "eval_after"
    with pytest.raises(Stopped):
        bench.train(stage2_steps=5)
    bench.stop_at = ""
    assert bench.train(stage2_steps=5)["steps"] == 6
    assert bench.evaluated == [("eval_after", 6)]


# ── what else a run that goes on knows ──


def test_a_run_does_not_go_on_on_other_rows(bench):
    bench.stop_at = "eval_after"
    with pytest.raises(Stopped):
        bench.train()
    file = bench.folder / "train.jsonl"
    rows = file.read_text()
    file.write_text(rows.replace("9 plus", "8 plus"))
    with pytest.raises(UserError, match=r"on other training rows than data.train has now.*resume=false"):
        bench.train()
    file.write_text(rows)
    bench.stop_at = ""
    assert bench.train()["steps"] == 4


def test_a_share_that_grows_is_told_from_the_steps_before_the_interruption_too(bench):
    bench.repeats = {step: 0.01 if step <= 10 else 0.5 for step in range(1, 20)}
    bench.accuracies, bench.deltas = [0.0] * 25, [0.0] * 25
    bench.stop_at = "eval_step_000010"
    with pytest.raises(Stopped):
        bench.train(stage2_steps=18, **{"eval.steps": 10})
    bench.stop_at = ""
    bench.train(stage2_steps=18, **{"eval.steps": 10})
    assert bench.steps[0] == 10 and bench.steps[-1] == 19
    assert "of the right answers of the last 10 steps write down the problem's own expression (1% at the" in bench.said
