"""No step with NaN or infinity in it is taken, on any rank, whatever holds the gradient; and none gets past a step.

Actor and critic, on one and two ranks; with two, the last one alone is poisoned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from benchmarks.tiny_models import make_tokenizer
from score_openrlhf.policies.engines import NonfiniteLogProbs, _RolloutActor
from score_openrlhf.policies.finite import NonfiniteError
from score_openrlhf.policies.policy import Policy
from tests.stack.equations import (
    POISONS,
    RunningGroups,
    built,
    config,
    make_batch,
    make_models,
    watched,
)

# Who holds gradients and weights, and in which type.
HELD: dict[str, dict[str, Any]] = {
    "ZeRO-3": {},
    "ZeRO-3, clipped, dynamic": {
        "actor.max_norm": 1.0, "critic.max_norm": 1.0, "train.dynamic_batch_enable": True,
        "train.max_tokens_per_gpu": 60,
    },
    "ZeRO-3, bf16": {"ds.param_dtype": "bf16", "ds.grad_accum_dtype": "fp32"},
    "ZeRO-3, offload": {"ds.adam_offload": True},
    "ZeRO-2": {"ds.zero_stage": 2},
    "ZeRO-2, bf16": {"ds.zero_stage": 2, "ds.param_dtype": "bf16"},
    "ZeRO-2, offload": {"ds.zero_stage": 2, "ds.adam_offload": True},
    "LoRA": {"ds.lora.rank": 4},
}  # fmt: skip
WEIGHT = "layers.1.mlp.up_proj"  # part of its name, or of its adapter's
BATCH = make_batch((3, 3, 3, 3, 3, 3), 1, failed=(2,))  # two windows


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return make_models(tmp_path_factory.mktemp("nonfinite"))


@pytest.fixture(scope="module")
def groups(ray_session) -> Iterator[RunningGroups]:
    groups = RunningGroups()
    yield groups
    groups.end()


CASES = [(1, "ZeRO-3"), *((2, held) for held in HELD)]


@pytest.fixture(params=CASES, ids=[f"ranks{num_ranks}, {held}" for num_ranks, held in CASES])
def solver(request, groups, model_path) -> Iterator[Policy]:
    num_ranks, name = request.param
    cfg = config(model_path, num_ranks, keys=HELD[name], method="score")
    cfg.rollout.batch_size, cfg.max_nonfinite_steps = 9, 2
    cfg.actor.adam.lr = cfg.critic.lr = 1e-3
    cfg.actor.lr_scheduler, cfg.critic.enable = "linear", True  # where the schedule stands shows
    with built(cfg, groups=groups) as roles:
        yield roles.policy("solver")


def learners(solver: Policy) -> dict[str, Any]:
    return {"actor": solver.actor_model_group, "critic": solver.critic_model_group}


def update(solver: Policy) -> dict[str, Any]:
    status = solver.update(solver.maker.make_batch(BATCH, stage=2), step=0)
    for group in learners(solver).values():
        ray.get(group.async_run_method(method_name="take_windows"))
    return status


def state(solver: Policy) -> dict[str, Any]:
    return {
        name: {"weights": watched(group, "weights"), "adam": ray.get(group.async_run_method(method_name="adam"))}
        for name, group in learners(solver).items()
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def poison(solver: Policy, name: str, kind: str, micro_batches: int = 0) -> None:
    group = learners(solver)[name]
    last = len(group._actor_handlers) - 1
    ray.get(group.async_run_method(method_name="poison", rank=last, kind=kind, micro_batches=micro_batches))


def test_a_step_that_is_not_finite_is_taken_nowhere_and_named(solver):
    update(solver)  # Adam has moments
    for name, kind in [*(("actor", kind) for kind in POISONS), ("critic", "NaN loss"), ("critic", "NaN gradient")]:
        before, steps = state(solver), solver.optimizer_steps
        poison(solver, name, kind)
        status = update(solver)  # the first window is spoilt, the second is not
        prefix = "critic_" if name == "critic" else ""
        assert status[f"{prefix}nonfinite_steps"] == 1, (name, kind)
        assert solver.optimizer_steps == steps + (1 if name == "actor" else 2), (name, kind)
        after = state(solver)
        for learner in after:
            moved = 1 if learner == name else 2
            assert all(value.isfinite().all() for value in after[learner]["weights"].values()), (learner, kind)
            for old, new in zip(before[learner]["adam"], after[learner]["adam"], strict=True):  # of each rank
                assert new["steps"] == [count + moved for count in old["steps"]]
                assert all(value.isfinite().all() for value in new["moments"]), (learner, kind)
        assert status[f"{name}_grad_norm"] > 0 and abs(status["policy_loss"]) < 1e3 > status["critic_loss"]
    solver.max_nonfinite_steps = 1
    for name, called in (("critic", "solver's critic"), ("actor", "solver")):
        poison(solver, name, "NaN gradient")
        first = next(iter(state(solver)[name]["weights"]))
        with pytest.raises(NonfiniteError) as raised:
            update(solver)
        assert str(raised.value).startswith(
            f"{called}: 1 optimizer steps in a row were not finite, the last in step 1; the first thing not finite: "
            f"the gradient of {first}. None of them was taken"
        )


def test_nothing_moves_in_an_update_of_such_steps_alone_and_the_run_ends(solver, monkeypatch, tmp_path):
    update(solver)
    batch = solver.maker.make_batch(BATCH, stage=2)
    batch.experiences[0].rollout_log_probs[0, 0] = -torch.inf  # an engine's
    before = state(solver)
    assert solver.update(batch, step=3)["nonfinite_steps"] == 1
    assert_same(state(solver), before)
    update(solver)
    assert solver.nonfinite_in_a_row == {"actor": 0, "critic": 0}

    # both windows, by weights that are not finite where the next forward pass reads them
    before = state(solver)
    name = next(key for key in before["actor"]["weights"] if WEIGHT in key)
    number = before["actor"]["weights"][name].view(-1)[-1].item()
    ray.get(solver.actor_model_group.async_run_method(method_name="break_weight", wanted=name, number=torch.nan))

    sent: list[str] = []
    monkeypatch.setattr(solver, "broadcast_to_vllm", lambda: sent.append("weights"))
    save, export = partial(solver.save, str(tmp_path / "s"), "t", {}), partial(solver.export, str(tmp_path / "e"))
    for use in (solver.sync, save, export):
        with pytest.raises(NonfiniteError, match=re.escape(f"solver: the weight {name} is not finite")):
            use()
    assert not sent and not list(tmp_path.iterdir())

    # rewards and log-probs were sampled before: the batch itself is finite
    batch = make_finite(solver, number, name)
    with pytest.raises(NonfiniteError) as raised:
        solver.update(batch, step=6)
    assert re.search(
        rf"solver: 2 optimizer steps in a row were not finite, the last in step 7; .* the weight {re.escape(name)}\.",
        str(raised.value),
    )
    ray.get(solver.actor_model_group.async_run_method(method_name="break_weight", wanted=name, number=number))
    assert_same(state(solver)["actor"], before["actor"])


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_an_engines_sample_without_log_probs_is_a_failure(number):
    output = SimpleNamespace(
        token_ids=[5, 6], logprobs=[{5: SimpleNamespace(logprob=-0.5)}, {6: SimpleNamespace(logprob=number)}],
        finish_reason="stop",
    )  # fmt: skip
    finished, engine = SimpleNamespace(outputs=[output]), SimpleNamespace(tokenizer=make_tokenizer())
    with pytest.raises(NonfiniteLogProbs, match=str(number)):
        _RolloutActor._sample_of(engine, SimpleNamespace(temperature=1.0, version=0), finished)
    greedy = _RolloutActor._sample_of(engine, SimpleNamespace(temperature=0.0, version=0), finished)
    assert greedy.token_ids == [5, 6]  # nothing learns from an evaluation


def make_finite(solver: Policy, number: float, name: str) -> Any:
    """A batch of the weights as they were, and the weight broken again after it."""
    group = solver.actor_model_group
    ray.get(group.async_run_method(method_name="break_weight", wanted=name, number=number))
    batch = solver.maker.make_batch(BATCH, stage=2)
    ray.get(group.async_run_method(method_name="break_weight", wanted=name, number=torch.nan))
    return batch
