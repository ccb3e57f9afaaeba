"""`RLGuidedSCoReTrainer`: SCoRe's loop with a second policy, the guidance model, trained by REINFORCE on the same
trajectories."""

from __future__ import annotations

from functools import partial
from typing import Any

from score_openrlhf.policies.policy import Policy
from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.trainer.at_once import at_once
from score_openrlhf.trainer.score import SCoReTrainer


class RLGuidedSCoReTrainer(SCoReTrainer):
    """Updates the solver and the guidance model and sends both to their engines.

    At the same time where they have GPUs of their own; one after the other where they share them, so that one policy's
    optimizer is on a GPU at a time. The numbers are the same: neither reads what the other writes.
    """

    now: dict[str, str]  # what each policy does in its part of a step

    @property
    def learns_at_once(self) -> bool:
        return self.cfg.placement != "colocate"

    def update_policies(self, trajectories: list[Trajectory], stage: int) -> dict[str, Any]:
        if not self.learns_at_once:
            return super().update_policies(trajectories, stage)

        def learn(policy: Policy) -> dict[str, Any]:
            metrics = self.update_policy(policy, trajectories, stage)
            self.sync([policy])
            return metrics

        self.now = {policy.name: "log-probs" for policy in self.roles.policies}
        with self.clock.overlapping():
            learned = at_once({policy.name: partial(learn, policy) for policy in self.roles.policies})
        return {key: value for metrics in learned.values() for key, value in metrics.items()}

    def doing(self, name: str, phase: str) -> None:
        """Say what is done now, of two policies that learn at once by both: `solver sync, guidance update`."""
        self.now = (self.now if self.learns_at_once else {}) | {name: phase}
        self.progress.phase(", ".join(f"{name} {phase}" for name, phase in self.now.items()), self.step)
