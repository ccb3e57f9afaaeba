"""The optimizer that starts anew, for each of the Adams that DeepSpeed may run, and the schedule that goes with it."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import score_openrlhf  # noqa: F401  before DeepSpeed, for the platform

# isort: split
from deepspeed.ops.adam import fused_adam
from transformers.trainer import get_scheduler

from score_openrlhf.policies.optimizer import Learner, restart_adam, use_schedule
from tests.support.gpu_stand_in import use_fused_adam

LR, BETAS, EPS, WEIGHT_DECAY = 0.01, (0.9, 0.95), 1e-8, 0.1


def adam_of_torch(parameters):
    return torch.optim.AdamW(parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)


@pytest.fixture
def adam_of_cuda(monkeypatch):
    """DeepSpeed's own FusedAdam, which counts in an int; only its kernel is stood in for."""
    use_fused_adam(monkeypatch.setattr)
    return partial(fused_adam.FusedAdam, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)


def step(adam, weight, gradient) -> torch.Tensor:
    weight.grad = gradient.clone()
    adam.step()
    return weight.detach().clone()


@pytest.mark.parametrize("kind", ["torch", "DeepSpeed"])
def test_a_reset_adam_steps_as_a_new_one(kind, adam_of_cuda):
    make = adam_of_torch if kind == "torch" else adam_of_cuda
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(8, 5, generator=generator)
    weight = torch.nn.Parameter(torch.randn(5, generator=generator))
    adam = make([weight])
    for gradient in gradients[:5]:
        step(adam, weight, gradient)
    kept = weight.detach().clone()
    faulty_weight = torch.nn.Parameter(kept.clone())
    faulty = make([faulty_weight])
    faulty.state[faulty_weight] = copy.deepcopy(adam.state[weight])

    restart_adam(adam)
    assert torch.equal(weight, kept)
    fresh_weight = torch.nn.Parameter(kept.clone())
    fresh = make([fresh_weight])
    for gradient in gradients[5:]:
        assert torch.equal(step(adam, weight, gradient), step(fresh, fresh_weight, gradient))

    # the faulty way: the moments are zeroed, an int count stays. A new optimizer's first update is the sign of the
    # gradient; at count 6 it is (0.1 / (1 - 0.9^6)) / sqrt(0.05 / (1 - 0.95^6)) = 0.2134 / 0.4345 = 0.49 of that.
    for value in faulty.state[faulty_weight].values():
        if isinstance(value, torch.Tensor):
            value.zero_()
    moved = step(faulty, faulty_weight, gradients[5]) - kept * (1 - LR * WEIGHT_DECAY)
    part = {"torch": 1.0, "DeepSpeed": (0.1 / (1 - 0.9**6)) / (0.05 / (1 - 0.95**6)) ** 0.5}[kind]
    torch.testing.assert_close(moved, -LR * part * gradients[5].sign(), rtol=1e-4, atol=1e-7)


def test_both_adams_are_the_same_optimizer(adam_of_cuda):
    """The stand-in kernel is right, and the test above compares what it says it does."""
    generator = torch.Generator().manual_seed(1)
    start, gradients = torch.randn(5, generator=generator), torch.randn(4, 5, generator=generator)
    ends = []
    for make in (adam_of_torch, adam_of_cuda):
        weight = torch.nn.Parameter(start.clone())
        adam = make([weight])
        ends.append([step(adam, weight, gradient) for gradient in gradients])
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "warmup_ratio", "expected"),
    [
        ("linear", 0.0, [1, 3 / 4, 1 / 2, 1 / 4, 0]),
        ("linear", 0.5, [0, 1 / 2, 1, 1 / 2, 0]),  # 2 of the 4 steps warm up
        ("constant", 0.0, [1, 1, 1, 1, 1]),
    ],
)
def test_a_schedule_of_another_length_from_its_start_and_from_the_middle(name, warmup_ratio, expected):
    def engine() -> SimpleNamespace:
        adam = adam_of_torch([torch.nn.Parameter(torch.zeros(1))])
        factory = partial(
            get_scheduler, name, num_warmup_steps=0, num_training_steps=100, scheduler_specific_kwargs={}
        )
        made = SimpleNamespace(basic_optimizer=adam, client_lr_scheduler=factory, lr_scheduler=factory(adam))
        for _ in range(7):
            adam.step()
            made.lr_scheduler.step()
        return made

    for done in (0, 2):
        used = engine()
        use_schedule(used, 4, warmup_ratio, done=done)
        seen = [used.basic_optimizer.param_groups[0]["lr"]]
        for _ in range(4 - done):
            used.lr_scheduler.step()
            seen.append(used.basic_optimizer.param_groups[0]["lr"])
        assert seen == pytest.approx([LR * part for part in expected[done:]])


class Rank(Learner):
    """A rank whose engine is torch's Adam under a linear schedule of 100 steps, seven of them done."""

    schedule = SimpleNamespace(lr_warmup_ratio=0.5)

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.zeros(1))
        adam = adam_of_torch([self.weight])
        factory = partial(
            get_scheduler, "linear", num_warmup_steps=0, num_training_steps=100, scheduler_specific_kwargs={}
        )
        self.engine_made = SimpleNamespace(
            basic_optimizer=adam, client_lr_scheduler=factory, lr_scheduler=factory(adam)
        )
        for _ in range(7):
            step(adam, self.weight, torch.ones(1))
            self.engine_made.lr_scheduler.step()

    @property
    def engine(self):
        return self.engine_made

    @property
    def lr(self) -> float:
        return self.engine.basic_optimizer.param_groups[0]["lr"]


def test_a_reset_forgets_moments_and_schedule():
    rank = Rank()
    rank.reset_optimizer(8)
    assert all(not value.any() for state in rank.engine.basic_optimizer.state.values() for value in state.values())
    assert rank.lr == 0.0  # the first of four steps of warm-up
    rank.engine.lr_scheduler.step()
    assert rank.lr == pytest.approx(LR / 4)


def test_a_resumed_schedule_goes_on_and_keeps_the_moments():
    rank = Rank()
    rank.resume_schedule(20)
    assert rank.lr == pytest.approx(LR * 7 / 10)  # seven of ten steps of warm-up are done
    assert all(value.any() for state in rank.engine.basic_optimizer.state.values() for value in state.values())
