"""Problems in; the step's trajectories out: problems are spread over the solver's engines, the least loaded first."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import ray

from score_openrlhf.config.methods import GUIDANCE
from score_openrlhf.config.policies import ENGINE_NUM_SEQS
from score_openrlhf.errors import RunError
from score_openrlhf.rollout.executor import SamplingPlan, firsts, fork
from score_openrlhf.rollout.trajectory import Sample, Trajectory
from score_openrlhf.tasks.base import Problem

# for each problem the N attempts of the base model, or None where the solver makes its own
Given = Sequence[list[Sample] | None] | None
Awake = Callable[..., AbstractContextManager]  # of names of models: their engines are awake in the block


class TooManyFailures(RunError):
    """More trajectories failed in one collection than the configuration allows."""


class TooManyErrors(TooManyFailures):
    """The grader failed on more of a collection than the configuration allows."""


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
    given: Given = None,
    engine_num_seqs: int = ENGINE_NUM_SEQS,
    max_failed_fraction: float,
    max_error_fraction: float = 1.0,
) -> list[Trajectory]:
    """The `len(problems) x N x K` trajectories of one step, in the order of `problems`.

    `given` holds the N attempts of the base model for each problem that has them; `engine_num_seqs` is how many
    sequences an engine takes at once. Each engine is given the next problem when it has finished one, so slow problems
    do not hold up the others. Raises TooManyFailures naming the causes when more than `max_failed_fraction` of the
    trajectories failed, TooManyErrors when the grader failed on more than `max_error_fraction` of them.
    """
    in_flight_limit = problems_in_flight(plan, engine_num_seqs)
    load = [(0, index) for index in range(len(engines))]
    heapq.heapify(load)
    results: list[list[Trajectory] | None] = [None] * len(problems)
    pending: dict[Any, tuple[int, int]] = {}
    waiting = list(reversed(range(len(problems))))

    def dispatch() -> None:
        while waiting and load and load[0][0] < in_flight_limit:
            count, engine = heapq.heappop(load)
            position = waiting.pop()
            own = given[position] if given else None
            pending[engines[engine].run_problem.remote(problems[position], position, plan, own)] = (position, engine)
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
    check_failures(trajectories, max_failed_fraction, max_error_fraction)
    return trajectories


def problems_in_flight(plan: SamplingPlan, engine_num_seqs: int) -> int:
    """How many problems an engine works on at once: twice the trajectories it takes, at least one problem.

    One share of them is in the engine while the other waits for the grader or the other model; more would only queue.
    """
    return max(1, 2 * engine_num_seqs // (plan.num_attempts * plan.num_guidances))


def collect_phased(
    engines: Sequence[Any],
    problems: Sequence[Problem],
    plan: SamplingPlan,
    *,
    given: Given = None,
    guided: bool,
    awake: Awake,
    max_failed_fraction: float,
    max_error_fraction: float = 1.0,
) -> list[Trajectory]:
    """As `collect`, in phases: all attempts, all guidances, all revisions, one model's engines awake at a time.

    `awake("solver")` or `awake("guidance")` keeps those engines awake for the block. The same requests with the same
    seeds as in `collect`, so the same trajectories. Raises TooManyFailures as `collect` does.
    """
    with awake("solver"):
        attempts = collect_attempts(engines, problems, plan, given=given)
    trajectories = [t for first in attempts for t in fork(first, plan.num_guidances)]
    if guided:
        with awake("guidance"):
            trajectories = _spread(engines, "guide", trajectories, plan)
    with awake("solver"):
        trajectories = _spread(engines, "revise", trajectories, plan)
    check_failures(trajectories, max_failed_fraction, max_error_fraction)
    return trajectories


def pipelined(
    engines: Sequence[Any],
    problems: Sequence[Problem],
    plan: SamplingPlan,
    *,
    models: Sequence[str],
    awake: Awake,
    **options: Any,
) -> list[Trajectory]:
    """`collect`, with the engines of all `models` awake."""
    with awake(*models):
        return collect(engines, problems, plan, **options)


def phased(
    engines: Sequence[Any],
    problems: Sequence[Problem],
    plan: SamplingPlan,
    *,
    models: Sequence[str],
    awake: Awake,
    engine_num_seqs: int = ENGINE_NUM_SEQS,
    **options: Any,
) -> list[Trajectory]:
    """`collect_phased`, with one of `models` awake at a time: an engine queues what it cannot take at once."""
    del engine_num_seqs
    return collect_phased(engines, problems, plan, guided=GUIDANCE in models, awake=awake, **options)


def collect_attempts(
    engines: Sequence[Any], problems: Sequence[Problem], plan: SamplingPlan, *, given: Given = None
) -> list[Trajectory]:
    """Turn 1 alone: the `len(problems) x N` attempts, sampled and graded; failures are marked."""
    begun = [
        first
        for group, problem in enumerate(problems)
        for first in firsts(problem, group, plan, given[group] if given else None)
    ]
    return _spread(engines, "attempt", begun, plan)


def _spread(
    engines: Sequence[Any], phase: str, trajectories: list[Trajectory], plan: SamplingPlan
) -> list[Trajectory]:
    """One phase over all engines, a problem always on the same one, whose prefix cache may know it; order is kept."""
    shares = [[t for t in trajectories if t.group % len(engines) == index] for index in range(len(engines))]
    refs = [engine.run_phase.remote(phase, share, plan) for engine, share in zip(engines, shares) if share]
    done = [t for share in ray.get(refs) for t in share]
    return sorted(done, key=lambda t: (t.group, t.attempt_index, t.guidance_index))


def check_failures(
    trajectories: Sequence[Trajectory], max_failed_fraction: float, max_error_fraction: float = 1.0, where: str = ""
) -> None:
    """Raises TooManyFailures, naming the causes, when more than this part of the trajectories failed.

    Those that the grader failed on are counted apart, against `max_error_fraction` (TooManyErrors). `where` says which
    trajectories they are, where a run has several kinds.
    """
    failures = Counter(t.failure for t in trajectories if t.failure and not t.ungraded)
    failed = failures.total()
    if failed > max_failed_fraction * len(trajectories):
        raise TooManyFailures(
            f"{failed} of {len(trajectories)} trajectories failed{where}, more than rollout.max_failed_fraction="
            f"{max_failed_fraction}: {_listed(failures)}. The engines' log names the problems."
        )
    lost = [t for t in trajectories if t.ungraded]
    if len(lost) > max_error_fraction * len(trajectories):
        causes = Counter(t.grading_failure for t in lost)
        details = {
            g.detail: t for t in reversed(lost) for g in (t.grade_t1, t.grade_t2) if g and g.failed and g.detail
        }
        example = next((f" First, problem {t.problem.id}: {text}." for text, t in reversed(details.items())), "")
        raise TooManyErrors(
            f"the grader failed on {len(lost)} of {len(trajectories)} trajectories{where}, more than "
            f"task.max_error_fraction={max_error_fraction}: {_listed(causes)}.{example} Mend the grader "
            "(task.reward_func, task.name), give it more time (task.grade_timeout_seconds), or leave out the problems."
        )


def _listed(causes: Counter) -> str:
    return ", ".join(f"{cause} ({count})" for cause, count in causes.most_common())
