"""attempt -> guide -> revise with scripted engines: what is asked of them, and what becomes of failures."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools

import pytest

from benchmarks.tiny_models import make_tokenizer
from score_openrlhf.rollout.executor import GuidedRevisionExecutor, SamplingPlan, firsts
from score_openrlhf.rollout.metrics import trajectory_metrics
from score_openrlhf.rollout.prompts import GuidancePrompts, SolverPrompts, encode_text
from score_openrlhf.rollout.trajectory import Sample, request_seed
from score_openrlhf.tasks.base import Grade, Problem, Task, Templates
from score_openrlhf.tasks.pool import STATED_BEFORE

TEMPLATES = Templates(
    system=None,
    attempt="{problem}",
    revision="Hint: {guidance}",
    static_revision="Look again.",
    guidance_system=None,
    guidance="{problem} / {attempt}",
)
PROBLEM = Problem("p", "What is 1 plus 2?", "3", {})
PLAN = SamplingPlan(
    purpose="train", seed=1, step=5, num_attempts=1, num_guidances=3, temperature=1.0, guidance_temperature=0.7,
    attempt_max_tokens=40, guidance_max_tokens=20, revision_max_tokens=30, max_len=200,
    versions={"solver": 4, "guidance": 9},
)  # fmt: skip


class OneTask(Task):
    name = "one"
    templates = TEMPLATES

    def grade(self, text, answer):
        return Grade("right" if answer in text else "wrong")

    def describe_guidance(self, problem, attempt, guidance):
        return {"hint_accuracy": float("sum" in guidance)}


class Grader:
    def __init__(self):
        self.graded: list[tuple[str, str, str]] = []

    async def agrade(self, text, answer, *, problem="", prompt=""):
        self.graded.append((text, answer, problem))
        return OneTask().grade(text, answer)

    async def astates_answer(self, guidance, problem, attempt, answer):
        return answer in guidance, "ok"


class Engine:
    """Answers each request from `reply`; keeps the requests. `sample.remote` is what a Ray handle offers."""

    def __init__(self, tokenizer, reply, truncated=False):
        self.tokenizer, self.reply, self.truncated = tokenizer, reply, truncated
        self.requests = []

        class Remote:
            remote = staticmethod(self._sample)

            def __call__(_, request):
                return self._sample(request)

        self.sample = Remote()

    async def _sample(self, request):
        self.requests.append(request)
        text = self.reply(len(self.requests))
        ids = encode_text(self.tokenizer, text) + ([] if self.truncated else [self.tokenizer.eos_token_id])
        return Sample(ids, [-1.0] * len(ids), text, self.truncated, request.version)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def make_executor(tokenizer, guidance, guided=True, grader=None):
    grader = grader or Grader()
    executor = GuidedRevisionExecutor(
        OneTask(), grader, SolverPrompts(tokenizer, TEMPLATES),
        GuidancePrompts(guidance.tokenizer, TEMPLATES) if guided else None, [guidance] if guided else [],
    )  # fmt: skip
    return executor, grader


def run(tokenizer, plan=PLAN, solver=None, guidance=None, guided=True, grader=None, place=(2, 1)):
    solver = solver or Engine(tokenizer, lambda n: "The answer is 4." if n == 1 else "The answer is 3.")
    guidance = guidance or Engine(tokenizer, lambda n: f"check the sum {n}")
    executor, grader = make_executor(tokenizer, guidance, guided, grader)
    trajectories = asyncio.run(executor.execute(PROBLEM, place, plan, plan.max_len, tokenizer, solver))
    return trajectories, solver, guidance, grader


def test_a_given_attempt_is_graded_and_revised_but_not_sampled(tokenizer):
    ids = encode_text(tokenizer, "The answer is 4.") + [tokenizer.eos_token_id]
    given = Sample(ids, [-2.0] * len(ids), "The answer is 4.", truncated=False, version=0)
    solver, guidance, grader = (
        Engine(tokenizer, lambda n: "The answer is 3."),
        Engine(tokenizer, lambda n: "x"),
        Grader(),
    )
    executor = GuidedRevisionExecutor(
        OneTask(), grader, SolverPrompts(tokenizer, TEMPLATES), GuidancePrompts(tokenizer, TEMPLATES), [guidance]
    )
    plan = dataclasses.replace(PLAN, num_attempts=2)
    beginnings = firsts(PROBLEM, 7, plan, [given, given])
    assert [(t.group, t.attempt_index, t.base_attempt) for t in beginnings] == [(7, 0, True), (7, 1, True)]
    trajectories = asyncio.run(executor.walk(solver, beginnings[1], plan))
    assert len(solver.requests) == 3  # revisions alone
    assert all(t.attempt is given and t.base_attempt and (t.r1, t.r2) == (0.0, 1.0) for t in trajectories)
    assert solver.requests[0].prompt_ids[len(trajectories[0].prompt_ids) :][: len(ids)] == ids
    assert not firsts(PROBLEM, 7, plan)[0].base_attempt


def test_one_attempt_serves_k_guidances(tokenizer):
    trajectories, solver, guidance, _ = run(tokenizer)
    assert len(trajectories) == 3 and len(solver.requests) == 1 + 3 and len(guidance.requests) == 3
    assert all(t.attempt is trajectories[0].attempt for t in trajectories)
    assert [t.guidance_index for t in trajectories] == [0, 1, 2]
    assert {t.attempt_key for t in trajectories} == {(2, 1)}
    assert len({r.seed for r in [*solver.requests, *guidance.requests]}) == 7


def test_revision_is_sampled_under_its_own_guidance(tokenizer):
    trajectories, solver, _, _ = run(tokenizer)
    contexts = [request.prompt_ids for request in solver.requests[1:]]
    for t in trajectories:
        context = t.prompt_ids + t.attempt.token_ids + t.bridge_ids
        assert context in contexts
        assert f"Hint: {t.guidance.text}" in tokenizer.decode(context)


def test_both_turns_are_graded_against_the_same_problem(tokenizer):
    trajectories, _, _, grader = run(tokenizer)
    assert {(answer, problem) for _, answer, problem in grader.graded} == {("3", PROBLEM.text)}
    assert [(t.r1, t.r2) for t in trajectories] == [(0.0, 1.0)] * 3
    assert trajectories[0].hint_metrics == {"hint_accuracy": 1.0}
    assert trajectories[0].changed_answer
    same, _, _, _ = run(tokenizer, solver=Engine(tokenizer, lambda n: "The answer is 4."))
    assert not any(t.changed_answer for t in same)


def test_each_text_has_its_own_budget_and_policy_version(tokenizer):
    _, solver, guidance, _ = run(tokenizer)
    assert [r.max_tokens for r in solver.requests] == [40, 30, 30, 30]  # turn 1 takes nothing from turn 2
    assert [r.max_tokens for r in guidance.requests] == [20] * 3
    assert {r.version for r in solver.requests} == {4} and {r.version for r in guidance.requests} == {9}
    assert {r.temperature for r in solver.requests} == {1.0} and {r.temperature for r in guidance.requests} == {0.7}


def test_requests_are_the_same_when_the_run_is_repeated(tokenizer):
    first, second = run(tokenizer), run(tokenizer)
    for engine in (1, 2):
        assert [r.seed for r in first[engine].requests] == [r.seed for r in second[engine].requests]


@pytest.mark.parametrize("change", [{"step": 6}, {"purpose": "eval"}, {"seed": 2}])
def test_another_step_purpose_or_seed_draws_anew(tokenizer, change):
    first, other = run(tokenizer), run(tokenizer, dataclasses.replace(PLAN, **change))
    for engine in (1, 2):
        assert {r.seed for r in other[engine].requests}.isdisjoint(r.seed for r in first[engine].requests)


def test_another_problem_or_attempt_draws_anew(tokenizer):
    seeds = [{r.seed for r in run(tokenizer, place=place)[1].requests} for place in ((2, 1), (2, 0), (1, 2), (21, 1))]
    assert len(set.union(*seeds)) == sum(map(len, seeds))


def test_seeds_are_of_their_parts_and_not_of_the_letters_in_a_row():
    assert request_seed(1, 23) != request_seed(12, 3) != request_seed(123)


def test_engines_draw_for_themselves_where_requests_have_no_seed(tokenizer):
    _, solver, guidance, _ = run(tokenizer, dataclasses.replace(PLAN, seed_requests=False))
    assert {r.seed for r in [*solver.requests, *guidance.requests]} == {None}


def test_no_request_goes_beyond_the_longest_sequence(tokenizer):
    _, solver, _, _ = run(tokenizer)
    first, second = (len(request.prompt_ids) for request in solver.requests[:2])
    plan = dataclasses.replace(PLAN, max_len=second + 7, attempt_max_tokens=second)
    _, solver, _, _ = run(tokenizer, plan)
    assert [r.max_tokens for r in solver.requests] == [second + 7 - first] + [7] * 3


def test_each_model_stops_at_its_own_end_of_turn(tokenizer):
    other = make_tokenizer("llama")
    assert other.eos_token_id != tokenizer.eos_token_id
    _, solver, guidance, _ = run(tokenizer, guidance=Engine(other, lambda n: "check the sum"))
    assert {r.stop_token_ids for r in solver.requests} == {(tokenizer.eos_token_id,)}
    assert {r.stop_token_ids for r in guidance.requests} == {(other.eos_token_id,)}


def test_each_trajectory_of_an_attempt_has_its_own_clock(tokenizer):
    trajectories, _, _, _ = run(tokenizer)
    clocks = [t.seconds for t in trajectories]
    assert all(set(clock) == {"attempt", "guide", "revise", "grade"} for clock in clocks)
    assert all(one is not other for one, other in itertools.combinations(clocks, 2))


def test_a_guidance_that_states_the_answer_is_noted(tokenizer):
    trajectories, _, _, _ = run(tokenizer, guidance=Engine(tokenizer, lambda n: "it is 3" if n == 1 else "look again"))
    assert sorted(t.leak for t in trajectories) == [0.0, 0.0, 1.0]


def test_an_answer_that_was_stated_before_can_neither_leak_nor_not(tokenizer):
    class StatedBefore(Grader):
        async def astates_answer(self, guidance, problem, attempt, answer):
            return False, STATED_BEFORE

    trajectories, _, _, _ = run(tokenizer, grader=StatedBefore())
    assert all(t.leak_unjudged and t.leak == 0.0 and t.failure is None for t in trajectories)
    judged, _, _, _ = run(tokenizer)
    assert not any(t.leak_unjudged for t in judged)


def test_a_guidance_that_could_not_be_judged_fails(tokenizer):
    class Undecided(Grader):
        async def astates_answer(self, guidance, problem, attempt, answer):
            return False, "timeout"

    trajectories, solver, _, _ = run(tokenizer, grader=Undecided())
    assert {t.failure for t in trajectories} == {"guide: leak timeout"} and len(solver.requests) == 1


@pytest.mark.parametrize("mask", [False, True])
def test_truncated_guidance_goes_on_or_is_masked(tokenizer, mask):
    plan = dataclasses.replace(PLAN, mask_truncated_guidance=mask)
    trajectories, solver, _, _ = run(tokenizer, plan, guidance=Engine(tokenizer, lambda n: "check", truncated=True))
    assert all(t.guidance.truncated for t in trajectories)
    assert [t.masked for t in trajectories] == [("truncated_guidance" if mask else None)] * 3
    assert len(solver.requests) == (1 if mask else 4)


def test_a_phase_leaves_alone_what_failed_before_it(tokenizer):
    solver = Engine(tokenizer, lambda n: "The answer is 3.")
    executor, _ = make_executor(tokenizer, Engine(tokenizer, lambda n: "check"))
    (first, *_), _, _, _ = run(tokenizer)
    failed = dataclasses.replace(first, failure="guide: ValueError", revision=None)
    masked = dataclasses.replace(first, masked="truncated_guidance", revision=None)
    whole = dataclasses.replace(first, revision=None)
    done = asyncio.run(executor.run_phase("revise", solver, [failed, masked, whole], PLAN))
    assert [t.revision is not None for t in done] == [False, False, True] and len(solver.requests) == 1


def test_failed_guidance_is_marked_with_its_cause_and_the_others_go_on(tokenizer):
    def reply(n):
        if n == 2:
            raise ValueError("engine said no")
        return "check the sum"

    trajectories, solver, _, _ = run(tokenizer, guidance=Engine(tokenizer, reply))
    assert [t.failure for t in trajectories] == [None, "guide: ValueError", None]
    assert trajectories[1].revision is None and not trajectories[1].usable
    assert len(solver.requests) == 1 + 2  # no revision under an empty or static hint in its place


def test_failed_attempt_fails_its_trajectories(tokenizer):
    def reply(n):
        raise ValueError("no")

    trajectories, _, guidance, _ = run(tokenizer, solver=Engine(tokenizer, reply))
    assert [t.failure for t in trajectories] == ["attempt: ValueError"] * 3 and not guidance.requests


@pytest.mark.parametrize("mask", [False, True])
def test_truncated_attempt_goes_on_or_is_masked(tokenizer, mask):
    plan = dataclasses.replace(PLAN, mask_truncated_attempt=mask)
    trajectories, _, guidance, _ = run(
        tokenizer, plan, solver=Engine(tokenizer, lambda n: "The answer", truncated=True)
    )
    assert all(t.attempt.truncated for t in trajectories)
    assert [t.masked for t in trajectories] == [("truncated_attempt" if mask else None)] * 3
    assert bool(guidance.requests) != mask


def test_prompt_without_room_is_a_failure_of_its_own(tokenizer):
    trajectories, solver, _, _ = run(tokenizer, dataclasses.replace(PLAN, max_len=5))
    assert {t.failure for t in trajectories} == {"attempt: PromptTooLong"} and not solver.requests


def test_method_score_revises_under_the_fixed_text(tokenizer):
    trajectories, solver, guidance, _ = run(tokenizer, dataclasses.replace(PLAN, num_guidances=1), guided=False)
    assert trajectories[0].guidance is None and not guidance.requests
    assert "Look again." in tokenizer.decode(solver.requests[1].prompt_ids)


class FailingGrader:
    """Says `status` of one turn's text, or of the leak check, and grades the rest right."""

    def __init__(self, status, where):
        self.status, self.where, self.turn = status, where, 0

    async def agrade(self, text, answer, *, problem="", prompt=""):
        self.turn += 1
        if self.where == "attempt" or (self.where == "revise" and self.turn == 3):
            return Grade(self.status, "reward 1.1 is outside [0, 1]")
        return Grade("right")

    async def astates_answer(self, *texts):
        return (False, self.status) if self.where == "guide" else (False, "ok")


@pytest.mark.parametrize("status", ["error", "timeout"])
@pytest.mark.parametrize(
    ("where", "failures"),
    [
        ("attempt", ["attempt: grade {}"] * 3),
        ("guide", ["guide: leak {}"] * 3),
        ("revise", [None, "revise: grade {}", None]),
    ],
)
def test_a_grader_that_fails_masks_the_row_under_its_cause_and_is_no_zero(tokenizer, status, where, failures):
    trajectories, *_ = run(tokenizer, grader=FailingGrader(status, where))
    expected = [failure and failure.format(status) for failure in failures]
    assert sorted(t.failure or "" for t in trajectories) == sorted(failure or "" for failure in expected)
    for t in trajectories:
        assert t.ungraded == (t.failure is not None) and t.usable == (t.failure is None)
    metrics = trajectory_metrics(trajectories)
    if where == "revise":
        assert metrics["acc_t2"] == 1.0  # of those that could be graded
    else:
        assert "acc_t1" not in metrics
