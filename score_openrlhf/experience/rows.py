"""Trajectories in; OpenRLHF `Experience` rows out: one per trajectory and policy, padded to optimizer windows.

A row of the solver is `prompt | y1 | bridge | y2` with both answers as actions; a row of the guidance model is
`prompt(x, y1) | g` with the guidance as action. A row that failed or was masked keeps its place with an empty mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from score_openrlhf.rollout.trajectory import Sample, Trajectory


@dataclass
class Row:
    """One sequence of a policy's batch; lengths in tokens, positions in the sequence."""

    trajectory: Trajectory | None  # None: padding
    token_ids: list[int]
    spans: list[tuple[int, Sample]]  # start of each sampled text whose tokens are actions
    use: bool  # whether its tokens are actions
    turn_2_start: int | None = None  # position of the first token of turn 2; None: the row has one turn

    @property
    def turn_boundary(self) -> int:
        """Where turn 2 begins in action coordinates (token i is action i - 1); past the end for one turn."""
        return len(self.token_ids) if self.turn_2_start is None else self.turn_2_start - 1

    def experience(self) -> Experience:
        """The row as the host's `Experience` with a batch of one."""
        length = len(self.token_ids)
        action_mask = torch.zeros(length, dtype=torch.long)
        rollout_log_probs = torch.zeros(length)
        if self.use:
            for start, sample in self.spans:
                end = start + len(sample.token_ids)
                action_mask[start:end] = 1
                rollout_log_probs[start:end] = torch.tensor(sample.log_probs)
        return Experience(
            sequences=torch.tensor([self.token_ids], dtype=torch.long),
            attention_mask=torch.ones(1, length, dtype=torch.long),
            action_mask=action_mask[None, 1:],
            rollout_log_probs=rollout_log_probs[None, 1:],
            rewards=torch.zeros(1),  # set by the experience maker from r1 and r2; None would ask a reward model
            total_length=torch.tensor([float(length)]),
            info={},
        )


def solver_row(trajectory: Trajectory) -> Row:
    """`prompt | y1 | bridge | y2`, the revision in exactly the context it was sampled in.

    An attempt of the base model is context: the current policy did not sample it.
    """
    token_ids = list(trajectory.prompt_ids)
    spans, turn_2_start = [], None
    if trajectory.attempt is not None:
        if not trajectory.base_attempt:
            spans.append((len(token_ids), trajectory.attempt))
        token_ids += trajectory.attempt.token_ids
    if trajectory.attempt is not None and trajectory.revision is not None:
        token_ids += trajectory.bridge_ids
        turn_2_start = len(token_ids)
        spans.append((turn_2_start, trajectory.revision))
        token_ids += trajectory.revision.token_ids
    return Row(trajectory, token_ids, spans, use=trajectory.usable, turn_2_start=turn_2_start)


def guidance_row(trajectory: Trajectory) -> Row:
    """`prompt(x, y1) | g`: exactly the guidance the revision was sampled under."""
    token_ids = list(trajectory.guidance_prompt_ids)
    spans = []
    if trajectory.guidance is not None:
        spans.append((len(token_ids), trajectory.guidance))
        token_ids += trajectory.guidance.token_ids
    return Row(trajectory, token_ids, spans, use=trajectory.usable and trajectory.guidance is not None)


def pad_rows(rows: list[Row], multiple: int) -> list[Row]:
    """`rows` followed by masked rows up to a multiple of `multiple`; rows too short to have an action are masked.

    The host gives 9 rows to 4 ranks as 3, 3, 3, 0 and then hangs under ZeRO-3, and drops what does not fill a window.
    """
    filler = min((row.token_ids for row in rows if len(row.token_ids) >= 2), key=len, default=None)
    if filler is None:
        raise ValueError(
            f"none of the {len(rows)} trajectories has a prompt of two tokens or more; nothing to pad with"
        )
    whole = [row if len(row.token_ids) >= 2 else Row(row.trajectory, filler, [], use=False) for row in rows]
    return whole + [Row(None, filler, [], use=False) for _ in range(-len(rows) % multiple)]


def turn_map(action_mask: torch.Tensor, turn_boundary: torch.Tensor) -> torch.Tensor:
    """0 (no action), 1 or 2 for every action position: `(B, A)` from the mask and `(B,)` boundaries."""
    positions = torch.arange(action_mask.shape[1])[None, :]
    return action_mask.long() * (1 + (positions >= turn_boundary[:, None]).long())
