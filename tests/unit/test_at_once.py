"""Two policies that learn at the same time: results, errors and seconds."""

from __future__ import annotations

import threading
import time

import pytest

from score_openrlhf.trainer.at_once import at_once
from score_openrlhf.trainer.clock import Clock


def test_tasks_run_side_by_side_and_results_come_in_the_order_of_the_tasks():
    both_there = threading.Barrier(2, timeout=10)

    def task(value: int, seconds: float) -> int:
        both_there.wait()
        time.sleep(seconds)
        return value

    results = at_once({"solver": lambda: task(1, 0.05), "guidance": lambda: task(2, 0.0)})
    assert list(results.items()) == [("solver", 1), ("guidance", 2)]


def test_an_error_comes_after_the_other_policy_has_finished_and_names_its_own():
    finished = []

    def fails() -> None:
        raise RuntimeError("a rank died")

    def works() -> None:
        time.sleep(0.1)
        finished.append(True)

    with pytest.raises(RuntimeError, match="a rank died") as raised:
        at_once({"solver": works, "guidance": fails})
    assert finished == [True]
    assert raised.value.__notes__ == ["while the guidance policy learned"]


def test_two_errors_are_both_told():
    def fails(error: Exception):
        raise error

    with pytest.raises(KeyError) as raised:
        at_once({"solver": lambda: fails(KeyError("first")), "guidance": lambda: fails(ValueError("second"))})
    assert raised.value.__notes__ == [
        "while the solver policy learned",
        "the guidance policy failed too: ValueError('second')",
    ]


def test_the_error_that_came_first_is_raised_whatever_its_place():
    guidance_failed = threading.Event()

    def solver() -> None:
        guidance_failed.wait(10)
        time.sleep(0.05)  # the event comes before the raise
        raise RuntimeError("the other ranks are gone")

    def guidance() -> None:
        guidance_failed.set()
        raise MemoryError("no room for the batch")

    with pytest.raises(MemoryError) as raised:
        at_once({"solver": solver, "guidance": guidance})
    assert raised.value.__notes__ == [
        "while the guidance policy learned",
        "the solver policy failed too: RuntimeError('the other ranks are gone')",
    ]


def test_seconds_of_a_step_are_each_phases_own_and_those_of_the_run_add_up_to_the_wall():
    clock = Clock()
    clock.add("rollout", time.perf_counter() - 3.0)

    def phase(name: str) -> None:
        start = time.perf_counter()
        time.sleep(0.1)
        clock.add(name, start)
        clock.add("logprob", start)

    before = time.perf_counter()
    with clock.overlapping():
        at_once({name: lambda name=name: phase(f"{name}_train") for name in ("solver", "guidance")})
    wall = time.perf_counter() - before
    assert min(clock.step["solver_train"], clock.step["guidance_train"]) >= 0.1
    assert clock.step["logprob"] >= 0.2  # of both
    assert sum(clock.total.values()) - clock.total["rollout"] == pytest.approx(wall, rel=0.05)
    assert clock.total["rollout"] == pytest.approx(3.0, abs=0.01)
    assert clock.total["logprob"] / clock.total["solver_train"] == pytest.approx(2, rel=0.2)
