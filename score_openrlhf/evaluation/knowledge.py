"""Votes of a majority in; the same with one spelling for answers that are equal to the grader out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from score_openrlhf.config.schema import TaskConfig
from score_openrlhf.tasks.pool import GradingPool

RIGHT = "\0right"  # no text can say this
Ballot = tuple[str | None, str | None]  # what an attempt and its revision vote for
# Pairs of answers -> whether the two are equal; None where the grader could not tell in time.
Equal = Callable[[list[tuple[str, str]]], list[bool | None]]
Merging = Generator[tuple[str, str], bool | None, dict[str, str]]  # asks about pairs, and is sent what they are


def same_votes(ballots: dict[int, list[Ballot]], equal: Equal) -> dict[int, list[Ballot]]:
    """The ballots of each problem with one spelling for all answers of the problem that are equal to one another.

    An answer takes the spelling of the first before it that it equals; all problems are asked about side by side.
    """
    same: dict[int, dict[str, str]] = {}
    asking: dict[int, tuple[Merging, tuple[str, str]]] = {}

    def go_on(group: int, merging: Merging, verdict: bool | None) -> None:
        try:
            asking[group] = (merging, merging.send(verdict))
        except StopIteration as done:
            same[group] = done.value
            asking.pop(group, None)

    for group, cast in ballots.items():
        answers = dict.fromkeys(answer for ballot in cast for answer in ballot if answer not in (None, RIGHT))
        go_on(group, _merged(answers), None)
    while asking:
        waiting = list(asking.items())
        verdicts = equal([pair for _, (_, pair) in waiting])
        for (group, (merging, _)), verdict in zip(waiting, verdicts, strict=True):
            go_on(group, merging, verdict)

    def spelled(group: int, answer: str | None) -> str | None:
        return answer if answer is None else same[group].get(answer, answer)

    return {
        group: [(spelled(group, first), spelled(group, second)) for first, second in cast]
        for group, cast in ballots.items()
    }


def _merged(answers: Iterable[str]) -> Merging:
    """Each answer -> the first that it equals; yields the pairs to compare, and is sent what came of them."""
    first_of: dict[str, str] = {}
    for answer in answers:
        first_of[answer] = answer
        for other in list(dict.fromkeys(first_of.values()))[:-1]:
            if (yield answer, other):
                first_of[answer] = other
                break
    return first_of


def equal_in(pool: GradingPool) -> Equal:
    """The grader's equality, asked of a pool's processes, since a sampled answer may be anything."""

    def equal(pairs: list[tuple[str, str]]) -> list[bool | None]:
        asked = [pool.equals(answer, other) for answer, other in pairs]
        return [same if status == "ok" else None for same, status in (future.result() for future in asked)]

    return equal


class OwnProcesses:
    """The grader's equality in processes of its own, started when the first two answers are to be compared."""

    def __init__(self, task: TaskConfig):
        self.settings: dict[str, Any] = {
            "processes": task.grader_processes,
            "timeout_seconds": task.grade_timeout_seconds,
            "max_answer_chars": task.max_answer_chars,
            "unevaluated": task.unevaluated,
        }
        self.task_name = task.name
        self.pool: GradingPool | None = None

    def __call__(self, pairs: list[tuple[str, str]]) -> list[bool | None]:
        self.pool = self.pool or GradingPool(self.task_name, **self.settings)
        return equal_in(self.pool)(pairs)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()
            self.pool = None
