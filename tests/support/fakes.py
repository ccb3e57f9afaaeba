"""Trajectories made by hand, for tests of what comes after sampling."""

from __future__ import annotations

from score_openrlhf.rollout.trajectory import Sample, Trajectory
from score_openrlhf.tasks.base import Grade, Problem


def sample(token_ids: list[int], *, text: str = "", truncated: bool = False, version: int = 0) -> Sample:
    return Sample(token_ids, [-0.5] * len(token_ids), text or " ".join(map(str, token_ids)), truncated, version)


def grade(reward: float) -> Grade:
    return Grade("right" if reward == 1.0 else "wrong")


def trajectory(
    group: int = 0,
    attempt_index: int = 0,
    guidance_index: int = 0,
    *,
    r1: float = 0.0,
    r2: float = 0.0,
    prompt=(1, 2, 3),
    attempt=(10, 11),
    bridge=(4, 5),
    revision=(20, 21, 22),
    guidance_prompt=(6, 7),
    guidance=(30, 31),
    leak: float = 0.0,
    failure: str | None = None,
    masked: str | None = None,
    hint_metrics: dict[str, float] | None = None,
    base_attempt: bool = False,
) -> Trajectory:
    return Trajectory(
        problem=Problem(f"p{group}", f"problem {group}", "7", {}),
        group=group,
        attempt_index=attempt_index,
        guidance_index=guidance_index,
        prompt_ids=list(prompt),
        attempt=sample(list(attempt)),
        base_attempt=base_attempt,
        guidance_prompt_ids=list(guidance_prompt),
        guidance=sample(list(guidance)) if guidance else None,
        bridge_ids=list(bridge),
        revision=sample(list(revision)) if revision else None,
        grade_t1=grade(r1),
        grade_t2=grade(r2),
        leak=leak,
        failure=failure,
        masked=masked,
        hint_metrics=hint_metrics or {},
    )
