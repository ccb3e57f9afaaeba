"""A policy's rows in; experiences with advantages out, through the host's own forward passes.

`PolicyExperienceMaker` is what both policies share: the batch is padded, OpenRLHF's `RemoteExperienceMaker` computes
log-probs and k1 estimates, and the subclass says what advantage each sampled token earns (`solver.py`, `guidance.py`).
Everything is looked up by row number, never by position in a group.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from score_openrlhf.config.choices import OF_ITS_PROBLEM, UNCHANGED
from score_openrlhf.config.schema import Config
from score_openrlhf.experience.rows import Row, pad_rows, turn_map
from score_openrlhf.objective import normalise, token_advantages, token_rewards, turn_gae
from score_openrlhf.rollout.trajectory import Trajectory


@dataclass
class PolicyBatch:
    """What one policy is updated with: the host's experiences and what the driver logs about them."""

    experiences: list[Experience]
    metrics: dict[str, float] = field(default_factory=dict)
    num_action_tokens: int = 0
    has_signal: bool = False  # whether any action token has an advantage other than zero
    nonfinite: str = ""  # what is NaN or infinite among the models' and engines' numbers: such a batch is left out


class PolicyExperienceMaker(RemoteExperienceMaker):
    """The host's experience maker with advantages computed per turn from ids."""

    kl_names: Mapping[int, str]  # the metric that says each turn's distance to the reference

    def __init__(
        self,
        *args,
        pad_multiple: int,
        normalise_kind: str,
        kl_credit: str,
        gae: tuple[float, float] | None = None,
        **kwargs,
    ):
        """`pad_multiple`: rows are padded to whole optimizer windows; `gae`: a critic's `(gamma, lambd)`."""
        super().__init__(*args, **kwargs)
        self.pad_multiple = pad_multiple
        self.normalise_kind = normalise_kind
        self.kl_credit = kl_credit
        self.gae = gae
        self.rows: list[Row] = []
        self.stage = 1

    @classmethod
    @abstractmethod
    def from_config(cls, cfg: Config, *groups: Any) -> PolicyExperienceMaker:
        """The maker of a run; `groups` are the host's own arguments, as `Policy.use_maker` has them."""

    def make_batch(self, trajectories: list[Trajectory], *, stage: int) -> PolicyBatch:
        """The policy's batch for one step, from all of the step's trajectories."""
        self.stage = stage
        self.rows = pad_rows([self.row(t) for t in trajectories], self.pad_multiple)
        self._metrics: dict[str, float] = {}
        self._nonfinite = ""
        experiences = self.make_experience_batch([row.experience() for row in self.rows])
        num_tokens = sum(int(e.action_mask.sum()) for e in experiences)
        has_signal = any(bool((e.advantages * e.action_mask).any()) for e in experiences)
        if num_tokens:
            # the surrogate before the first optimizer step (ratio 1), whatever ranks and micro batches there are
            total = sum(float((e.advantages * e.action_mask).sum()) for e in experiences)
            self._metrics["loss"] = -total / num_tokens
        return PolicyBatch(experiences, self._metrics, num_tokens, has_signal, self._nonfinite)

    @abstractmethod
    def row(self, trajectory: Trajectory) -> Row:
        """The policy's row of a trajectory."""

    @abstractmethod
    def turn_advantages(self, used: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`A1, A2`, each `(B,)` over `self.rows`: return minus baseline of each turn; `used` `(B,)` marks live rows.

        May add to `self._metrics` and drop rows by clearing `used` in place.
        """

    @abstractmethod
    def kl_coefs(self) -> tuple[float, float]:
        """KL weight of turn 1 and turn 2 at the current stage."""

    def turns_not_normalised(self) -> tuple[int, ...]:
        """Turns whose advantages keep their scale whatever `normalise` says."""
        return ()

    def observe(self, experiences: list[Experience], turns: list[torch.Tensor]) -> None:
        """Learn from a batch's advantages and turns `(B, A)`, before they are normalised, what the next one needs."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the maker, as JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""

    def kl_credit_of(self, experience: Experience, turn: torch.Tensor) -> torch.Tensor:
        """KL credit `(B, A)` of each token, in nats, without its weight."""
        zero = torch.zeros(len(turn))
        return -token_advantages(zero, zero, experience.kl, turn, kl_coef=(1.0, 1.0), kl_credit=self.kl_credit)

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Fill `advantages` and `returns` `(B, A)`, in place of the host's, which sums both turns into one reward."""
        used = torch.tensor([row.use for row in self.rows])
        self._nonfinite = nonfinite_numbers(experiences)
        if self._nonfinite:
            used[:] = False
            for experience in experiences:
                experience.action_mask = torch.zeros_like(experience.action_mask)
                experience.kl = torch.zeros_like(experience.kl)
        advantage_1, advantage_2 = self.turn_advantages(used)
        self._log_kl(experiences)
        turns = []
        for experience in experiences:
            index = torch.tensor(experience.index)
            boundary = torch.tensor([self.rows[i].turn_boundary for i in experience.index])
            experience.action_mask = experience.action_mask * used[index][:, None]  # rows dropped by a filter
            turn = turn_map(experience.action_mask, boundary)
            experience.advantages, experience.returns = self._credit(
                experience, advantage_1[index].float(), advantage_2[index].float(), turn
            )
            turns.append(turn)
        self.observe(experiences, turns)
        if self.normalise_kind not in (UNCHANGED, OF_ITS_PROBLEM):
            self._normalise(experiences, turns)
        for experience in experiences:
            # the host moves every key of info to every rank and logs a plain mean; ours are computed on the driver
            experience.info = {"return": (experience.returns * experience.action_mask).sum(-1)}
            experience.kl = None
        return experiences

    def _credit(
        self, experience: Experience, advantage_1: torch.Tensor, advantage_2: torch.Tensor, turn: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages and returns `(B, A)` of tokens: the same over a turn, or estimated with the critic's values."""
        coefs = self.kl_coefs()
        if self.gae is None:
            advantages = token_advantages(
                advantage_1, advantage_2, experience.kl, turn, kl_coef=coefs, kl_credit=self.kl_credit
            )
            return advantages, advantages.clone()
        rewards = token_rewards(advantage_1, advantage_2, experience.kl, turn, kl_coef=coefs)
        return turn_gae(rewards, experience.values.float(), turn, gamma=self.gae[0], lambd=self.gae[1])

    def _normalise(self, experiences: list[Experience], turns: list[torch.Tensor]) -> None:
        """Normalise over the whole batch: statistics of one micro batch would depend on how rows were split."""
        flat = torch.cat([e.advantages.flatten() for e in experiences])[None]
        flat_turn = torch.cat([turn.flatten() for turn in turns])[None]
        done = normalise(flat, flat_turn, kind=self.normalise_kind, skip_turns=self.turns_not_normalised())[0]
        for experience, part in zip(experiences, done.split([e.advantages.numel() for e in experiences])):
            experience.advantages = part.view_as(experience.advantages)

    def _log_kl(self, experiences: list[Experience]) -> None:
        """k1 estimate per turn in nats (sum over the turn's tokens, mean over rows), and how far engines are off."""
        sums = torch.zeros(3)
        counts = torch.zeros(3)
        gap = torch.zeros(2)
        for experience in experiences:
            boundary = torch.tensor([self.rows[i].turn_boundary for i in experience.index])
            turn = turn_map(experience.action_mask, boundary)
            for t in (1, 2):
                mask = (turn == t).float()
                sums[t] += (experience.kl * mask).sum()
                counts[t] += (mask.sum(-1) > 0).sum()
            difference = (experience.action_log_probs - experience.rollout_log_probs).abs() * experience.action_mask
            gap += torch.stack([difference.sum(), experience.action_mask.sum().float()])
        for t, name in self.kl_names.items():
            if counts[t]:
                self._metrics[name] = float(sums[t] / counts[t])
        if gap[1]:
            self._metrics["engine_logprob_diff"] = float(gap[0] / gap[1])


# What an update reads of an experience and is a number of the models', the engines' or the rewards'.
_READ = {
    "rollout_log_probs": "the engine's log-probs",
    "action_log_probs": "the policy's own log-probs",
    "base_action_log_probs": "the reference's log-probs",
    "kl": "distances to the reference",
    "values": "the critic's values",
    "returns": "returns",
    "advantages": "advantages",
}


def nonfinite_numbers(experiences: list[Experience]) -> str:
    """Which numbers of a batch are not finite, and in how many rows; "" if all are.

    Masked positions are looked at too: the host multiplies by the mask, and 0 times NaN is NaN.
    """
    counts: dict[str, int] = {}
    for experience in experiences:
        for key, words in _READ.items():
            value = getattr(experience, key)
            if value is not None:
                bad = int((~torch.isfinite(value)).flatten(1).any(-1).sum())
                counts[words] = counts.get(words, 0) + bad
    return ", ".join(f"{words} in {count} rows" for words, count in counts.items() if count)
