"""The order of problems: every problem once a pass, resumable by one number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_openrlhf.rollout.generator import ProblemOrder, TooManyFailures, check_failures
from score_openrlhf.tasks.base import Problem
from tests.fakes import trajectory


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
    check_failures(rows, max_failed_fraction=0.75)
    with pytest.raises(TooManyFailures, match=r"3 of 4 .* guide: ValueError \(3\)"):
        check_failures(rows, max_failed_fraction=0.5)
