"""What a rollout leaves: `Sample` (one sampled text) and `Trajectory` (attempt, guidance, revision, rewards)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from score_openrlhf.tasks.base import Grade, Problem

GRADER_FAILURES = ("grade timeout", "grade error", "leak timeout", "leak error")


@dataclass(frozen=True)
class Sample:
    """Text sampled by an engine: exactly its tokens, with the engine's log-probs of them."""

    token_ids: list[int]
    log_probs: list[float]  # log pi(token | context), one per token, at the sampling temperature
    text: str  # decoded, special tokens left out
    truncated: bool  # cut at its token budget
    version: int  # updates the policy had seen when it sampled this
    reasoning_tokens: int = 0  # of token_ids, those of its reasoning, which comes before what it answers


@dataclass
class Trajectory:
    """`(x, y1, g, y2)`: one row of the solver's batch and one of the guidance model's.

    The `K` trajectories of one attempt share it: same `group` and `attempt_index`, same tokens.
    """

    problem: Problem
    group: int  # which of the step's problems; a problem drawn twice in a step is two groups
    attempt_index: int  # which of the N attempts at the problem
    guidance_index: int  # which of the K guidances of the attempt
    prompt_ids: list[int] = field(default_factory=list)  # turn 1's prompt
    attempt: Sample | None = None  # y1
    base_attempt: bool = False  # y1 is the base model's, sampled before training: context of turn 2, no action
    guidance_prompt_ids: list[int] = field(default_factory=list)
    guidance: Sample | None = None  # g; None for method score
    bridge_ids: list[int] = field(default_factory=list)  # context between y1 and y2, the guidance in it
    revision: Sample | None = None  # y2
    grade_t1: Grade | None = None
    grade_t2: Grade | None = None
    changed_answer: bool = False  # whether revision and attempt state different answers
    leak: float = 0.0  # 1.0 if the guidance states the answer
    leak_unjudged: bool = False  # it states the answer and so did problem or attempt: a leak or not, nobody can tell
    hint_metrics: dict[str, float] = field(default_factory=dict)  # where the task knows the error
    seconds: dict[str, float] = field(default_factory=dict)  # wall time of attempt, guide, revise and grade
    failure: str | None = None  # "phase: cause" of what went wrong; the row is masked and counted
    masked: str | None = None  # why the row takes no part in training though nothing failed

    @property
    def r1(self) -> float:
        return self.grade_t1.reward if self.grade_t1 else 0.0

    @property
    def r2(self) -> float:
        return self.grade_t2.reward if self.grade_t2 else 0.0

    @property
    def usable(self) -> bool:
        """Whether the row's tokens may be trained on."""
        return self.usable_so_far and self.revision is not None

    @property
    def usable_so_far(self) -> bool:
        """Whether the next phase has something to go on from."""
        return self.failure is None and self.masked is None

    @property
    def grading_failure(self) -> str:
        """Which of GRADER_FAILURES is why the trajectory's rewards are not known; "" if the grader did not fail."""
        cause = (self.failure or "").partition(": ")[2]
        return cause if cause in GRADER_FAILURES else ""

    @property
    def ungraded(self) -> bool:
        """Whether a grade or the leak check is missing: the row is masked, for a zero is not the missing reward."""
        return bool(self.grading_failure)

    @property
    def attempt_key(self) -> tuple[int, int]:
        """Identity of `(x, y1)` within a step: trajectories with the same key share their attempt."""
        return (self.group, self.attempt_index)

    def to_json(self) -> dict[str, Any]:
        """One line of the trajectories file: ids, texts, rewards, log-prob sums, policy versions."""

        def sample(s: Sample | None) -> dict[str, Any] | None:
            if s is None:
                return None
            return {
                "text": s.text,
                "token_ids": s.token_ids,
                "log_prob_sum": sum(s.log_probs),
                "truncated": s.truncated,
                "reasoning_tokens": s.reasoning_tokens,
                "policy_version": s.version,
            }

        def grade(g: Grade | None) -> str | None:
            return g.status if g else None

        return {
            "problem_id": self.problem.id,
            "group": self.group,
            "attempt_index": self.attempt_index,
            "guidance_index": self.guidance_index,
            "problem": self.problem.text,
            "answer": self.problem.answer,
            "prompt_ids": self.prompt_ids,
            "attempt": sample(self.attempt),
            "base_attempt": self.base_attempt,
            "guidance_prompt_ids": self.guidance_prompt_ids,
            "guidance": sample(self.guidance),
            "bridge_ids": self.bridge_ids,
            "revision": sample(self.revision),
            "r1": self.r1,
            "r2": self.r2,
            "grade_t1": grade(self.grade_t1),
            "grade_t2": grade(self.grade_t2),
            "changed_answer": self.changed_answer,
            "leak": self.leak,
            "leak_unjudged": self.leak_unjudged,
            "hint_metrics": self.hint_metrics,
            "failure": self.failure,
            "masked": self.masked,
        }


def request_seed(*parts: object) -> int:
    """A seed in [0, 2^63) that depends on nothing but `parts`, so that a run can be repeated request by request."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
