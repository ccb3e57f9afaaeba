"""Trajectories in; the solver's experiences out: both turns' shaped rewards, baselines over attempts, KL per turn."""

from __future__ import annotations

from types import MappingProxyType

import torch

from score_openrlhf.experience.maker import PolicyExperienceMaker
from score_openrlhf.experience.rows import Row, solver_row
from score_openrlhf.objective import baseline, group_std, kl_coefs, turn_returns, turn_rewards
from score_openrlhf.rollout.trajectory import Trajectory


def ids(keys: list) -> torch.Tensor:
    """Integer ids, equal where the keys are equal."""
    seen: dict = {}
    return torch.tensor([seen.setdefault(key, len(seen)) for key in keys])


class SolverExperienceMaker(PolicyExperienceMaker):
    """A token of turn t earns `(G_t - b_t) - beta(t) * KL credit` (SCoRe, Kumar et al. 2024, sections 4 and 5)."""

    kl_names = MappingProxyType({1: "kl_t1", 2: "kl_t2"})

    def __init__(
        self,
        *args,
        baseline_kind: str,
        alpha: float,
        beta1: float,
        beta2: float,
        gamma_turn: float,
        dynamic_filtering: bool,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.baseline_kind = baseline_kind
        self.alpha, self.beta1, self.beta2, self.gamma_turn = alpha, beta1, beta2, gamma_turn
        self.dynamic_filtering = dynamic_filtering

    def row(self, trajectory: Trajectory) -> Row:
        return solver_row(trajectory)

    def kl_coefs(self) -> tuple[float, float]:
        return kl_coefs(stage=self.stage, beta1=self.beta1, beta2=self.beta2)

    def turns_not_normalised(self) -> tuple[int, ...]:
        return (1,) if self.stage == 1 else ()  # stage I's turn 1 has no reward, only its anchor

    def turn_advantages(self, used: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        real = [row.trajectory for row in self.rows]
        r1 = torch.tensor([t.r1 if t else 0.0 for t in real])
        r2 = torch.tensor([t.r2 if t else 0.0 for t in real])
        problem = ids([t.group if t else None for t in real])
        attempt = ids([t.state if t else None for t in real])
        R1, R2 = turn_rewards(r1, r2, stage=self.stage, alpha=self.alpha)
        G1, G2 = turn_returns(R1, R2, gamma_turn=self.gamma_turn)
        flat = self._flat_problems(G1, G2, problem, used)
        self._metrics["zero_variance_groups"] = float(flat.sum()) / max(len(flat), 1)
        if self.dynamic_filtering:
            used &= ~torch.isin(problem, problem[used].unique()[flat])
        keep = {"kind": self.baseline_kind, "unit": attempt, "mask": used}
        A1 = (G1 - baseline(G1, problem, **keep)) * used
        A2 = (G2 - baseline(G2, problem, **keep)) * used
        if self.normalise_kind == "group_std":
            A1 = A1 / group_std(G1, problem, unit=attempt, mask=used)
            A2 = A2 / group_std(G2, problem, unit=attempt, mask=used)
        self._metrics["reward"] = float((r2 * used).sum() / used.sum().clamp(min=1))
        self._metrics["reward_t1"] = float((r1 * used).sum() / used.sum().clamp(min=1))
        self._metrics["return_t1"] = float((G1 * used).sum() / used.sum().clamp(min=1))
        self._metrics["return_t2"] = float((G2 * used).sum() / used.sum().clamp(min=1))
        return A1, A2

    def _flat_problems(self, G1, G2, problem, used) -> torch.Tensor:
        """For each live problem in order of id: whether neither turn's return varies over its rows."""
        live = problem[used].unique()
        return torch.tensor(
            [
                bool(
                    (G1[(problem == p) & used].unique().numel() == 1)
                    and (G2[(problem == p) & used].unique().numel() == 1)
                )
                for p in live.tolist()
            ],
            dtype=torch.bool,
        )
