"""Problems in; the step's trajectories out: problems are spread over the solver's engines, the least loaded first."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import ray

from score_openrlhf.rollout.executor import SamplingPlan, fork
from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.tasks.base import Problem


class TooManyFailures(RuntimeError):
    """More trajectories failed in one collection than the configuration allows."""


class ProblemOrder:
    """Problems in an order shuffled by seed and pass; the position is one number, so a resumed run goes on exactly."""

    def __init__(self, problems: Sequence[Problem], seed: int, shuffle: bool = True):
        if not problems:
            raise ValueError("there are no training problems")
        self.problems = problems
        self.seed = seed
        self.shuffle = shuffle
        self.position = 0  # problems drawn so far, over all passes
        self._order: tuple[int, list[int]] = (-1, [])

    def draw(self, count: int) -> list[Problem]:
        """The next `count` problems; passes follow one another without a gap."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Problem:
        epoch, index = divmod(self.position, len(self.problems))
        if self._order[0] != epoch:
            import random

            order = list(range(len(self.problems)))
            if self.shuffle:
                random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        self.position += 1
        return self.problems[self._order[1][index]]


def collect(
    engines: Sequence[Any],
    problems: Sequence[Problem],
    plan: SamplingPlan,
    *,
    max_failed_fraction: float,
) -> list[Trajectory]:
    """The `len(problems) x N x K` trajectories of one step, in the order of `problems`.

    Each engine is given the next problem when it has finished one, so slow problems do not hold up the others. Raises
    TooManyFailures naming the causes when more than `max_failed_fraction` of the trajectories failed.
    """
    # Twice what an engine can batch would only queue inside it; the problems in flight are bounded per engine.
    in_flight_limit = 512
    load = [(0, index) for index in range(len(engines))]
    heapq.heapify(load)
    results: list[list[Trajectory] | None] = [None] * len(problems)
    pending: dict[Any, tuple[int, int]] = {}
    waiting = list(reversed(range(len(problems))))

    def dispatch() -> None:
        while waiting and load and load[0][0] < in_flight_limit:
            count, engine = heapq.heappop(load)
            position = waiting.pop()
            pending[engines[engine].run_problem.remote(problems[position], position, plan)] = (position, engine)
            heapq.heappush(load, (count + 1, engine))

    dispatch()
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1)
        for ref in ready:
            position, engine = pending.pop(ref)
            results[position] = ray.get(ref)
            load = [(count - (index == engine), index) for count, index in load]
            heapq.heapify(load)
        dispatch()
    trajectories = [t for group in results for t in group or []]
    check_failures(trajectories, max_failed_fraction)
    return trajectories


def collect_phased(
    engines: Sequence[Any],
    problems: Sequence[Problem],
    plan: SamplingPlan,
    *,
    guided: bool,
    awake: Callable[[str], AbstractContextManager],
    max_failed_fraction: float,
) -> list[Trajectory]:
    """As `collect`, in phases: all attempts, all guidances, all revisions, one model's engines awake at a time.

    `awake("solver")` or `awake("guidance")` keeps those engines awake for the block. The same requests with the same
    seeds as in `collect`, so the same trajectories. Raises TooManyFailures as `collect` does.
    """
    firsts = [
        Trajectory(problem=problem, group=group, attempt_index=index, guidance_index=0)
        for group, problem in enumerate(problems)
        for index in range(plan.num_attempts)
    ]
    with awake("solver"):
        firsts = _spread(engines, "attempt", firsts, plan)
    trajectories = [t for first in firsts for t in fork(first, plan.num_guidances)]
    if guided:
        with awake("guidance"):
            trajectories = _spread(engines, "guide", trajectories, plan)
    with awake("solver"):
        trajectories = _spread(engines, "revise", trajectories, plan)
    check_failures(trajectories, max_failed_fraction)
    return trajectories


def _spread(
    engines: Sequence[Any], phase: str, trajectories: list[Trajectory], plan: SamplingPlan
) -> list[Trajectory]:
    """One phase over all engines, a problem always on the same one, whose prefix cache may know it; order is kept."""
    shares = [[t for t in trajectories if t.group % len(engines) == index] for index in range(len(engines))]
    refs = [engine.run_phase.remote(phase, share, plan) for engine, share in zip(engines, shares) if share]
    done = [t for share in ray.get(refs) for t in share]
    return sorted(done, key=lambda t: (t.group, t.attempt_index, t.guidance_index))


def check_failures(trajectories: Sequence[Trajectory], max_failed_fraction: float) -> None:
    """Raises TooManyFailures, naming the causes, when more than this part of the trajectories failed."""
    failures = Counter(t.failure for t in trajectories if t.failure)
    failed = sum(failures.values())
    if failed > max_failed_fraction * len(trajectories):
        causes = ", ".join(f"{cause} ({count})" for cause, count in failures.most_common())
        raise TooManyFailures(
            f"{failed} of {len(trajectories)} trajectories failed, more than rollout.max_failed_fraction="
            f"{max_failed_fraction}: {causes}. The engines' log names the problems."
        )
