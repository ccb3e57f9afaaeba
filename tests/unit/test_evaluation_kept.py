"""An evaluation that is interrupted anywhere and goes on gives what an unbroken one gives, byte for byte."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from concurrent.futures import Future

import pytest

from benchmarks.tiny_models import make_tokenizer
from score_openrlhf.config.schema import Config
from score_openrlhf.evaluation.kept import Kept, record_of, trajectory_of
from score_openrlhf.evaluation.run import Settings, evaluate
from score_openrlhf.evaluation.runner import ControlledExecutor, EvaluationRunner
from score_openrlhf.journal import Journal
from score_openrlhf.rollout.prompts import GuidancePrompts, SolverPrompts, encode_text
from score_openrlhf.rollout.trajectory import Sample, Trajectory
from score_openrlhf.tasks.base import Grade, Problem
from tests.unit.test_executor import TEMPLATES, OneTask

PROBLEMS = [Problem(f"p{n}", f"What is {n} plus 2?", str(n + 2), {}) for n in range(3)]
SETTINGS = Settings(samples=2, temperature=1.0, seeds=(0, 1))
NUM_ROWS = 6 * 2 * len(PROBLEMS) * len(SETTINGS.seeds)  # six conditions


class Interrupted(BaseException):
    """What Ctrl-C or a signal is to the code: nothing that it may catch."""


class Engine:
    """Answers from the request alone, as an engine with seeds does; after `limit` answers it is interrupted."""

    def __init__(self, tokenizer, texts, limit=None, failing=()):
        self.tokenizer, self.texts, self.limit, self.failing = tokenizer, texts, limit, failing
        self.num_asked = 0

    async def sample(self, request):
        self.num_asked += 1
        if self.limit is not None and self.num_asked > self.limit:
            raise Interrupted
        if self.num_asked in self.failing:
            raise RuntimeError("the engine lost its connection")
        digest = hashlib.sha256(json.dumps([request.prompt_ids, request.seed]).encode()).digest()
        ids = encode_text(self.tokenizer, self.texts[digest[0] % len(self.texts)])
        log_probs = [-digest[1 + n % 8] / 97 for n in range(len(ids))]
        return Sample(ids, log_probs, self.tokenizer.decode(ids), digest[1] < 40, request.version)


class Grader:
    """A grading pool without processes."""

    def states_answer(self, guidance, problem, attempt, answer):
        future: Future = Future()
        future.set_result((answer in guidance, "ok"))
        return future

    async def agrade(self, text, answer, *, problem="", prompt=""):
        return Grade("right" if answer in text else "wrong", "compared", 0.25)

    async def astates_answer(self, guidance, problem, attempt, answer):
        return answer in guidance, "ok"


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def run(tokenizer, journal=None, limit=None, failing=()):
    """The rows of every condition as lines, and how many requests they took."""
    solver = Engine(tokenizer, ["The answer is 2.", "The answer is 3.", "I do not know."], limit, failing)
    guidance = Engine(tokenizer, ["check the sum", "it is 3", "it is 4", "look again"])
    prompts = SolverPrompts(tokenizer, TEMPLATES)
    executor = ControlledExecutor(
        OneTask(), Grader(), prompts, GuidancePrompts(tokenizer, TEMPLATES), [guidance]
    )  # fmt: skip
    alone = ControlledExecutor(OneTask(), Grader(), prompts)
    runner = EvaluationRunner(OneTask(), Grader(), executor, [solver], alone, [guidance])
    cfg = Config(method="smart_score")
    kept = Kept(PROBLEMS, journal)
    collected = evaluate(runner, PROBLEMS, cfg, SETTINGS, lambda *_: lambda: None, kept)
    rows = [
        json.dumps([name, seed, t.to_json()])
        for name, by_seed in collected.items()
        for seed, trajectories in by_seed.items()
        for t in trajectories
    ]
    return rows, solver.num_asked


def test_it_goes_on_from_wherever_it_was_interrupted_with_the_same_rows(tokenizer, tmp_path):
    unbroken, num_requests = run(tokenizer)
    assert len(unbroken) == NUM_ROWS
    for limit in range(0, num_requests, 7):
        path = tmp_path / f"{limit}.jsonl"
        journal = Journal.open(path, {})
        with pytest.raises(Interrupted):
            run(tokenizer, journal, limit)
        journal.close()
        again = Journal.open(path, {})
        rows, num_asked = run(tokenizer, again)
        assert rows == unbroken, limit
        # an attempt whose revision was not there is sampled again; in flight are all of a condition at once
        assert num_asked < num_requests - limit + NUM_ROWS
        assert num_asked < num_requests or not again.records
        again.close()
        done = Journal.open(path, {})
        assert run(tokenizer, done) == (unbroken, 0)  # all is there
        done.close()


def test_a_run_broken_several_times_ends(tokenizer, tmp_path):
    unbroken, num_requests = run(tokenizer)
    path, rows = tmp_path / "progress.jsonl", None
    for _ in range(num_requests):
        journal = Journal.open(path, {})
        try:
            rows, _ = run(tokenizer, journal, limit=20)
            break
        except Interrupted:
            journal.close()
    assert rows == unbroken


def test_what_failed_is_tried_again(tokenizer, tmp_path):
    unbroken, _ = run(tokenizer)
    journal = Journal.open(tmp_path / "progress.jsonl", {})
    broken, _ = run(tokenizer, journal, failing=(3, 40))
    assert broken != unbroken and any('"failure": "attempt: RuntimeError"' in row for row in broken)
    journal.close()
    again = Journal.open(tmp_path / "progress.jsonl", {})
    assert run(tokenizer, again)[0] == unbroken


def test_a_trajectory_comes_back_whole():
    """Every field, one that is yet to come too: nothing that a row or a metric is made of may be lost on the way."""
    sample = Sample([1, 2], [-0.1, -1 / 3], "text \ud800", True, 4)
    values = {
        "problem": PROBLEMS[0], "group": 3, "attempt_index": 1, "guidance_index": 0, "prompt_ids": [5],
        "attempt": sample, "guidance_prompt_ids": [6], "guidance": dataclasses.replace(sample, text="hint"),
        "bridge_ids": [7], "revision": sample, "grade_t1": Grade("error", "cause", None),
        "grade_t2": Grade("right", "", 0.5, ("unit", "several")), "changed_answer": True,
        "base_attempt": True, "leak": 1.0, "leak_unjudged": True,
        "hint_metrics": {"hint_accuracy": 1.0}, "seconds": {"guide": 0.3}, "failure": "guide: X", "masked": "why",
    }  # fmt: skip
    whole = Trajectory(**values)
    for field in dataclasses.fields(Trajectory):
        assert field.name in values, f"{field.name} is new: give it a value here, and see that it comes back"
        if field.default is not dataclasses.MISSING:
            assert values[field.name] != field.default
    assert trajectory_of(json.loads(json.dumps(record_of(whole))), PROBLEMS[0]) == whole
    bare = Trajectory(PROBLEMS[1], 0, 0, 0)
    assert trajectory_of(json.loads(json.dumps(record_of(bare))), PROBLEMS[1]) == bare
