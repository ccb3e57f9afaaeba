"""`RLGuidedSCoReTrainer`: SCoRe's loop with a second policy, the guidance model, trained by REINFORCE on the same
trajectories."""

from __future__ import annotations

from functools import partial

from score_openrlhf.config.derive import GUIDANCE, SOLVER, is_update_step
from score_openrlhf.policies.policy import Policy
from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.trainer.at_once import at_once
from score_openrlhf.trainer.metrics import STEP_METRICS
from score_openrlhf.trainer.score import SCoReTrainer


class RLGuidedSCoReTrainer(SCoReTrainer):
    """Updates the solver and the guidance model and sends both to their engines.

    At the same time where they have GPUs of their own; one after the other where they share them, so that one policy's
    optimizer is on a GPU at a time. The numbers are the same: neither reads what the other writes.
    """

    metric_names = tuple(name for name in STEP_METRICS if name != "step")
    now: dict[str, str]  # what each policy does in its part of a step

    @property
    def guidance(self) -> Policy:
        assert self.roles.guidance is not None
        return self.roles.guidance

    @property
    def learns_at_once(self) -> bool:
        return self.cfg.placement != "colocate"

    def update_policies(self, trajectories: list[Trajectory], stage: int) -> dict[str, float]:
        due = {name: is_update_step(self.cfg, name, self.step) for name in (SOLVER, GUIDANCE)}
        policies = {SOLVER: self.roles.solver, GUIDANCE: self.guidance}
        if not self.learns_at_once:
            metrics: dict[str, float] = {}
            for name, policy in policies.items():
                metrics |= self.update_policy(policy, trajectories, stage, due=due[name])
            self.sync(list(policies.values()))
            return metrics

        def learn(name: str) -> dict[str, float]:
            metrics = self.update_policy(policies[name], trajectories, stage, due=due[name])
            self.sync([policies[name]])
            return metrics

        self.now = dict.fromkeys(policies, "log-probs")
        with self.clock.overlapping():
            learned = at_once({name: partial(learn, name) for name in policies})
        return learned[SOLVER] | learned[GUIDANCE]

    def doing(self, name: str, phase: str) -> None:
        """Say what is done now, of two policies that learn at once by both: `solver sync, guidance update`."""
        self.now = (self.now if self.learns_at_once else {}) | {name: phase}
        self.progress.phase(", ".join(f"{name} {phase}" for name, phase in self.now.items()), self.step)
