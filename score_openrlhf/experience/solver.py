"""Trajectories in; the solver's experiences out: both turns' shaped rewards, baselines over attempts, KL per turn."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from score_openrlhf.config.choices import BASELINES_T1, BASELINES_T2, OF_ITS_PROBLEM
from score_openrlhf.config.methods import SOLVER
from score_openrlhf.config.schema import Config
from score_openrlhf.config.sizes import sizes
from score_openrlhf.experience.baselines import Draws, baseline_of, state_value
from score_openrlhf.experience.maker import PolicyExperienceMaker
from score_openrlhf.experience.rows import Row, solver_row
from score_openrlhf.objective import balanced_beta2, group_std, kl_coefs, turn_returns, turn_rewards
from score_openrlhf.rollout.trajectory import Trajectory


def ids(keys: list) -> torch.Tensor:
    """Integer ids, equal where the keys are equal."""
    seen: dict = {}
    return torch.tensor([seen.setdefault(key, len(seen)) for key in keys])


BETA2_MEMORY = 0.9  # part of the earlier steps in the running means that an adaptive beta2 follows


class SolverExperienceMaker(PolicyExperienceMaker):
    """A token of turn t earns `(G_t - b_t) - beta(t) * KL credit` (SCoRe, Kumar et al. 2024, sections 4 and 5)."""

    kl_names = MappingProxyType({1: "kl_t1", 2: "kl_t2"})

    def __init__(
        self,
        *args,
        baseline_kind: str,
        baseline_t2_kind: str,
        alpha: float,
        beta1: float,
        beta2: float,
        gamma_turn: float,
        dynamic_filtering: bool,
        beta2_max: float | None = None,
        **kwargs,
    ):
        """`beta2_max` (None: off) lets stage I's `beta2` adapt between `beta2` and it."""
        super().__init__(*args, **kwargs)
        self.baseline_t1, self.baseline_t2 = (
            baseline_of(BASELINES_T1, baseline_kind), baseline_of(BASELINES_T2, baseline_t2_kind)
        )  # fmt: skip
        self.of_the_state = self.baseline_t2 is state_value
        self.alpha, self.beta1, self.beta2, self.gamma_turn = alpha, beta1, beta2, gamma_turn
        self.dynamic_filtering = dynamic_filtering
        self.beta2_low, self.beta2_max = beta2, beta2_max
        self.magnitudes: dict[str, float] = {}  # running means of what beta2 balances

    @classmethod
    def from_config(cls, cfg: Config, *groups: Any) -> SolverExperienceMaker:
        critic = cfg.critic.enable  # whose values take the place of baselines
        return cls(
            *groups,
            pad_multiple=sizes(cfg, SOLVER).pad_multiple,
            baseline_kind="none" if critic else cfg.solver.baseline,
            baseline_t2_kind="none" if critic else cfg.solver.baseline_t2,
            gae=(cfg.critic.gamma, cfg.critic.lambd) if critic else None,
            normalise_kind=cfg.solver.normalise,
            kl_credit=cfg.solver.kl_credit,
            alpha=cfg.alpha,
            beta1=cfg.beta1,
            beta2=cfg.beta2,
            beta2_max=cfg.beta2_max,
            gamma_turn=cfg.gamma_turn,
            dynamic_filtering=cfg.solver.dynamic_filtering,
        )

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
        attempt = ids([t.attempt_key if t else None for t in real])
        R1, R2 = turn_rewards(r1, r2, stage=self.stage, alpha=self.alpha)
        G1, G2 = turn_returns(R1, R2, gamma_turn=self.gamma_turn)
        flat = self._flat_problems(G1, G2, problem, used)
        self._metrics["zero_variance_groups"] = float(flat.sum()) / max(len(flat), 1)
        if self.dynamic_filtering:
            used &= ~torch.isin(problem, problem[used].unique()[flat])
        # the base model's attempts are no draw of the current policy: they earn nothing in turn 1 and inform no other
        own1 = used & torch.tensor([not t.base_attempt if t else False for t in real])
        b1 = self.baseline_t1(Draws(G1, problem, attempt, r1, own1))
        free2 = G2  # turn 2's return up to what its state fixes
        if self.of_the_state:
            # r1 is part of the state: of r2 + alpha * (r2 - r1) its term drops out exactly
            scale = 1 + self.alpha if self.stage == 2 else 1.0
            free2, b2 = scale * r2, scale * self.baseline_t2(Draws(r2, problem, attempt, r1, used))
        else:
            b2 = self.baseline_t2(Draws(G2, problem, attempt, r1, used))
        A1, A2 = (G1 - b1) * own1, (free2 - b2) * used
        if self.normalise_kind == OF_ITS_PROBLEM:
            A1 = A1 / group_std(G1, problem, unit=attempt, mask=own1)
            A2 = A2 / group_std(free2, problem, unit=attempt, mask=used)
        num_used = used.sum().clamp(min=1)
        self._metrics["advantage_sq_t1"] = float(A1.square().sum() / own1.sum().clamp(min=1))  # masked rows have 0
        self._metrics["advantage_sq_t2"] = float(A2.square().sum() / num_used)
        self._metrics["reward"] = float((r2 * used).sum() / num_used)
        self._metrics["reward_t1"] = float((r1 * used).sum() / num_used)
        self._metrics["return_t1"] = float((G1 * used).sum() / num_used)
        self._metrics["return_t2"] = float((G2 * used).sum() / num_used)
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

    def observe(self, experiences: list[Experience], turns: list[torch.Tensor]) -> None:
        """Let an adaptive beta2 follow this batch: it weighs the next one, so that no batch chooses its own weight."""
        if self.stage == 1:
            self._metrics["beta2"] = self.beta2
        if self.beta2_max is None or self.stage != 1:
            return
        for name, number, values in (
            ("anchor", 1, [self.kl_credit_of(e, turn) for e, turn in zip(experiences, turns)]),
            ("objective", 2, [e.advantages for e in experiences]),
        ):
            chosen = torch.cat([v[turn == number] for v, turn in zip(values, turns)])
            if not len(chosen):
                return
            now = float(chosen.abs().mean())
            self.magnitudes[name] = BETA2_MEMORY * self.magnitudes.get(name, now) + (1 - BETA2_MEMORY) * now
        self.beta2 = balanced_beta2(**self.magnitudes, low=self.beta2_low, high=self.beta2_max)

    def state(self) -> dict[str, Any]:
        return {"beta2": self.beta2, "magnitudes": self.magnitudes} if self.beta2_max is not None else {}

    def restore(self, state: dict[str, Any]) -> None:
        if state and self.beta2_max is not None:
            self.beta2 = min(max(state["beta2"], self.beta2_low), self.beta2_max)
            self.magnitudes = dict(state["magnitudes"])
