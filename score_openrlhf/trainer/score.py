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

from score_openrlhf.config.derive import SOLVER, is_update_step, schedule_length
from score_openrlhf.config.schema import Config
from score_openrlhf.policies.build import Roles
from score_openrlhf.policies.policy import Policy
from score_openrlhf.report.progress import Progress
from score_openrlhf.rollout.executor import SamplingPlan
from score_openrlhf.rollout.generator import ProblemOrder, collect, collect_phased
from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.tasks.base import Problem
from score_openrlhf.trainer import checkpoint
from score_openrlhf.trainer.clock import Clock
from score_openrlhf.trainer.metrics import STEP_METRICS, num_sampled_tokens, timing_metrics, trajectory_metrics
from score_openrlhf.trainer.runlog import RunLog
from score_openrlhf.trainer.stages import Stages
from score_openrlhf.trainer.stop import Stopped, stop_request

logger = init_logger(__name__)

# What the host says of an update beside the gradient: all are logged under the policy's name where they are there.
OF_AN_UPDATE = (
    "critic_loss", "critic_lr", "critic_grad_norm", "entropy_loss", "ppo_clip_ratio", "ppo_kl", "vllm_kl",
    "is_filter_ratio",
)  # fmt: skip

# The trajectories of an evaluation -> what evaluation.json of `score-openrlhf evaluate` holds of such.
Summarise = Callable[[Sequence[Trajectory]], dict[str, Any]]
# What only a whole set of hints has, or `evaluate` alone works out: metrics of an evaluation within training too.
OF_THE_HINTS = ("distinct_2_across", "self_bleu_across", "error_information_bits")
JUDGEMENT = "guidance/judgement_accuracy"


class NoUpdate(RuntimeError):
    """A policy that should train stayed without an update for too long."""


class SCoReTrainer:
    """Trains the solver; the hint, if there is one, comes from a frozen model."""

    metric_names = tuple(name for name in STEP_METRICS if not name.startswith("guidance/") and name != "step")

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
    ):
        self.cfg = cfg
        self.roles = roles
        self.order = ProblemOrder(train_problems, cfg.seed, cfg.data.shuffle)
        self.eval_problems = eval_problems
        self.run_log = run_log
        self.progress = progress
        self.checkpoint_root = checkpoint_root
        self.summarise = summarise
        self.stages = Stages(cfg)
        self.step = 0  # steps done
        self.clock = Clock()
        self.started = time.perf_counter()
        self.seconds_before = 0.0  # wall time of the interrupted runs this one goes on from
        self.best: dict[str, float] | None = None  # step and acc_t2 of the best evaluated pair so far
        self.saved_step = 0  # of the newest checkpoint
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
            if self._due(self.cfg.eval.steps) and not last and self.eval_problems:
                evaluated = self.evaluate(f"eval_step_{self.step:06d}")
                metrics |= {f"eval/{key}": value for key, value in evaluated.items()}
                is_best = self.note_best(evaluated)
            self.run_log.step(self.step, metrics)
            self.progress.step(self.step, metrics)
            if last or is_best or self._due(self.cfg.ckpt.save_steps):
                self.save()

    def _stop(self) -> None:
        """Leave the loop with a checkpoint of where it is."""
        if self.step > self.saved_step:
            self.save()
        raise Stopped(f"stopped by a signal after step {self.step} of {self.num_steps}; the same command goes on")

    def note_best(self, evaluated: dict[str, float]) -> bool:
        """Whether the current pair is the best evaluated so far, by held-out acc_t2; its checkpoint is then kept."""
        if self.best is not None and evaluated["acc_t2"] <= self.best["acc_t2"]:
            return False
        self.best = {"step": self.step, "acc_t2": evaluated["acc_t2"]}
        return True

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def train_step(self) -> dict[str, Any]:
        """One step: collect with the current weights, then update and sync each policy; returns the step's metrics."""
        start = time.perf_counter()
        self.clock.step = {}
        stage = self.stages.stage(self.step)
        self.progress.phase("rollout", self.step)
        trajectories = self.collect(self.order.draw(self.cfg.rollout.batch_size), self.plan("train", self.step))
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

    def update_policies(self, trajectories: list[Trajectory], stage: int) -> dict[str, float]:
        """Update the trained policies, then sync them; subclasses add their own."""
        metrics = self.update_policy(
            self.roles.solver, trajectories, stage, due=is_update_step(self.cfg, SOLVER, self.step)
        )
        self.sync([self.roles.solver])
        return metrics

    def update_policy(
        self, policy: Policy, trajectories: list[Trajectory], stage: int, *, due: bool
    ) -> dict[str, float]:
        """Make the policy's experiences and, when it is due and there is signal, update it; returns its metrics.

        Raises NoUpdate when a policy that should train had nothing to learn from for max_steps_without_update steps.
        """
        name = policy.name
        self.doing(name, "log-probs")
        start = time.perf_counter()
        batch = policy.maker.make_batch(trajectories, stage=stage)
        self.clock.add("logprob", start)
        metrics = {f"{name}/{key}": value for key, value in batch.metrics.items()}
        metrics[f"{name}/action_tokens"] = batch.num_action_tokens
        skipped = self._reason_to_skip(policy, batch, due)
        if skipped is None:
            self.doing(name, "update")
            start = time.perf_counter()
            status = policy.update(batch, self.step)
            self.clock.add(f"{name}_train", start)
            self.first_update = self.first_update or time.perf_counter()
            policy.steps_without_update = 0
            metrics |= {
                f"{name}/grad_norm": status.get("actor_grad_norm", 0.0),
                f"{name}/lr": status.get("actor_lr", 0.0),
                f"{name}/skipped_windows": status["skipped_windows"],
            }
            metrics |= {f"{name}/{key}": value for key, value in status.items() if key in OF_AN_UPDATE}
        elif due:
            policy.steps_without_update += 1
            limit = (self.cfg.solver if name == "solver" else self.cfg.guidance).max_steps_without_update
            logger.warning("step %d: %s not updated: %s", self.step + 1, name, skipped)
            if policy.steps_without_update >= limit:
                raise NoUpdate(
                    f"the {name} policy had no update for {limit} steps in a row; the last reason: {skipped}. "
                    f"Look at the rewards in metrics.jsonl; {name}.max_steps_without_update is the limit."
                )
        metrics[f"{name}/updated"] = float(skipped is None)
        metrics[f"{name}/no_signal"] = float(skipped is not None and due)
        metrics[f"{name}/optimizer_steps"] = policy.optimizer_steps
        metrics[f"{name}/updates"] = policy.updates
        return metrics

    def doing(self, name: str, phase: str) -> None:
        """Say what a policy does now."""
        self.progress.phase(f"{name} {phase}", self.step)

    def _reason_to_skip(self, policy: Policy, batch, due: bool) -> str | None:
        if not due:
            return "frozen, warming up or not its turn"
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

    def plan(self, purpose: str, step: int) -> SamplingPlan:
        """How the trajectories of a step or an evaluation are sampled."""
        cfg, training = self.cfg, purpose == "train"
        hints = self.roles.guidance_engines
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
            versions=(self.roles.solver.engines.version, hints.version if hints else 0),
        )

    def collect(self, problems: Sequence[Problem], plan: SamplingPlan) -> list[Trajectory]:
        """Sampled and graded trajectories of `problems`; engines are awake only meanwhile."""
        start = time.perf_counter()
        engines, limit = self.roles.solver.engines.handles, self.cfg.rollout.max_failed_fraction
        if self.cfg.rollout.schedule == "phased":
            guided = self.roles.guidance_engines is not None
            trajectories = collect_phased(
                engines, problems, plan, guided=guided, awake=self.roles.awake, max_failed_fraction=limit
            )
        else:
            with self.roles.awake("solver", "guidance"):
                trajectories = collect(engines, problems, plan, max_failed_fraction=limit)
        self.clock.add("rollout" if plan.purpose == "train" else "evaluate", start)
        return trajectories

    def evaluate(self, name: str) -> dict[str, float]:
        """Metrics over the held-out problems, sampled with the same seeds at every evaluation."""
        self.progress.phase("evaluate", self.step, total=len(self.eval_problems) * self.cfg.eval.num_samples)
        trajectories = self.collect(self.eval_problems, self.plan("eval", 0))
        self.run_log.trajectories(name, trajectories)
        metrics = {**trajectory_metrics(trajectories), "num_problems": len(self.eval_problems)}
        if self.summarise is None:
            return metrics
        results = self.summarise(trajectories)
        self.run_log.evaluation(name, {"step": self.step, **results})
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
            "best": self.best,
            "seconds_by_phase": self.clock.total,
            "wall_seconds": self.seconds_before + time.perf_counter() - self.started,
            "policies": {
                p.name: {
                    "updates": p.updates,
                    "steps_without_update": p.steps_without_update,
                    "kl_coef": p.kl_ctl.value,
                    "optimizer_steps": p.optimizer_steps,
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
        self.best = state["best"]
        self.clock.total = dict(state["seconds_by_phase"])
        self.seconds_before = state["wall_seconds"]
        for policy in self.roles.policies:
            own = state["policies"][policy.name]
            policy.updates = own["updates"]
            policy.steps_without_update = own["steps_without_update"]
            policy.kl_ctl.value = own["kl_coef"]
            if not self.cfg.carry_optimizer and 0 < self.stages.switch_step < self.step:
                policy.resume_schedule(self._stage2_schedule(policy))
            policy.sync()
