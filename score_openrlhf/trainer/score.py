"""`SCoReTrainer`: collect trajectories, make experiences, update the solver, send its weights to its engines, repeat.

Two stages (SCoRe, Kumar et al. 2024, section 5). Stage I rewards the revision alone and anchors the attempt to the
reference; stage II rewards both and adds `alpha * (r2 - r1)` to the revision. `RLGuidedSCoReTrainer` adds a second
policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openrlhf.utils.logging_utils import init_logger

from score_openrlhf.cluster.stop import Stopped, stop_request
from score_openrlhf.config.choices import SCHEDULES
from score_openrlhf.config.evaluation import changes, digest
from score_openrlhf.config.methods import POLICIES, SOLVER
from score_openrlhf.config.policies import spec_of
from score_openrlhf.config.schema import Config
from score_openrlhf.config.sizes import schedule_length
from score_openrlhf.console.progress import Progress
from score_openrlhf.errors import RunError
from score_openrlhf.policies.build import Roles
from score_openrlhf.policies.policy import Policy
from score_openrlhf.preflight.checkpoints import layout
from score_openrlhf.rollout.executor import SamplingPlan
from score_openrlhf.rollout.generator import Given, ProblemOrder, collect_attempts
from score_openrlhf.rollout.metrics import (
    is_number,
    metric_names,
    num_sampled_tokens,
    timing_metrics,
    trajectory_metrics,
)
from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.tasks.base import Problem
from score_openrlhf.trainer import base_attempts, checkpoint
from score_openrlhf.trainer.clock import Clock
from score_openrlhf.trainer.hack_monitor import HackMonitor, grading_line
from score_openrlhf.trainer.runlog import RunLog
from score_openrlhf.trainer.stages import Stages

logger = init_logger(__name__)

# What the host says of an update beside the gradient: all are logged under the policy's name where they are there.
OF_AN_UPDATE = (
    "critic_loss", "critic_lr", "critic_grad_norm", "critic_nonfinite_steps", "entropy_loss", "is_filter_ratio",
    "policy_loss", "ppo_clip_ratio", "ppo_kl", "vllm_kl",
)  # fmt: skip

# The trajectories of an evaluation -> what evaluation.json of `score-openrlhf evaluate` holds of such.
Summarise = Callable[[Sequence[Trajectory]], dict[str, Any]]
# What only a whole set of hints has, or `evaluate` alone works out: metrics of an evaluation within training too.
OF_THE_HINTS = ("distinct_2_across", "self_bleu_across", "error_information_bits")
JUDGEMENT = "guidance/judgement_accuracy"


class NoUpdate(RunError):
    """A policy that should train stayed without an update for too long."""


class SCoReTrainer:
    """Trains the policies of a method one after the other; with one policy, the solver, that is SCoRe itself."""

    def __init__(
        self,
        cfg: Config,
        roles: Roles,
        train_problems: Sequence[Problem],
        eval_problems: Sequence[Problem],
        run_log: RunLog,
        progress: Progress,
        checkpoint_root: Path,
        summarise: Summarise | None = None,
        evaluation_settings: dict[str, Any] | None = None,
    ):
        self.cfg = cfg
        self.roles = roles
        self.order = ProblemOrder(train_problems, cfg.seed, cfg.data.shuffle)
        self.eval_problems = eval_problems
        self.run_log = run_log
        self.progress = progress
        self.checkpoint_root = checkpoint_root
        self.summarise = summarise
        self.hack_monitor = HackMonitor()
        self.base_attempts = base_attempts.BaseAttempts(cfg, run_log.output_dir)
        self.evaluation_settings = evaluation_settings or {}  # what its evaluations measure (config/evaluation.py)
        self.stages = Stages(cfg)
        self.step = 0  # steps done
        self.clock = Clock()
        self.started = time.perf_counter()
        self.seconds_before = 0.0  # wall time of the interrupted runs this one goes on from
        self.best: dict[str, float] | None = None  # step (0: the start) and acc_t2 of the best evaluated pair so far
        self.saved_step = 0  # of the newest checkpoint
        self.metric_names = metric_names([policy.name for policy in roles.policies])
        self.first_update: float | None = None  # time.perf_counter() after the first optimizer step

    # ── the loop ──

    @property
    def num_steps(self) -> int:
        return self.stages.num_steps

    def fit(self) -> None:
        """Train to the last step, with checkpoints and evaluations on the way."""
        self.progress.started = time.perf_counter()  # the time left is counted from the steps alone
        first = self.step
        while self.step < self.num_steps:
            # one step at least: a job that is stopped whenever it has started would be started for ever
            if stop_request.requested and self.step > first:
                self._stop()
            if self.step == self.stages.switch_step and self.step > 0 and not self.cfg.carry_optimizer:
                self.reset_optimizers()  # before stage II, not after stage I: its checkpoint may be the run's last
            metrics = self.train_step()
            if self.stages.observe(self.step - 1, metrics):
                self.progress.note(f"stage I ends after step {self.step}: {self.cfg.stage_switch.metric} is there")
                self.progress.num_steps = self.num_steps
            last, is_best = self.step == self.num_steps, False
            # after the last step the evaluation `after` follows, where there is one
            after = last and self.cfg.eval.before_and_after
            if self._due(self.cfg.eval.steps) and not after and self.eval_problems:
                evaluated = self.evaluate(f"eval_step_{self.step:06d}")
                metrics |= {f"eval/{key}": value for key, value in evaluated.items()}
                metrics["eval/settings"] = digest(self.evaluation_settings)
                is_best = self.note_best(evaluated)
            self.run_log.step(self.step, metrics)
            self.progress.step(self.step, metrics)
            for warning in self.hack_monitor.observe(metrics):
                self.progress.note(warning)
            if last or is_best or self._due(self.cfg.ckpt.save_steps):
                self.save()

    def _stop(self) -> None:
        """Leave the loop with a checkpoint of where it is."""
        if self.step > self.saved_step:
            self.save()
        raise Stopped(f"stopped by a signal after step {self.step} of {self.num_steps}; the same command goes on")

    def note_best(self, evaluated: dict[str, float], *, step: int | None = None) -> bool:
        """Whether the current pair is the best evaluated so far, by held-out acc_t2; its checkpoint is then kept.

        `step` 0 is the pair that training starts from, which needs no checkpoint. Of equal pairs the earlier counts.
        """
        found = {"step": self.step if step is None else step, "acc_t2": evaluated["acc_t2"]}
        if self.best is not None and (found["acc_t2"], -found["step"]) <= (self.best["acc_t2"], -self.best["step"]):
            return False
        self.best = found
        return True

    def keep_best(self) -> None:
        """Write into the newest checkpoint which pair is the best, when that came out only after it was written."""
        checkpoint.amend(self.checkpoint_root, self.saved_step, self.state())

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def train_step(self) -> dict[str, Any]:
        """One step: collect with the current weights, then update and sync each policy; returns the step's metrics."""
        start = time.perf_counter()
        self.clock.step = {}
        stage = self.stages.stage(self.step)
        self.progress.phase("rollout", self.step)
        problems = self.order.draw(self.cfg.rollout.batch_size)
        given = self.base_attempts.of_step(self.step, stage, problems)
        trajectories = self.collect(problems, self.sampling_plan("train", self.step), given)
        rollout_seconds = self.clock.step["rollout"]
        metrics: dict[str, Any] = {"stage": stage, **trajectory_metrics(trajectories), **timing_metrics(trajectories)}
        self.run_log.trajectories(f"step_{self.step + 1:06d}", trajectories)
        metrics |= self.update_policies(trajectories, stage)
        self.step += 1
        tokens = num_sampled_tokens(trajectories)
        metrics["tokens_per_second"] = sum(tokens.values()) / rollout_seconds
        metrics |= {f"{name}/sampled_tokens": count for name, count in tokens.items()}
        metrics |= {f"timing/{phase}": seconds for phase, seconds in self.clock.step.items()}
        metrics["timing/total"] = time.perf_counter() - start
        return dict.fromkeys(self.metric_names) | metrics

    def update_policies(self, trajectories: list[Trajectory], stage: int) -> dict[str, Any]:
        """Update the policies that learn, then sync them."""
        metrics: dict[str, Any] = {}
        for policy in self.roles.policies:
            metrics |= self.update_policy(policy, trajectories, stage)
        self.sync(self.roles.policies)
        return metrics

    def update_policy(self, policy: Policy, trajectories: list[Trajectory], stage: int) -> dict[str, Any]:
        """Make the policy's experiences and, when it is due and there is signal, update it; returns its metrics.

        Raises NoUpdate when a policy that should train had nothing to learn from for max_steps_without_update steps.
        """
        name, spec = policy.name, spec_of(self.cfg, policy.name)
        due = spec.is_due(self.step)
        self.doing(name, "log-probs")
        start = time.perf_counter()
        batch = policy.maker.make_batch(trajectories, stage=stage)
        self.clock.add("logprob", start)
        metrics: dict[str, Any] = {f"{name}/{key}": value for key, value in batch.metrics.items()}
        metrics[f"{name}/action_tokens"] = batch.num_action_tokens
        skipped, updates = self._reason_to_skip(policy, batch, due), policy.updates
        if skipped is None:
            self.doing(name, "update")
            start = time.perf_counter()
            status = policy.update(batch, self.step)
            self.clock.add(f"{name}_train", start)
            self.first_update = self.first_update or time.perf_counter()
            policy.steps_without_update = 0
            metrics |= {
                f"{name}/grad_norm": status.get("actor_grad_norm"),
                f"{name}/lr": status.get("actor_lr"),
                f"{name}/skipped_windows": status["skipped_windows"],
                f"{name}/nonfinite_steps": status["nonfinite_steps"],
            }
            metrics |= {f"{name}/{key}": value for key, value in status.items() if key in OF_AN_UPDATE}
        elif due:
            policy.steps_without_update += 1
            limit = spec.max_steps_without_update
            logger.warning("step %d: %s not updated: %s", self.step + 1, name, skipped)
            if policy.steps_without_update >= limit:
                raise NoUpdate(
                    f"the {name} policy had no update for {limit} steps in a row; the last reason: {skipped}. "
                    f"Look at the rewards in metrics.jsonl; {name}.max_steps_without_update is the limit."
                )
        metrics[f"{name}/updated"] = float(policy.updates > updates)
        metrics[f"{name}/no_signal"] = float(skipped is not None and due)
        metrics[f"{name}/optimizer_steps"] = policy.optimizer_steps
        metrics[f"{name}/updates"] = policy.updates
        return {key: value if is_number(value) else None for key, value in metrics.items()}

    def doing(self, name: str, phase: str) -> None:
        """Say what a policy does now."""
        self.progress.phase(f"{name} {phase}", self.step)

    def _reason_to_skip(self, policy: Policy, batch, due: bool) -> str | None:
        if not due:
            return "frozen, warming up or not its turn"
        if batch.nonfinite:
            return None  # `Policy.update` leaves it out, counts it and ends the run after some in a row
        if batch.num_action_tokens == 0:
            return "no trajectory left to learn from (all failed, were masked or filtered)"
        if not batch.has_signal:
            return "every advantage is zero (no reward differs from its baseline, and no distance to the reference)"
        return None

    def reset_optimizers(self) -> None:
        """Forget moments and schedule: stage II then learns as a run of its own from stage I's weights."""
        for policy in self.roles.policies:
            policy.reset_optimizer(self._stage2_schedule(policy))

    def _stage2_schedule(self, policy: Policy) -> int:
        return schedule_length(self.cfg, policy.name, range(self.stages.switch_step, self.num_steps))

    def sync(self, policies: list[Policy]) -> None:
        """Send updated weights to the engines."""
        start = time.perf_counter()
        for policy in policies:
            self.doing(policy.name, "sync")
            if policy.engines.version != policy.updates:
                policy.sync()
        self.clock.add("sync", start)

    # ── sampling ──

    def sampling_plan(self, purpose: str, step: int) -> SamplingPlan:
        """How the trajectories of a step or an evaluation are sampled."""
        cfg, training = self.cfg, purpose in ("train", "base")
        engines = self.roles.engines
        return SamplingPlan(
            purpose=purpose,
            seed=cfg.seed if training else cfg.eval.seed,
            step=step,
            num_attempts=cfg.rollout.n_samples_per_prompt if training else cfg.eval.num_samples,
            num_guidances=cfg.guidance_samples if training else 1,
            temperature=cfg.rollout.temperature if training else cfg.eval.temperature,
            guidance_temperature=cfg.rollout.guidance_temperature if training else cfg.eval.temperature,
            attempt_max_tokens=cfg.rollout.attempt_max_tokens,
            guidance_max_tokens=cfg.rollout.guidance_max_tokens,
            revision_max_tokens=cfg.rollout.revision_max_tokens,
            max_len=cfg.data.max_len,
            mask_truncated_attempt=training and cfg.rollout.on_truncated_attempt == "mask",
            mask_truncated_guidance=training and cfg.rollout.on_truncated_guidance == "mask",
            seed_requests=cfg.rollout.seed_requests,
            versions={name: engines[name].version if name in engines else 0 for name in POLICIES},
        )

    def prepare_base_attempts(self) -> None:
        """Sample the base model's attempts that the steps to come will ask for; the engines hold the base model."""
        stages = [self.stages.stage(step) for step in range(self.step, self.num_steps)]
        problems = base_attempts.needed(self.cfg, self.order, stages, self.step)
        if not problems:
            return
        start, plan = time.perf_counter(), self.sampling_plan("base", 0)
        self.progress.phase("base attempts", self.step, total=len(problems) * plan.num_attempts)
        with self.roles.awake(SOLVER):
            self.base_attempts.sample(
                problems, lambda chunk: collect_attempts(self.roles.engines[SOLVER].handles, chunk, plan)
            )
        self.clock.add("base_attempts", start)

    def collect(self, problems: Sequence[Problem], plan: SamplingPlan, given: Given = None) -> list[Trajectory]:
        """Sampled and graded trajectories of `problems`; engines are awake only meanwhile."""
        start = time.perf_counter()
        engines = self.roles.engines[SOLVER].handles
        limits = {
            "engine_num_seqs": spec_of(self.cfg, SOLVER).engines.num_seqs,
            "max_failed_fraction": self.cfg.rollout.max_failed_fraction,
            "max_error_fraction": self.cfg.task.max_error_fraction,
        }
        collect = SCHEDULES[self.cfg.rollout.schedule].load()
        models = tuple(self.roles.engines)
        trajectories = collect(engines, problems, plan, models=models, awake=self.roles.awake, given=given, **limits)
        self.clock.add("rollout" if plan.purpose == "train" else "evaluate", start)
        if line := grading_line(trajectories):
            self.progress.note(line)
        return trajectories

    def evaluate(self, name: str) -> dict[str, float]:
        """Metrics over the held-out problems, sampled with the same seeds at every evaluation."""
        self.progress.phase("evaluate", self.step, total=len(self.eval_problems) * self.cfg.eval.num_samples)
        trajectories = self.collect(self.eval_problems, self.sampling_plan("eval", 0))
        self.run_log.trajectories(name, trajectories)
        metrics = {**trajectory_metrics(trajectories, failed_is_wrong=True), "num_problems": len(self.eval_problems)}
        if self.summarise is None:
            return metrics
        results = self.summarise(trajectories)
        self.run_log.evaluation(name, {"step": self.step, "settings": self.evaluation_settings, **results})
        of_all = results["conditions"][results["main_condition"]]["metrics"]
        if JUDGEMENT in of_all:
            metrics[JUDGEMENT] = of_all[JUDGEMENT]["value"]
        found = {key: results.get("guidance", {}).get(key) for key in OF_THE_HINTS}
        return metrics | {f"guidance/{key}": value for key, value in found.items() if value is not None}

    # ── saving and going on ──

    def state(self) -> dict[str, Any]:
        """What trainer.json holds beside the policies' own files."""
        return {
            "step": self.step,
            "stage": self.stages.stage(max(self.step - 1, 0)),
            "stages": self.stages.state(),
            "data_position": self.order.position,
            "seed": self.cfg.seed,
            "layout": layout(self.cfg),
            "best": self.best,
            "evaluation_settings": self.evaluation_settings,
            "seconds_by_phase": self.clock.total,
            "wall_seconds": self.seconds_before + time.perf_counter() - self.started,
            "policies": {
                p.name: {
                    "updates": p.updates,
                    "steps_without_update": p.steps_without_update,
                    "kl_coef": p.kl_ctl.value,
                    "optimizer_steps": p.optimizer_steps,
                    "maker": p.maker.state(),
                }
                for p in self.roles.policies
            },
        }

    def save(self) -> None:
        """Write a checkpoint of every policy and the trainer's state."""
        self.progress.phase("checkpoint", self.step)
        start = time.perf_counter()
        checkpoint.save(
            self.checkpoint_root,
            self.step,
            self.roles.policies,
            self.state(),
            keep=self.cfg.ckpt.max_num,
            best=int(self.best["step"]) if self.best else None,
        )
        self.saved_step = self.step
        self.clock.add("checkpoint", start)

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Take over from a checkpoint whose policies are loaded already, and bring the engines to their weights."""
        checkpoint.check_steps(saved, {p.name: p.loaded_step for p in self.roles.policies})
        state = saved.state
        self.step = self.saved_step = state["step"]
        self.order.position = state["data_position"]
        self.stages.restore(state["stages"], self.step)
        for metrics in self.run_log.steps():  # what grew is told from the run's first steps, and said once
            self.hack_monitor.observe(metrics)
        self.best = state["best"]
        changed = changes(state.get("evaluation_settings", self.evaluation_settings), self.evaluation_settings)
        if self.best and changed:
            self.progress.note(
                f"step {self.best['step']} was the best pair so far; {'; '.join(changed)}, so the search begins anew"
            )
            self.best = None
        for phase, seconds in state["seconds_by_phase"].items():
            self.clock.total[phase] = self.clock.total.get(phase, 0.0) + seconds
        self.seconds_before = state["wall_seconds"]
        self.prepare_base_attempts()  # before the engines leave the base model
        for policy in self.roles.policies:
            own = state["policies"][policy.name]
            policy.updates = own["updates"]
            policy.steps_without_update = own["steps_without_update"]
            policy.kl_ctl.value = own["kl_coef"]
            policy.maker.restore(own.get("maker", {}))  # checkpoints before adaptive beta2 hold none
            if not self.cfg.carry_optimizer and 0 < self.stages.switch_step < self.step:
                policy.resume_schedule(self._stage2_schedule(policy))
            policy.sync()
