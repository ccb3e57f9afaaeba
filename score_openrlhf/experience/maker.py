"""A policy's rows in; experiences with advantages out, through the host's own forward passes.

`PolicyExperienceMaker` is what both policies share: the batch is padded, OpenRLHF's `RemoteExperienceMaker` computes
log-probs and k1 estimates, and the subclass says what advantage each sampled token earns (`solver.py`, `guidance.py`).
Everything is looked up by row number, never by position in a group.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

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

    def make_batch(self, trajectories: list[Trajectory], *, stage: int) -> PolicyBatch:
        """The policy's batch for one step, from all of the step's trajectories."""
        self.stage = stage
        self.rows = pad_rows([self.row(t) for t in trajectories], self.pad_multiple)
        self._metrics: dict[str, float] = {}
        experiences = self.make_experience_batch([row.experience() for row in self.rows])
        num_tokens = sum(int(e.action_mask.sum()) for e in experiences)
        has_signal = any(bool((e.advantages * e.action_mask).any()) for e in experiences)
        if num_tokens:
            # the surrogate before the first optimizer step (ratio 1), whatever ranks and micro batches there are
            total = sum(float((e.advantages * e.action_mask).sum()) for e in experiences)
            self._metrics["loss"] = -total / num_tokens
        return PolicyBatch(experiences, self._metrics, num_tokens, has_signal)

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

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Fill `advantages` and `returns` `(B, A)`, in place of the host's, which sums both turns into one reward."""
        used = torch.tensor([row.use for row in self.rows])
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
        if self.normalise_kind in ("mean", "std"):
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
