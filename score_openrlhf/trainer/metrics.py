"""Trajectories in; the metrics people judge a run by out, as fractions in [0, 1]. Imports no torch.

`acc_t1`, `acc_t2`, `delta`, `i2c` and `c2i` are of all trajectories with a revision (SCoRe, section 3); `fix_rate` and
`break_rate` are conditional on a wrong or a right first answer and absent when there is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from rapidfuzz.distance import Levenshtein

from score_openrlhf.rollout.trajectory import Trajectory

PER_POLICY = (
    "action_tokens", "engine_logprob_diff", "grad_norm", "loss", "lr", "no_signal", "optimizer_steps", "reward",
    "sampled_tokens", "skipped_windows", "updated", "updates", "zero_variance_groups",
)  # fmt: skip
# The names on every line of metrics.jsonl of a run with two policies; null where a step has no case for one.
STEP_METRICS = (
    "step", "stage", "acc_t1", "acc_t2", "delta", "i2c", "c2i", "fix_rate", "break_rate", "edit_ratio",
    "changed_answer",
    "solver/kl_t1", "solver/kl_t2", "guidance/kl", "guidance/leak", "guidance/distinct", "guidance/length",
    "truncated_t1", "truncated_guidance", "truncated_t2", "grade/timeout", "grade/error", "grade/unparsable",
    *(f"{policy}/{name}" for policy in ("solver", "guidance") for name in PER_POLICY),
    *(f"timing/{phase}" for phase in ("attempt", "guide", "revise", "grade", "rollout", "logprob", "solver_train",
                                      "guidance_train", "sync", "total")),
    "tokens_per_second", "rollout/num_trajectories", "rollout/failed", "rollout/masked",
)  # fmt: skip


def trajectory_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """What the trajectories themselves say; conditional metrics without a case are left out."""
    metrics: dict[str, float] = {}
    total = len(trajectories)
    done = [t for t in trajectories if t.revision is not None and t.failure is None]
    metrics["rollout/num_trajectories"] = total
    metrics["rollout/failed"] = sum(t.failure is not None for t in trajectories) / max(total, 1)
    metrics["rollout/masked"] = sum(t.masked is not None for t in trajectories) / max(total, 1)
    attempts = [t.attempt for t in trajectories if t.attempt]
    guidances = [t.guidance for t in trajectories if t.guidance]
    revisions = [t.revision for t in trajectories if t.revision]
    for name, samples in (("t1", attempts), ("guidance", guidances), ("t2", revisions)):
        if samples:
            metrics[f"truncated_{name}"] = fmean(s.truncated for s in samples)
    grades = [g.status for t in trajectories for g in (t.grade_t1, t.grade_t2) if g]
    counts = Counter(grades)
    for status in ("timeout", "error", "unparsable"):
        metrics[f"grade/{status}"] = counts[status] / max(len(grades), 1)
    if not done:
        return metrics
    right1 = [bool(t.grade_t1 and t.grade_t1.correct) for t in done]
    right2 = [bool(t.grade_t2 and t.grade_t2.correct) for t in done]
    fixed = [not a and b for a, b in zip(right1, right2)]
    broken = [a and not b for a, b in zip(right1, right2)]
    metrics |= {
        "acc_t1": fmean(right1),
        "acc_t2": fmean(right2),
        "delta": fmean(right2) - fmean(right1),
        "i2c": fmean(fixed),
        "c2i": fmean(broken),
        "edit_ratio": fmean(Levenshtein.normalized_distance(_words(t.attempt), _words(t.revision)) for t in done),
        "changed_answer": fmean(t.changed_answer for t in done),
    }
    if not all(right1):
        metrics["fix_rate"] = sum(fixed) / right1.count(False)
    if any(right1):
        metrics["break_rate"] = sum(broken) / right1.count(True)
    if guidances:
        metrics["guidance/leak"] = fmean(t.leak for t in trajectories if t.guidance)
        metrics["guidance/distinct"] = len({g.text for g in guidances}) / len(guidances)
        metrics["guidance/length"] = fmean(len(g.token_ids) for g in guidances)
        for key in sorted({key for t in trajectories for key in t.hint_metrics}):
            metrics[f"guidance/{key}"] = fmean(t.hint_metrics[key] for t in trajectories if key in t.hint_metrics)
    return metrics


def timing_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Mean seconds a trajectory spent in each phase; phases of different trajectories overlap in time."""
    phases = sorted({phase for t in trajectories for phase in t.seconds})
    return {f"timing/{p}": fmean(t.seconds[p] for t in trajectories if p in t.seconds) for p in phases}


def num_sampled_tokens(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """Tokens each model sampled; an attempt shared by K trajectories is counted once."""
    attempts = {t.state: len(t.attempt.token_ids) for t in trajectories if t.attempt}
    revisions = sum(len(t.revision.token_ids) for t in trajectories if t.revision)
    guidance = sum(len(t.guidance.token_ids) for t in trajectories if t.guidance)
    return {"solver": sum(attempts.values()) + revisions, "guidance": guidance}


def _words(sample) -> list[str]:
    return sample.text.split()
