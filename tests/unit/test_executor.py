"""attempt -> guide -> revise with scripted engines: what is asked of them, and what becomes of failures."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from score_openrlhf.rollout.executor import GuidedRevisionExecutor, SamplingPlan
from score_openrlhf.rollout.prompts import GuidancePrompts, SolverPrompts, encode_text
from score_openrlhf.rollout.trajectory import Sample
from score_openrlhf.tasks.base import Grade, Problem, Task, Templates
from tests.tiny_models import make_tokenizer

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
    attempt_max_tokens=40, guidance_max_tokens=20, revision_max_tokens=30, max_len=200, versions=(4, 9),
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


def run(tokenizer, plan=PLAN, solver=None, tutor=None, guided=True):
    solver = solver or Engine(tokenizer, lambda n: "The answer is 4." if n == 1 else "The answer is 3.")
    tutor = tutor or Engine(tokenizer, lambda n: f"check the sum {n}")
    grader = Grader()
    executor = GuidedRevisionExecutor(
        OneTask(), grader, SolverPrompts(tokenizer, TEMPLATES),
        GuidancePrompts(tokenizer, TEMPLATES) if guided else None, [tutor] if guided else [],
    )  # fmt: skip
    trajectories = asyncio.run(executor.execute(PROBLEM, (2, 1), plan, plan.max_len, tokenizer, solver))
    return trajectories, solver, tutor, grader


def test_one_attempt_serves_k_guidances(tokenizer):
    trajectories, solver, tutor, _ = run(tokenizer)
    assert len(trajectories) == 3 and len(solver.requests) == 1 + 3 and len(tutor.requests) == 3
    assert all(t.attempt is trajectories[0].attempt for t in trajectories)
    assert [t.guidance_index for t in trajectories] == [0, 1, 2]
    assert {t.state for t in trajectories} == {(2, 1)}
    assert len({r.seed for r in [*solver.requests, *tutor.requests]}) == 7


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


def test_each_text_has_its_own_budget_and_policy_version(tokenizer):
    _, solver, tutor, _ = run(tokenizer)
    assert [r.max_tokens for r in solver.requests] == [40, 30, 30, 30]  # turn 1 takes nothing from turn 2
    assert [r.max_tokens for r in tutor.requests] == [20] * 3
    assert {r.version for r in solver.requests} == {4} and {r.version for r in tutor.requests} == {9}
    assert {r.temperature for r in tutor.requests} == {0.7}


def test_requests_are_the_same_when_the_run_is_repeated(tokenizer):
    first, second = run(tokenizer), run(tokenizer)
    for engine in (1, 2):
        assert [r.seed for r in first[engine].requests] == [r.seed for r in second[engine].requests]
    later = run(tokenizer, dataclasses.replace(PLAN, step=6))
    assert {r.seed for r in later[1].requests}.isdisjoint(r.seed for r in first[1].requests)


def test_failed_guidance_is_marked_with_its_cause_and_the_others_go_on(tokenizer):
    def reply(n):
        if n == 2:
            raise ValueError("engine said no")
        return "check the sum"

    trajectories, solver, _, _ = run(tokenizer, tutor=Engine(tokenizer, reply))
    assert [t.failure for t in trajectories] == [None, "guide: ValueError", None]
    assert trajectories[1].revision is None and not trajectories[1].usable
    assert len(solver.requests) == 1 + 2  # no revision under an empty or static hint in its place


def test_failed_attempt_fails_its_trajectories(tokenizer):
    def reply(n):
        raise ValueError("no")

    trajectories, _, tutor, _ = run(tokenizer, solver=Engine(tokenizer, reply))
    assert [t.failure for t in trajectories] == ["attempt: ValueError"] * 3 and not tutor.requests


@pytest.mark.parametrize("mask", [False, True])
def test_truncated_attempt_goes_on_or_is_masked(tokenizer, mask):
    plan = dataclasses.replace(PLAN, mask_truncated_attempt=mask)
    trajectories, _, tutor, _ = run(tokenizer, plan, solver=Engine(tokenizer, lambda n: "The answer", truncated=True))
    assert all(t.attempt.truncated for t in trajectories)
    assert [t.masked for t in trajectories] == [("truncated_attempt" if mask else None)] * 3
    assert bool(tutor.requests) != mask


def test_prompt_without_room_is_a_failure_of_its_own(tokenizer):
    trajectories, solver, _, _ = run(tokenizer, dataclasses.replace(PLAN, max_len=5))
    assert {t.failure for t in trajectories} == {"attempt: PromptTooLong"} and not solver.requests


def test_method_score_revises_under_the_fixed_text(tokenizer):
    trajectories, solver, tutor, _ = run(tokenizer, dataclasses.replace(PLAN, num_guidances=1), guided=False)
    assert trajectories[0].guidance is None and not tutor.requests
    assert "Look again." in tokenizer.decode(solver.requests[1].prompt_ids)
