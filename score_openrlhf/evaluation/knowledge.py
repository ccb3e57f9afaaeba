"""A task and a graded sample in; what the sample votes for in a majority out."""

from __future__ import annotations

from score_openrlhf.rollout.trajectory import Sample
from score_openrlhf.tasks.base import Grade, Task

RIGHT = "\0right"  # no text can say this


def vote(task: Task, sample: Sample, grade: Grade) -> str | None:
    """What a sample votes for: the gold answer if it is right, else the answer it states.

    None (an abstention) where the grader could read no answer.
    """
    if grade.correct:
        return RIGHT
    return task.stated_answer(sample.text) if grade.status == "wrong" else None
