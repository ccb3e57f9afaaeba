"""What changes the meaning of an evaluation is in its settings, and what does not is not."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from score_openrlhf.config.evaluation import (
    COUNTED_ELSEWHERE,
    NOT_COUNTED,
    changes,
    digest,
    evaluation_keys,
    evaluation_settings,
)
from score_openrlhf.config.keys import keys, set_value, value_of
from score_openrlhf.config.schema import Config
from score_openrlhf.tasks.base import Problem
from score_openrlhf.tasks.math import MathTask

PROBLEMS = [Problem("a", "1 plus 2?", "3"), Problem("b", "2 plus 2?", "4")]
TEMPLATES = MathTask.templates


def settings(cfg=None, problems=PROBLEMS, templates=TEMPLATES):
    return evaluation_settings(cfg or Config(), problems, templates)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eval.num_samples", 2), ("eval.temperature", 0.0), ("eval.seed", 5), ("data.eval", "other.jsonl"),
        ("data.max_eval_problems", 3), ("data.max_len", 99), ("rollout.attempt_max_tokens", 9),
        ("rollout.guidance_max_tokens", 9), ("rollout.revision_max_tokens", 9), ("rollout.seed_requests", False),
        ("task.grade_timeout_seconds", 1.0), ("templates.revision", "{guidance}"), ("ds.param_dtype", "fp32"),
    ],
)  # fmt: skip
def test_a_key_that_changes_what_is_measured_is_named(key, value):
    cfg = Config()
    set_value(cfg, key, value)
    (change,) = changes(settings(), settings(cfg))
    assert change == f"{key} was {value_of(Config(), key)} and is {value}"


@pytest.mark.parametrize("key", ["eval.steps", "rollout.batch_size", "task.grader_processes", "max_steps", "alpha"])
def test_a_key_of_training_or_of_speed_changes_nothing(key):
    cfg = Config()
    set_value(cfg, key, 7)
    assert settings(cfg) == settings()


def test_every_key_of_an_evaluations_sections_is_decided_on():
    """A new key of them counts until it is listed; a key that is gone is not left in the list."""
    assert set(NOT_COUNTED) <= set(keys()) and set(COUNTED_ELSEWHERE) <= set(keys())
    assert not set(NOT_COUNTED) & set(evaluation_keys())
    assert {key for key in keys() if key.startswith("eval.")} - set(evaluation_keys()) == {
        "eval.steps", "eval.before_and_after",
    }  # fmt: skip


def test_the_problems_and_prompts_count_by_what_they_say(tmp_path):
    renamed = [Problem("other id", p.text, p.answer) for p in PROBLEMS]
    assert settings(problems=renamed) == settings()
    assert changes(settings(), settings(problems=PROBLEMS[:1])) == ["the problems themselves changed"]
    corrected = [PROBLEMS[0], Problem("b", "2 plus 2?", "5")]
    assert changes(settings(), settings(problems=corrected)) == ["the problems themselves changed"]
    prompts = dataclasses.replace(TEMPLATES, static_revision="Look again.")
    assert changes(settings(), settings(templates=prompts)) == ["the prompts changed"]


def test_a_graders_file_counts_by_its_content(tmp_path):
    cfg = Config()
    cfg.task.reward_func = str(tmp_path / "reward.py")
    (tmp_path / "reward.py").write_text("a")
    before = settings(cfg)
    (tmp_path / "reward.py").write_text("b")
    assert changes(before, settings(cfg)) == ["the task's code changed"]


def test_a_digest_is_the_same_in_every_process():
    expected = hashlib.sha256(b'{"a": [null, "x"], "b": 1}').hexdigest()[:16]
    assert digest({"b": 1, "a": [None, "x"]}) == digest({"a": [None, "x"], "b": 1}) == expected
