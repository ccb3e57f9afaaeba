"""Trajectories in; the metrics people judge a run by out, as fractions in [0, 1]. Imports no torch.

`acc_t1`, `acc_t2`, `delta`, `i2c` and `c2i` are of all trajectories with a revision (SCoRe, section 3), in an
evaluation of all trajectories; `fix_rate` and `break_rate` are conditional on a wrong or a right first answer and
absent when there is none. The unit of every mean is the attempt: its K rows, or those of them that did not fail, weigh
as one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean

from rapidfuzz.distance import Levenshtein

from score_openrlhf.config.methods import GUIDANCE, POLICIES, SOLVER
from score_openrlhf.rollout.metric_table import STEP_METRICS
from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.tasks.base import GRADE_NOTES, Grade


def metric_names(learning: Sequence[str]) -> list[str]:
    """Those of STEP_METRICS that a step of a run has in which these policies learn."""
    others = set(POLICIES) - set(learning)
    return [name for name in STEP_METRICS if name != "step" and name.partition("/")[0] not in others]


def trajectory_metrics(trajectories: Sequence[Trajectory], *, failed_is_wrong: bool = False) -> dict[str, float]:
    """What the trajectories themselves say; conditional metrics without a case are left out.

    What failed takes no part, as in training; with `failed_is_wrong`, in an evaluation, a turn without a grade is
    wrong and a failed trajectory has no right revision. `num_failed` then says how many there are.
    """
    metrics: dict[str, float] = {}
    total, num_failed = len(trajectories), sum(t.failure is not None for t in trajectories)
    metrics["rollout/num_trajectories"] = total
    metrics["rollout/failed"] = num_failed / max(total, 1)
    metrics["rollout/masked"] = sum(t.masked is not None for t in trajectories) / max(total, 1)
    if failed_is_wrong:
        metrics["num_failed"] = num_failed
    guided = [t for t in trajectories if t.guidance]
    for name, part in (("t1", "attempt"), ("guidance", "guidance"), ("t2", "revision")):
        samples = [(t.attempt_key, sample) for t in trajectories if (sample := getattr(t, part))]
        if samples:
            metrics[f"truncated_{name}"] = attempt_mean((key, s.truncated) for key, s in samples)
        if any(s.reasoning_tokens for _, s in samples):
            metrics[f"reasoning_tokens_{name}"] = attempt_mean((key, s.reasoning_tokens) for key, s in samples)
            metrics[f"truncated_reasoning_{name}"] = attempt_mean(
                (key, s.truncated and s.reasoning_tokens == len(s.token_ids)) for key, s in samples
            )
    # an attempt's grade stands in each of its K rows and counts once, as do its K revisions' together
    grades = [
        ((t.attempt_key, turn), g.status) for t in trajectories for turn, g in ((1, t.grade_t1), (2, t.grade_t2)) if g
    ]
    for status in ("timeout", "error", "unparsable"):
        found = [(unit, given == status) for unit, given in grades]
        metrics[f"grade/{status}"] = attempt_mean(found) if found else 0.0
    metrics["grade/leak_undecided"] = sum(t.grading_failure.startswith("leak") for t in trajectories) / max(total, 1)
    metrics |= right_answer_shares([g for t in trajectories for g in (t.grade_t1, t.grade_t2) if g])
    revised = [t for t in trajectories if t.revision is not None and t.failure is None]
    counted = list(trajectories) if failed_is_wrong else revised
    if not counted:
        return metrics
    if any(t.base_attempt for t in counted):
        metrics["rollout/base_attempts"] = attempt_mean((t.attempt_key, t.base_attempt) for t in counted)
        # a given attempt says nothing of the policy's first answers; where all are given there is no other to look at
        counted = [t for t in counted if not t.base_attempt] or counted
        revised = [t for t in revised if not t.base_attempt] or revised
    right = [(t.attempt_key, _right(t.grade_t1), t.failure is None and _right(t.grade_t2)) for t in counted]
    metrics |= {
        "acc_t1": attempt_mean((key, one) for key, one, _ in right),
        "acc_t2": attempt_mean((key, two) for key, _, two in right),
        "delta": attempt_mean((key, two - one) for key, one, two in right),
        "i2c": attempt_mean((key, two and not one) for key, one, two in right),
        "c2i": attempt_mean((key, one and not two) for key, one, two in right),
    }
    for name, first in (("fix_rate", False), ("break_rate", True)):
        changed = [(key, one != two) for key, one, two in right if one == first]
        if changed:
            metrics[name] = attempt_mean(changed)
    if revised:
        edits = (
            (t.attempt_key, Levenshtein.normalized_distance(_words(t.attempt), _words(t.revision))) for t in revised
        )
        metrics["edit_ratio"] = attempt_mean(edits)
        metrics["changed_answer"] = attempt_mean((t.attempt_key, t.changed_answer) for t in revised)
    if guided:
        metrics["guidance/leak"] = attempt_mean((t.attempt_key, t.leak) for t in guided)
        metrics["guidance/leak_unjudged"] = attempt_mean((t.attempt_key, t.leak_unjudged) for t in guided)
        texts = [t.guidance.text for t in guided if t.guidance]
        metrics["guidance/distinct"] = len(set(texts)) / len(texts)
        metrics["guidance/length"] = attempt_mean(
            (t.attempt_key, len(t.guidance.token_ids)) for t in guided if t.guidance
        )
        for key in sorted({key for t in trajectories for key in t.hint_metrics}):
            known = ((t.attempt_key, t.hint_metrics[key]) for t in trajectories if key in t.hint_metrics)
            metrics[f"guidance/{key}"] = attempt_mean(known)
    return metrics


def right_answer_shares(grades: Sequence[Grade]) -> dict[str, float]:
    """`grade/right_repeats` and so on: of the right answers, those with each note; none where no answer is right."""
    right = [grade for grade in grades if grade.correct]
    if not right:
        return {}
    return {f"grade/right_{note}": fmean(note in grade.notes for grade in right) for note in GRADE_NOTES}


def attempt_mean(values: Iterable[tuple[Hashable, float]]) -> float:
    """The mean over units (attempts) of the mean over each one's values; raises StatisticsError if there is none."""
    of_each: dict[Hashable, list[float]] = {}
    for unit, value in values:
        of_each.setdefault(unit, []).append(float(value))
    return fmean(map(fmean, of_each.values()))


def _right(grade: Grade | None) -> bool:
    return grade is not None and grade.correct


def timing_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Mean seconds a trajectory spent in each phase; phases of different trajectories overlap in time."""
    phases = sorted({phase for t in trajectories for phase in t.seconds})
    return {f"timing/{p}": fmean(t.seconds[p] for t in trajectories if p in t.seconds) for p in phases}


def num_sampled_tokens(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """Tokens each model sampled; an attempt shared by K trajectories is counted once."""
    attempts = {t.attempt_key: len(t.attempt.token_ids) for t in trajectories if t.attempt and not t.base_attempt}
    revisions = sum(len(t.revision.token_ids) for t in trajectories if t.revision)
    guidance = sum(len(t.guidance.token_ids) for t in trajectories if t.guidance)
    return {SOLVER: sum(attempts.values()) + revisions, GUIDANCE: guidance}


def is_number(value: float | None) -> bool:
    """Whether a metric can be written: JSON has no NaN and no infinity."""
    return value is not None and math.isfinite(value)


def _words(sample) -> list[str]:
    return sample.text.split()
