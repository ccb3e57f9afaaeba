"""The base model's attempts: which problems take them, what is sampled ahead, and what their file survives."""

import json

import pytest

from score_openrlhf.config.schema import Config
from score_openrlhf.rollout.generator import ProblemOrder
from score_openrlhf.rollout.metrics import num_sampled_tokens, trajectory_metrics
from score_openrlhf.tasks.base import Problem
from score_openrlhf.trainer.base_attempts import FILE, BaseAttempts, needed, positions
from tests.support.fakes import trajectory

PROBLEMS = [Problem(f"p{number}", f"problem {number}", "7", {}) for number in range(10)]


def config(stage1=0.5, stage2=0.25, *, batch_size=8, stage1_steps=2, stage2_steps=3, **changes) -> Config:
    cfg = Config(model_path="base", stage1_steps=stage1_steps, stage2_steps=stage2_steps, seed=3)
    cfg.rollout.batch_size, cfg.rollout.n_samples_per_prompt = batch_size, 2
    cfg.rollout.base_attempts_stage1, cfg.rollout.base_attempts_stage2 = stage1, stage2
    for name, value in changes.items():
        setattr(cfg.rollout, name, value)
    return cfg


def test_a_part_of_the_problems_changes_from_step_to_step():
    cfg = config()
    chosen = [positions(cfg, step, 0.5) for step in range(20)]
    assert {len(c) for c in chosen} == {4} and len({tuple(c) for c in chosen}) > 10
    assert positions(cfg, 0, 0.0) == [] and positions(cfg, 0, 1.0) == list(range(8))
    for step in range(20):
        assert set(positions(cfg, step, 0.25)) < set(positions(cfg, step, 0.5))


def asked_for(cfg, stages, order):
    """The problems whose given attempts the steps really ask for."""
    found = set()
    for step, stage in enumerate(stages):
        part = cfg.rollout.base_attempts_stage1 if stage == 1 else cfg.rollout.base_attempts_stage2
        problems = order.draw(cfg.rollout.batch_size)
        found |= {problems[position].id for position in positions(cfg, step, part)}
    return found


def test_what_is_sampled_ahead_is_what_the_steps_ask_for():
    cfg, stages = config(batch_size=4), [1, 1, 2, 2, 2]
    order = ProblemOrder(PROBLEMS, cfg.seed)
    ahead = needed(cfg, order, stages, 0)
    assert order.position == 0  # looking ahead draws nothing
    assert {p.id for p in ahead} == asked_for(cfg, stages, order) and len(ahead) == len({p.id for p in ahead})
    assert needed(config(0.0, 0.0), ProblemOrder(PROBLEMS, 3), stages, 0) == []


def test_an_early_end_of_stage_1_finds_its_attempts_too():
    cfg = config(0.0, 0.5, batch_size=4)
    cfg.stage_switch.metric = "delta"
    ahead = {p.id for p in needed(cfg, ProblemOrder(PROBLEMS, cfg.seed), [1, 1, 2, 2, 2], 0)}
    assert ahead >= asked_for(cfg, [1, 2, 2, 2, 2], ProblemOrder(PROBLEMS, cfg.seed))


def fake_engines(calls, failing=()):
    def attempts_of(problems):
        calls.append([problem.id for problem in problems])
        return [
            trajectory(
                number, n, attempt=(int(problem.id[1:]), n), failure="attempt: X" if problem.id in failing else None
            )
            for number, problem in enumerate(problems)
            for n in range(2)
        ]

    # fakes name their problem after its group; the real ones carry it
    return lambda problems: [setattr(t, "problem", problems[t.group]) or t for t in attempts_of(problems)]


def test_the_file_gives_a_run_that_goes_on_the_same_attempts(tmp_path):
    cfg, calls = config(1.0, 1.0), []
    base = BaseAttempts(cfg, tmp_path)
    base.sample(PROBLEMS, fake_engines(calls, failing={"p4"}))
    given = base.of_step(0, 1, PROBLEMS[:8])
    assert [s.token_ids for s in given[3]] == [[3, 0], [3, 1]]
    assert given[4] is None  # it failed: the solver makes its own
    with open(tmp_path / FILE, "a") as file:
        file.write('{"problem_id": "p9", "attem')  # killed while writing
    again = BaseAttempts(cfg, tmp_path)
    assert again.of_step(0, 1, PROBLEMS[:8]) == given
    again.sample(PROBLEMS, fake_engines(calls))
    assert calls == [[p.id for p in PROBLEMS], ["p4"]]  # only what was missing
    assert len([json.loads(line) for line in (tmp_path / FILE).open()]) == 1 + len(PROBLEMS)


@pytest.mark.parametrize("change", [{"temperature": 0.7}, {"attempt_max_tokens": 5}, {"n_samples_per_prompt": 1}])
def test_attempts_of_other_settings_are_not_mixed_in(tmp_path, change):
    BaseAttempts(config(), tmp_path).sample(PROBLEMS, fake_engines([]))
    assert BaseAttempts(config(**change), tmp_path).known == {}


def test_metrics_are_of_the_policys_own_attempts():
    own, given = trajectory(0, r1=1, r2=1), trajectory(1, r1=0, r2=1, base_attempt=True)
    metrics = trajectory_metrics([own, given])
    assert metrics["acc_t1"] == 1.0 and metrics["rollout/base_attempts"] == 0.5
    assert trajectory_metrics([given])["acc_t1"] == 0.0  # there is no other
    assert "rollout/base_attempts" not in trajectory_metrics([own])
    assert num_sampled_tokens([own, given])["solver"] == 2 + 3 + 3
