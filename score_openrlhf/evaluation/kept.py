"""Finished trajectories of an evaluation in; on disk at once, and out again when the same evaluation goes on.

A trajectory's place is its condition, seed, problem and attempt. What failed is not kept: it is tried again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from score_openrlhf.journal import Journal
from score_openrlhf.rollout.trajectory import Sample, Trajectory
from score_openrlhf.tasks.base import Grade, Problem

Place = tuple[str, int, int, int]  # condition, seed, problem, attempt


class Kept:
    """The finished trajectories of an evaluation; without a journal they are not kept."""

    def __init__(self, problems: Sequence[Problem], journal: Journal | None = None):
        self.journal = journal
        self._found: dict[Place, Trajectory] = {}
        for record in journal.records if journal else []:
            condition, seed, group, index = record["place"]
            self._found[condition, seed, group, index] = trajectory_of(record["trajectory"], problems[group])

    def __len__(self) -> int:
        return len(self._found)

    def under(self, condition: str, seed: int) -> KeptCondition:
        """Those of one condition and seed."""
        return KeptCondition(self, condition, seed)

    def get(self, place: Place) -> Trajectory | None:
        return self._found.get(place)

    def add(self, place: Place, trajectory: Trajectory) -> None:
        if trajectory.failure is None and self.journal is not None:
            self._found[place] = trajectory
            self.journal.add({"place": place, "trajectory": record_of(trajectory)})


@dataclasses.dataclass(frozen=True)
class KeptCondition:
    """The finished trajectories of one condition and seed."""

    kept: Kept
    condition: str
    seed: int

    def get(self, group: int, index: int) -> Trajectory | None:
        return self.kept.get((self.condition, self.seed, group, index))

    def add(self, trajectory: Trajectory) -> None:
        self.kept.add((self.condition, self.seed, *trajectory.attempt_key), trajectory)


def record_of(trajectory: Trajectory) -> dict[str, Any]:
    """All of a trajectory but its problem, JSON-ready and without loss."""
    fields = {field.name: getattr(trajectory, field.name) for field in dataclasses.fields(trajectory)}
    return {
        name: dataclasses.asdict(value) if isinstance(value, (Sample, Grade)) else value
        for name, value in fields.items()
        if name != "problem"
    }


def trajectory_of(record: dict[str, Any], problem: Problem) -> Trajectory:
    """The trajectory that `record_of` was given."""
    nested: dict[str, Callable[..., Any]] = {
        "attempt": Sample,
        "guidance": Sample,
        "revision": Sample,
        "grade_t1": grade_of,
        "grade_t2": grade_of,
    }
    made = {name: kind(**record[name]) for name, kind in nested.items() if record[name] is not None}
    return Trajectory(problem, **{**record, **made})


def grade_of(notes: Sequence[str] = (), **fields: Any) -> Grade:
    """The grade whose fields these are; JSON makes lists of tuples."""
    return Grade(notes=tuple(notes), **fields)
