"""`RLGuidedSCoReTrainer`: SCoRe's loop with a second policy, the guidance model, trained by REINFORCE on the same
trajectories."""

from __future__ import annotations

from score_openrlhf.config.derive import GUIDANCE, SOLVER, is_update_step
from score_openrlhf.policies.policy import Policy
from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.trainer.metrics import STEP_METRICS
from score_openrlhf.trainer.score import SCoReTrainer


class RLGuidedSCoReTrainer(SCoReTrainer):
    """Updates the solver, then the guidance model, then sends both to their engines."""

    metric_names = tuple(name for name in STEP_METRICS if name != "step")

    @property
    def guidance(self) -> Policy:
        assert self.roles.guidance is not None
        return self.roles.guidance

    def update_policies(self, trajectories: list[Trajectory], stage: int) -> dict[str, float]:
        solver, guidance = self.roles.solver, self.guidance
        metrics = self.update_policy(solver, trajectories, stage, due=is_update_step(self.cfg, SOLVER, self.step))
        metrics |= self.update_policy(guidance, trajectories, stage, due=is_update_step(self.cfg, GUIDANCE, self.step))
        self.sync([solver, guidance])
        return metrics
