"""The order of problems: every problem once a pass, resumable by one number; what comes back of several engines."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_openrlhf.rollout import generator
from score_openrlhf.rollout.executor import firsts, fork
from score_openrlhf.rollout.generator import (
    ProblemOrder,
    TooManyErrors,
    TooManyFailures,
    check_failures,
    collect,
    collect_phased,
)
from score_openrlhf.rollout.metrics import right_answer_shares
from score_openrlhf.tasks.base import Grade, Problem
from score_openrlhf.trainer.hack_monitor import HackMonitor, grading_line
from tests.support.fakes import sample, trajectory
from tests.unit.test_executor import PLAN


def problems(count):
    return [Problem(str(i), f"problem {i}", "1", {}) for i in range(count)]


@given(count=st.integers(1, 12), draws=st.lists(st.integers(1, 7), min_size=1, max_size=6), seed=st.integers(0, 3))
def test_passes_follow_one_another_without_a_gap(count, draws, seed):
    order = ProblemOrder(problems(count), seed)
    drawn = [p.id for size in draws for p in order.draw(size)]
    for start in range(0, len(drawn) - count + 1, count):
        assert sorted(drawn[start : start + count]) == sorted(str(i) for i in range(count))


@given(count=st.integers(2, 12), before=st.integers(0, 30), seed=st.integers(0, 3))
def test_position_is_all_there_is_to_resume(count, before, seed):
    straight = ProblemOrder(problems(count), seed)
    straight.draw(before)
    resumed = ProblemOrder(problems(count), seed)
    resumed.position = before
    assert [p.id for p in straight.draw(10)] == [p.id for p in resumed.draw(10)]


def test_order_changes_with_pass_and_seed():
    order = ProblemOrder(problems(50), 0)
    first, second = [p.id for p in order.draw(50)], [p.id for p in order.draw(50)]
    assert first != second
    assert [p.id for p in ProblemOrder(problems(50), 1).draw(50)] != first


def test_unshuffled_is_the_file_s_order():
    assert [p.id for p in ProblemOrder(problems(3), 0, shuffle=False).draw(5)] == ["0", "1", "2", "0", "1"]


def test_no_problems_is_an_error():
    with pytest.raises(ValueError, match="no training problems"):
        ProblemOrder([], 0)


def test_too_many_failures_stop_the_run_and_name_the_causes():
    rows = [trajectory(i, failure="guide: ValueError") for i in range(3)] + [trajectory(3)]
    check_failures(rows, max_failed_fraction=0.75)  # no more than that
    with pytest.raises(TooManyFailures, match=r"3 of 4 .* guide: ValueError \(3\)"):
        check_failures(rows, max_failed_fraction=0.5)


class Engine:
    """Answers at once; where a text comes from stands in it. `remote` is called as on a Ray handle."""

    def __init__(self, fails: str = ""):
        self.fails = fails
        self.run_problem = SimpleNamespace(remote=self._run_problem)
        self.run_phase = SimpleNamespace(remote=self._run_phase)

    def _run_problem(self, problem, group, plan, given):
        attempts = self._run_phase("attempt", firsts(problem, group, plan, given), plan)
        walked = [t for first in attempts for t in fork(first, plan.num_guidances)]
        return self._run_phase("revise", self._run_phase("guide", walked, plan), plan)

    def _run_phase(self, phase, trajectories, plan):
        for t in trajectories:
            place = f"{phase} {t.group} {t.attempt_index} {t.guidance_index}"
            if phase == "attempt":
                t.attempt = t.attempt or sample([1], text=place)
            elif phase == "guide":
                t.guidance = sample([1], text=place)
            else:
                t.revision = sample([1], text=place)
            if t.problem.id == self.fails:
                t.failure = f"{phase}: ValueError"
        return trajectories


@pytest.fixture
def last_first(monkeypatch):
    """Ray in which every result is there at once, and of several the last asked for is the first to be ready."""

    def wait(refs, num_returns):
        return refs[-1:], refs[:-1]

    class Ref:
        def __init__(self, value):
            self.value = value

    def get(refs):
        return [ref.value for ref in refs] if isinstance(refs, list) else refs.value

    monkeypatch.setattr(generator, "ray", SimpleNamespace(wait=wait, get=get))

    def engine(**options):
        made = Engine(**options)
        for name in ("run_problem", "run_phase"):
            call = getattr(made, name).remote
            setattr(made, name, SimpleNamespace(remote=lambda *words, call=call: Ref(call(*words))))
        return made

    return engine


@pytest.mark.parametrize("num_engines", [1, 2, 3])
def test_trajectories_come_in_the_order_of_the_problems_whoever_is_first(last_first, num_engines):
    engines = [last_first() for _ in range(num_engines)]
    plan = PLAN.__class__(**{**PLAN.__dict__, "num_attempts": 2, "num_guidances": 3})
    given = [None, [sample([7], text="base 0"), sample([7], text="base 1")], None, None, None]
    drawn = [*problems(4), problems(4)[1]]  # one of them twice
    walked = collect(engines, drawn, plan, given=given, max_failed_fraction=0.0)
    places = [(t.group, t.attempt_index, t.guidance_index) for t in walked]
    assert places == [(group, n, k) for group in range(5) for n in range(2) for k in range(3)]
    assert [t.problem.id for t in walked] == [drawn[t.group].id for t in walked]
    for t in walked:
        own = f"{t.group} {t.attempt_index}"
        assert t.attempt.text == (f"base {t.attempt_index}" if t.group == 1 else f"attempt {own} 0")
        assert t.base_attempt == (t.group == 1)
        assert t.guidance.text == f"guide {own} {t.guidance_index}"
        assert t.revision.text == f"revise {own} {t.guidance_index}"

    awake = []
    phased = collect_phased(
        engines, drawn, plan, given=given, guided=True, awake=lambda name: awake.append(name) or nullcontext(),
        max_failed_fraction=0.0,
    )  # fmt: skip
    assert phased == walked  # whichever schedule, the same trajectories in the same places
    assert awake == ["solver", "guidance", "solver"]


@pytest.mark.parametrize(
    "num_attempts, num_guidances, num_seqs, expected", [(1, 1, 4, 8), (2, 3, 16, 5), (8, 8, 8, 1)]
)
def test_an_engine_is_given_twice_the_trajectories_it_takes(
    last_first, monkeypatch, num_attempts, num_guidances, num_seqs, expected
):
    """(2, 3, 16): 32 trajectories, six to a problem."""
    plan = PLAN.__class__(**{**PLAN.__dict__, "num_attempts": num_attempts, "num_guidances": num_guidances})
    in_flight, wait = [], generator.ray.wait
    monkeypatch.setattr(
        generator.ray, "wait", lambda refs, **options: in_flight.append(len(refs)) or wait(refs, **options)
    )
    walked = collect([last_first()], problems(12), plan, engine_num_seqs=num_seqs, max_failed_fraction=0.0)
    assert max(in_flight) == expected and len(walked) == 12 * num_attempts * num_guidances


@pytest.mark.parametrize("phased", [False, True])
def test_failures_of_a_collection_end_the_run(last_first, phased):
    def run(limit):
        options = {"guided": True, "awake": lambda name: nullcontext()} if phased else {}
        function = collect_phased if phased else collect
        return function([last_first(fails="1")], problems(4), PLAN, max_failed_fraction=limit, **options)

    assert sum(t.failure is not None for t in run(0.25)) == 3
    with pytest.raises(TooManyFailures, match="3 of 12"):
        run(0.24)


def test_a_grader_that_fails_too_often_ends_the_run_with_its_own_limit_and_words():
    rows = [trajectory(i, failure="revise: grade error") for i in range(3)] + [trajectory(3)]
    rows[0].grade_t2 = Grade("error", "reward 1.1, outside [0, 1]")
    check_failures(rows, max_failed_fraction=0.0, max_error_fraction=0.75)
    with pytest.raises(TooManyErrors, match=r"3 of 4 .* task.max_error_fraction=0.5: grade error \(3\).*reward 1.1"):
        check_failures(rows, max_failed_fraction=1.0, max_error_fraction=0.5)
    line = grading_line(rows)
    assert line.startswith("3 of 4 trajectories are masked, for the grader failed (grade error 3); problem")
    assert "reward 1.1" in line and grading_line(rows[3:]) is None


def test_a_share_of_right_answers_that_grows_is_said_once_per_doubling():
    monitor = HackMonitor()
    for _ in range(10):
        assert monitor.observe({"grade/right_repeats": 0.02, "grade/right_unit": None}) == []
    said = [monitor.observe({"grade/right_repeats": 0.4}) for _ in range(10)]
    shown = [warnings[0] for warnings in said if warnings]
    assert len(shown) == 3  # 6 %, 13 %, 25 %: the mean of ten steps grows slowly
    assert "of the right answers of the last 10 steps write down the problem's own expression (2% at the" in shown[0]
    shares = right_answer_shares([Grade("right", notes=("repeats",)), Grade("right"), Grade("wrong")])
    assert shares["grade/right_repeats"] == 0.5 and shares["grade/right_several"] == 0.0
    assert right_answer_shares([Grade("wrong")]) == {}
