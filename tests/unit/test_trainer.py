"""What the trainer does with two policies in a step, what it samples under, and what a resumed run takes over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import score_openrlhf  # noqa: F401  before OpenRLHF, which imports flash_attn

# isort: split
from score_openrlhf.config.policies import learning_specs
from score_openrlhf.config.schema import Config
from score_openrlhf.policies.build import Roles
from score_openrlhf.tasks.base import Problem
from score_openrlhf.trainer import checkpoint
from score_openrlhf.trainer.rl_guided import RLGuidedSCoReTrainer
from score_openrlhf.trainer.score import NoUpdate, SCoReTrainer
from tests.support.fakes import trajectory
from tests.unit.test_faults import FakePolicy

PROBLEMS = [Problem(f"p{number}", f"{number} plus 2?", "3", {}) for number in range(4)]


class Noting(FakePolicy):
    """A policy that notes, in a list shared with the other, what is done with it."""

    def __init__(self, name: str, events: list[str], **options: Any):
        super().__init__(name, **options)
        self.events = events

    def update(self, batch, step):
        self.events.append(f"update {self.name}")
        return super().update(batch, step)

    def sync(self):
        self.events.append(f"sync {self.name}")
        super().sync()


def guided(
    root: Path, kind: type[SCoReTrainer] = RLGuidedSCoReTrainer, *, loaded_step: int = 0, **changes: Any
) -> Any:
    """A trainer of two policies that samples nothing: `plans` are those it was to sample under."""
    cfg = Config(**{"method": "rl_guided_score", "stage1_steps": 2, "stage2_steps": 3, **changes})
    cfg.rollout.batch_size = 3
    events: list[str] = []
    solver, guidance = (Noting(name, events, loaded_step=loaded_step) for name in ("solver", "guidance"))
    run_log = SimpleNamespace(output_dir=root, steps=list, trajectories=lambda *_: None)
    progress = SimpleNamespace(phase=lambda *_, **__: None)
    learning = [solver, guidance][: len(learning_specs(cfg))]
    roles = Roles(learning, {"solver": solver.engines, "guidance": guidance.engines})
    trainer = kind(cfg, roles, PROBLEMS, PROBLEMS[:2], run_log, progress, root)
    trainer.events, trainer.plans = events, []

    def collect(problems, plan, *_):
        trainer.plans.append(plan)
        trainer.clock.step["rollout"] = 1.0
        return [trajectory(group) for group, _ in enumerate(problems)]

    trainer.collect = collect
    return trainer


def test_policies_that_share_gpus_learn_one_after_the_other_and_are_then_sent(tmp_path):
    trainer = guided(tmp_path, placement="colocate")
    assert not trainer.learns_at_once
    metrics = trainer.train_step()
    assert trainer.events == ["update solver", "update guidance", "sync solver", "sync guidance"]
    assert metrics["solver/updates"] == metrics["guidance/updates"] == 1


def test_policies_with_gpus_of_their_own_are_each_sent_after_their_update(tmp_path):
    trainer = guided(tmp_path, placement="split")
    metrics = trainer.train_step()
    for name in ("solver", "guidance"):
        assert [event for event in trainer.events if name in event] == [f"update {name}", f"sync {name}"]
        assert metrics[f"{name}/updated"] == 1


def test_each_policy_is_updated_and_sent_at_its_own_turns(tmp_path):
    trainer = guided(tmp_path, placement="colocate")
    trainer.cfg.solver.warmup_steps, trainer.cfg.guidance.warmup_steps, trainer.cfg.guidance.update_every = 3, 1, 2
    done = []
    for _ in range(5):
        trainer.train_step()
        done.append(list(trainer.events))
        trainer.events.clear()
    guidance, both = ["update guidance", "sync guidance"], ["update solver", "update guidance", "sync solver"]
    assert done == [[], guidance, [], [*both, "sync guidance"], ["update solver", "sync solver"]]


def test_without_a_second_policy_the_solver_alone_is_updated_and_sent(tmp_path):
    trainer = guided(tmp_path, SCoReTrainer, method="smart_score")
    trainer.train_step()
    assert trainer.events == ["update solver", "sync solver"]


def test_each_policy_has_its_own_limit_of_steps_without_update(tmp_path):
    trainer = guided(tmp_path, placement="colocate")
    trainer.cfg.solver.max_steps_without_update, trainer.cfg.guidance.max_steps_without_update = 3, 1
    for policy in trainer.roles.policies:
        policy.batch.has_signal = False
    trainer.update_policy(trainer.roles.policy("solver"), [], 1)
    with pytest.raises(NoUpdate, match="guidance policy had no update for 1 steps"):
        trainer.update_policy(trainer.roles.policy("guidance"), [], 1)


def test_a_step_is_of_its_stage_and_sampled_under_its_number(tmp_path):
    trainer = guided(tmp_path)
    assert [trainer.train_step()["stage"] for _ in range(4)] == [1, 1, 2, 2]
    assert [(plan.purpose, plan.step) for plan in trainer.plans] == [("train", step) for step in range(4)]


def test_a_step_and_an_evaluation_are_sampled_by_their_own_settings(tmp_path):
    trainer = guided(tmp_path, seed=11, guidance_samples=5)
    cfg = trainer.cfg
    cfg.rollout.n_samples_per_prompt, cfg.rollout.temperature, cfg.rollout.guidance_temperature = 6, 0.9, 0.8
    cfg.rollout.on_truncated_attempt = cfg.rollout.on_truncated_guidance = "mask"
    cfg.eval.seed, cfg.eval.num_samples, cfg.eval.temperature = 12, 2, 0.3
    trainer.roles.engines["solver"].version, trainer.roles.engines["guidance"].version = 4, 9
    trainer.train_step()
    trainer.evaluate("one")
    trainer.train_step()
    trainer.evaluate("other")
    step, evaluation, _, again = trainer.plans
    assert (step.seed, step.num_attempts, step.num_guidances) == (11, 6, 5)
    assert (step.temperature, step.guidance_temperature, step.versions) == (0.9, 0.8, {"solver": 4, "guidance": 9})
    assert step.mask_truncated_attempt and step.mask_truncated_guidance
    assert (evaluation.seed, evaluation.num_attempts, evaluation.num_guidances) == (12, 2, 1)
    assert (evaluation.temperature, evaluation.guidance_temperature) == (0.3, 0.3)
    assert not evaluation.mask_truncated_attempt and not evaluation.mask_truncated_guidance  # a wrong answer counts
    assert evaluation.purpose == again.purpose != step.purpose
    assert evaluation.step == again.step  # the same requests each time: a change is the policies'


def test_what_failed_counts_as_wrong_in_an_evaluation(tmp_path):
    trainer = guided(tmp_path)
    failed = trajectory(1, r1=1, r2=1, failure="revise: ValueError")
    trainer.collect = lambda problems, plan, *_: [trajectory(0, r1=1, r2=1), failed]
    metrics = trainer.evaluate("one")
    assert (metrics["acc_t1"], metrics["acc_t2"], metrics["num_failed"]) == (1.0, 0.5, 1)


@pytest.mark.parametrize(("settings", "best"), [({"eval.seed": 1}, True), ({"eval.seed": 2}, False)])
def test_the_best_so_far_is_of_the_same_evaluation(tmp_path, settings, best):
    trainer = guided(tmp_path)
    trainer.evaluation_settings = {"eval.seed": 1}
    trainer.best = {"step": 2, "acc_t2": 0.75}
    trainer.step = 3
    trainer.save()
    resumed = guided(tmp_path, loaded_step=3)
    resumed.evaluation_settings, notes = settings, []
    resumed.progress.note = notes.append
    resumed.resume(checkpoint.newest(tmp_path, ["solver", "guidance"]))
    assert (resumed.best is not None) == best == (not notes)


def test_the_best_pairs_checkpoint_outlives_the_others(tmp_path):
    trainer = guided(tmp_path)
    trainer.cfg.ckpt.max_num = 1
    for step in range(1, 5):
        trainer.train_step()
        if step == 2:
            trainer.note_best({"acc_t2": 0.5})
        trainer.save()
    assert [saved.step for saved in checkpoint.whole_checkpoints(tmp_path)] == [2, 4]


def test_a_resumed_run_has_all_that_its_checkpoint_holds(tmp_path):
    trainer = guided(tmp_path)
    for _ in range(3):
        trainer.train_step()
    trainer.best = {"step": 2, "acc_t2": 0.75}
    trainer.stages.window = [0.25]
    trainer.seconds_before = 1000.0
    trainer.clock.total = {"rollout": 5.0, "sync": 2.0}
    for number, policy in enumerate(trainer.roles.policies, start=1):
        policy.updates, policy.optimizer_steps, policy.steps_without_update = 10 * number, 20 * number, number
        policy.kl_ctl.value, policy.kept = 0.125 * number, {"beta2": 0.5 * number}
    trainer.save()
    saved = checkpoint.newest(tmp_path, ["solver", "guidance"])

    resumed = guided(tmp_path, loaded_step=3)
    for number, policy in enumerate(resumed.roles.policies, start=1):
        policy.optimizer_steps = 20 * number  # DeepSpeed's own, loaded before
    resumed.resume(saved)
    before, after = (dict(state) for state in (saved.state, resumed.state()))
    assert after.pop("wall_seconds") >= before.pop("wall_seconds") >= 1000.0
    assert after == before
    assert resumed.saved_step == 3  # a signal right after would not write the same checkpoint again
    assert resumed.events == ["sync solver", "sync guidance"]  # engines start from the base model
    assert [policy.engines.version for policy in resumed.roles.policies] == [10, 20]
    assert resumed.order.draw(3) == trainer.order.draw(3)
