"""Trajectories in; the guidance model's experiences out: REINFORCE on exactly the sampled guidance tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch

from score_openrlhf.config.choices import GUIDANCE_BASELINES
from score_openrlhf.config.methods import GUIDANCE
from score_openrlhf.config.schema import Config
from score_openrlhf.config.sizes import sizes
from score_openrlhf.errors import UserError
from score_openrlhf.experience.baselines import Draws, baseline_of
from score_openrlhf.experience.maker import PolicyExperienceMaker
from score_openrlhf.experience.rows import Row, guidance_row
from score_openrlhf.experience.solver import ids
from score_openrlhf.objective import guidance_rewards
from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.tasks.own_code import load_object, names_object


def own_reward(source: str) -> Callable[[Trajectory], float]:
    """The function named by `path/to/file.py:function`; it gets a `Trajectory` and returns a guidance's reward.

    Raises UserError if the file or the function is not there.
    """
    function = load_object(source, "guidance.reward", "function of a trajectory")

    def reward(trajectory: Trajectory) -> float:
        value = float(function(trajectory))
        if not math.isfinite(value):
            raise UserError(f"guidance.reward {source!r} gave {value} for a trajectory; it must be a finite number")
        return value

    return reward


class GuidanceExperienceMaker(PolicyExperienceMaker):
    """A guidance token earns `(R - b) - guidance_kl_coef * KL credit`, `R` from the revision it led to."""

    kl_names = MappingProxyType({1: "kl"})

    def __init__(
        self,
        *args,
        reward_kind: str,
        leak_penalty: float,
        baseline_kind: str,
        kl_coef: float,
        dynamic_filtering: bool,
        reward_func: Callable[[Trajectory], float] | None = None,
        **kwargs,
    ):
        """`reward_func` replaces `reward_kind`: a user's own reward of one trajectory."""
        super().__init__(*args, **kwargs)
        self.reward_kind = reward_kind
        self.leak_penalty = leak_penalty
        self.baseline = baseline_of(GUIDANCE_BASELINES, baseline_kind)
        self.kl_coef = kl_coef
        self.dynamic_filtering = dynamic_filtering
        self.reward_func = reward_func

    @classmethod
    def from_config(cls, cfg: Config, *groups: Any) -> GuidanceExperienceMaker:
        own = cfg.guidance
        return cls(
            *groups,
            pad_multiple=sizes(cfg, GUIDANCE).pad_multiple,
            reward_kind=own.reward,
            reward_func=own_reward(own.reward) if names_object(own.reward) else None,
            leak_penalty=own.leak_penalty,
            baseline_kind=own.baseline,
            normalise_kind=own.normalise,
            kl_credit=own.kl_credit,
            kl_coef=cfg.guidance_kl_coef,
            dynamic_filtering=own.dynamic_filtering,
        )

    def row(self, trajectory: Trajectory) -> Row:
        return guidance_row(trajectory)

    def kl_coefs(self) -> tuple[float, float]:
        return (self.kl_coef, self.kl_coef)

    def turn_advantages(self, used: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        real = [row.trajectory for row in self.rows]
        r1 = torch.tensor([t.r1 if t else 0.0 for t in real])
        r2 = torch.tensor([t.r2 if t else 0.0 for t in real])
        leak = torch.tensor([t.leak if t else 0.0 for t in real])
        state = ids([t.attempt_key if t else None for t in real])
        if self.reward_func is None:
            rewards = guidance_rewards(r1, r2, leak, kind=self.reward_kind, leak_penalty=self.leak_penalty)
        else:
            own = torch.tensor([float(self.reward_func(t)) if t and u else 0.0 for t, u in zip(real, used.tolist())])
            rewards = own - self.leak_penalty * leak
        live = state[used].unique()
        flat = torch.tensor(
            [rewards[(state == s) & used].unique().numel() == 1 for s in live.tolist()], dtype=torch.bool
        )
        self._metrics["zero_variance_groups"] = float(flat.sum()) / max(len(flat), 1)
        if self.dynamic_filtering:
            used &= ~torch.isin(state, live[flat])
        problem = ids([t.group if t else None for t in real])
        advantages = (rewards - self.baseline(Draws(rewards, problem, state, r1, used))) * used
        num_used = used.sum().clamp(min=1)
        self._metrics["advantage_sq"] = float(advantages.square().sum() / num_used)
        self._metrics["reward"] = float((rewards * used).sum() / num_used)
        return advantages, torch.zeros_like(advantages)
