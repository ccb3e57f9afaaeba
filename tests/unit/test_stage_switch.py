"""A run that goes from stage I to stage II: the stage of every step, log line and checkpoint, and the optimizers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import score_openrlhf  # noqa: F401  before OpenRLHF, which imports flash_attn

# isort: split
from score_openrlhf.config.schema import Config
from score_openrlhf.policies.build import Roles
from score_openrlhf.tasks.base import Problem
from score_openrlhf.trainer import checkpoint
from score_openrlhf.trainer.score import SCoReTrainer
from tests.unit.test_faults import FakePolicy


class Learner(FakePolicy):
    """A policy that notes at which step its optimizer or schedule starts anew, and how long the schedule is."""

    def __init__(self, loaded_step: int = 0, name: str = "solver"):
        super().__init__(name, loaded_step=loaded_step)
        self.events: list[tuple[str, int]] = []

    def reset_optimizer(self, scheduler_steps: int) -> None:
        self.events.append(("reset", scheduler_steps))

    def resume_schedule(self, scheduler_steps: int) -> None:
        self.events.append(("resume", scheduler_steps))


class Trainer(SCoReTrainer):
    """The real loop and checkpoints around steps that sample nothing: `deltas` are their metrics."""

    def __init__(self, cfg: Config, root: Path, loaded_step: int = 0, deltas: tuple[float, ...] = ()):
        self.learner = Learner(loaded_step)
        self.lines: list[dict[str, Any]] = []
        self.deltas = deltas or (0.0,) * 20
        run_log = SimpleNamespace(
            steps=list, step=lambda step, metrics: self.lines.append({"step": step, **metrics}), output_dir=root
        )
        nothing = SimpleNamespace(
            phase=lambda *a, **k: None, step=lambda *a: None, note=lambda *a: None, num_steps=0, started=0.0
        )
        problems = [Problem("p", "1 plus 2?", "3", {})]
        super().__init__(
            cfg, Roles([self.learner], {"solver": self.learner.engines}), problems, [], run_log, nothing, root
        )

    def train_step(self) -> dict[str, Any]:
        stage = self.stages.stage(self.step)
        self.learner.events.append(("stage", stage))
        self.step += 1
        return {"stage": stage, "delta": self.deltas[self.step - 1]}


def config(**changes: Any) -> Config:
    cfg = Config(**{"method": "score", "stage1_steps": 2, "stage2_steps": 3, **changes})
    cfg.ckpt.save_steps, cfg.ckpt.max_num = 1, 9
    return cfg


def saved_stages(root: Path) -> list[int]:
    return [saved.state["stage"] for saved in checkpoint.whole_checkpoints(root)]


def test_the_stage_is_on_every_line_and_in_every_checkpoint(tmp_path):
    trainer = Trainer(config(), tmp_path)
    trainer.fit()
    assert [(line["step"], line["stage"]) for line in trainer.lines] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    assert saved_stages(tmp_path) == [1, 1, 2, 2, 2]
    assert trainer.learner.events == [("stage", stage) for stage in (1, 1, 2, 2, 2)]  # the optimizer is carried over


def test_start_stage_2_starts_there(tmp_path):
    trainer = Trainer(config(start_stage=2, carry_optimizer=False), tmp_path)
    trainer.fit()
    assert [line["stage"] for line in trainer.lines] == saved_stages(tmp_path) == [2, 2, 2]
    assert ("reset", 3) not in trainer.learner.events  # nothing to forget


def test_a_metric_ends_stage_1_and_the_checkpoint_knows(tmp_path):
    cfg = config(stage1_steps=10, carry_optimizer=False)
    cfg.stage_switch.metric, cfg.stage_switch.threshold, cfg.stage_switch.window = "delta", 0.2, 2
    trainer = Trainer(cfg, tmp_path, deltas=(0.0, 0.1, 0.3, 0.0, 0.0, 0.0))
    trainer.fit()
    assert [line["stage"] for line in trainer.lines] == saved_stages(tmp_path) == [1, 1, 1, 2, 2, 2]
    assert trainer.learner.events[3] == ("reset", 3)  # the schedule of the three steps that stage II really has
    state = json.loads((tmp_path / "step_3" / "trainer.json").read_text())
    assert state["stages"]["switch_step"] == 3


@pytest.mark.parametrize("carry", [True, False])
def test_the_optimizer_starts_anew_right_before_stage_2(tmp_path, carry):
    trainer = Trainer(config(carry_optimizer=carry), tmp_path)
    trainer.fit()
    reset = [] if carry else [("reset", 3)]
    stages = [("stage", stage) for stage in (1, 1, 2, 2, 2)]
    assert trainer.learner.events == stages[:2] + reset + stages[2:]


def test_the_optimizers_of_both_policies_start_anew(tmp_path):
    trainer = Trainer(config(method="rl_guided_score", carry_optimizer=False), tmp_path)
    guidance = Learner(name="guidance")
    trainer.roles.policies.append(guidance)
    trainer.fit()
    assert ("reset", 3) in trainer.learner.events and guidance.events == [("reset", 3)]


@pytest.mark.parametrize(
    ("from_step", "events"),
    [
        (1, [("stage", 1), ("reset", 3), ("stage", 2)]),
        (2, [("reset", 3), ("stage", 2)]),  # the last checkpoint of stage I holds its optimizer
        (3, [("resume", 3), ("stage", 2)]),  # the checkpoint's optimizer has started anew, its schedule is stage II's
    ],
)
def test_a_resumed_run_starts_the_optimizer_anew_once(tmp_path, from_step, events):
    cfg = config(carry_optimizer=False)
    Trainer(cfg, tmp_path).fit()
    saved = checkpoint.whole_checkpoints(tmp_path)[from_step - 1]
    resumed = Trainer(cfg, tmp_path / "again", loaded_step=from_step)
    resumed.resume(saved)
    resumed.fit()
    assert resumed.learner.events[: len(events)] == events
    assert [line["stage"] for line in resumed.lines] == [1, 1, 2, 2, 2][from_step:]


def test_a_run_that_ended_with_stage_1_starts_anew_when_it_is_made_longer(tmp_path):
    Trainer(config(carry_optimizer=False, max_steps=2), tmp_path).fit()
    (*_, saved) = checkpoint.whole_checkpoints(tmp_path)
    longer = Trainer(config(carry_optimizer=False), tmp_path / "longer", loaded_step=2)
    longer.resume(saved)
    longer.fit()
    assert longer.learner.events[:2] == [("reset", 3), ("stage", 2)]
