"""A step's trajectories in; the shares of right answers that lean on what a reward hack leans on, and warnings, out.

An answer may be right and still show how a policy learns to be paid: it writes down the problem's own expression, it
holds several answers, or it is right by a conversion or a tolerance only. Each share is logged; growth is said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean

from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.tasks.base import GRADE_NOTES

WINDOW = 10  # steps whose mean is compared
LEAST = 0.05  # a share below this is never a warning
GROWTH = 2.0  # how many times the share of the first steps, and of the last warning
SAYS = {
    "repeats": "write down the problem's own expression",
    "several": "hold several answers",
    "unit": "are right by a conversion of units only",
    "tolerance": "are right as rounded decimals only",
}


def grading_line(trajectories: Sequence[Trajectory]) -> str | None:
    """What the terminal says of answers that could not be graded; None where all could."""
    lost = [t for t in trajectories if t.ungraded]
    if not lost:
        return None
    causes: dict[str, int] = {}
    for t in lost:
        causes[t.grading_failure] = causes.get(t.grading_failure, 0) + 1
    listed = ", ".join(f"{cause} {count}" for cause, count in sorted(causes.items()))
    first = lost[0]
    detail = next((g.detail for g in (first.grade_t1, first.grade_t2) if g and g.failed and g.detail), "")
    example = f"; problem {first.problem.id}{': ' + detail if detail else ''}"
    return f"{len(lost)} of {len(trajectories)} trajectories are masked, for the grader failed ({listed}){example}"


class HackMonitor:
    """Remembers the shares of the run's first and last steps; a share that has doubled since is worth a warning."""

    def __init__(self) -> None:
        self.first: dict[str, list[float]] = {}
        self.last: dict[str, deque[float]] = {}
        self.said: dict[str, float] = {}

    def observe(self, metrics: Mapping[str, float | None]) -> list[str]:
        """The warnings of one step, of its metrics."""
        warnings = []
        for note in GRADE_NOTES:
            share = metrics.get(f"grade/right_{note}")
            if share is None:
                continue
            first, last = self.first.setdefault(note, []), self.last.setdefault(note, deque(maxlen=WINDOW))
            last.append(share)
            if len(first) < WINDOW:
                first.append(share)
                continue
            start, now = fmean(first), fmean(last)
            if now >= max(LEAST, GROWTH * start, GROWTH * self.said.get(note, 0.0)):
                self.said[note] = now
                warnings.append(
                    f"{now:.0%} of the right answers of the last {WINDOW} steps {SAYS[note]} ({start:.0%} at the "
                    f"start): read some in trajectories/ (grade/right_{note}, docs/grading.md)"
                )
        return warnings
