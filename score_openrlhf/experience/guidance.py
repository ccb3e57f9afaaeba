"""Trajectories in; the guidance model's experiences out: REINFORCE on exactly the sampled guidance tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import torch

from score_openrlhf.experience.maker import PolicyExperienceMaker
from score_openrlhf.experience.rows import Row, guidance_row
from score_openrlhf.experience.solver import ids
from score_openrlhf.objective import guidance_baseline, guidance_rewards
from score_openrlhf.rollout.trajectory import Trajectory


def own_reward(source: str) -> Callable[[Trajectory], float]:
    """The function named by `path/to/file.py:function`; it gets a `Trajectory` and returns a guidance's reward.

    Raises ValueError if the file or the function is not there.
    """
    path_text, _, name = source.rpartition(":")
    path = Path(path_text).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"guidance.reward {source!r}: the file {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"guidance.reward {source!r}: {path} defines no function {name}(trajectory)")
    return getattr(module, name)


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
        self.baseline_kind = baseline_kind
        self.kl_coef = kl_coef
        self.dynamic_filtering = dynamic_filtering
        self.reward_func = reward_func

    def row(self, trajectory: Trajectory) -> Row:
        return guidance_row(trajectory)

    def kl_coefs(self) -> tuple[float, float]:
        return (self.kl_coef, self.kl_coef)

    def turn_advantages(self, used: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        real = [row.trajectory for row in self.rows]
        r1 = torch.tensor([t.r1 if t else 0.0 for t in real])
        r2 = torch.tensor([t.r2 if t else 0.0 for t in real])
        leak = torch.tensor([t.leak if t else 0.0 for t in real])
        state = ids([t.state if t else None for t in real])
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
        values = guidance_baseline(rewards, state, r1, kind=self.baseline_kind, mask=used)
        advantages = (rewards - values) * used
        self._metrics["reward"] = float((rewards * used).sum() / used.sum().clamp(min=1))
        return advantages, torch.zeros_like(advantages)
