"""What decides whether an optimizer step is taken; real optimizers and ranks are in tests/stack/test_nonfinite.py."""

from __future__ import annotations

from types import SimpleNamespace

import deepspeed
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from openrlhf.trainer.ppo_utils.experience import Experience

from score_openrlhf.experience.maker import nonfinite_numbers
from score_openrlhf.policies.finite import (
    RESCALED,
    SKIPPED,
    TAKEN,
    StepGuard,
    gradient_norms,
    nonfinite_weight,
)


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    yield
    torch.distributed.destroy_process_group()


def engine_with(gradient: list[float], scaler: LossScaler | DynamicLossScaler | None = None) -> SimpleNamespace:
    zero = SimpleNamespace(
        averaged_gradients={0: [torch.tensor(gradient)]}, loss_scaler=scaler or LossScaler(1.0), overflow=False
    )
    return SimpleNamespace(optimizer=zero, module=torch.nn.Linear(2, 1), device="cpu")


def decided(engine: SimpleNamespace, *losses: float, guard: StepGuard | None = None) -> tuple[list[str], bool]:
    guard = guard or StepGuard(engine)
    for loss in losses:
        guard.see(torch.tensor(loss))
    guard.decide()
    return guard.take()[0], engine.optimizer.overflow


def test_a_finite_step_is_taken_and_any_other_is_an_overflow_to_deepspeed():
    nan, inf = float("nan"), float("inf")
    assert decided(engine_with([1.0, -2.0]), 0.5, 0.25) == ([TAKEN], False)
    for losses in ((nan, 0.5), (0.5, inf), (-inf,)):
        assert decided(engine_with([1.0]), *losses) == ([SKIPPED], True)
    for gradient in ([1.0, nan], [inf, 0.0], [1e25, 1.0]):  # the last one's square is infinite, so Adam's moment
        assert decided(engine_with(gradient), 0.5) == ([SKIPPED], True)


def test_what_was_seen_of_one_window_does_not_reach_the_next():
    engine = engine_with([1.0])
    guard = StepGuard(engine)
    assert decided(engine, float("nan"), guard=guard) == ([SKIPPED], True)
    assert decided(engine, 0.5, guard=guard) == ([TAKEN], False)


def test_a_rank_without_a_part_of_the_gradient_has_nothing_against_it():
    engine = engine_with([])
    engine.optimizer.averaged_gradients = {0: None, 1: [None]}
    assert decided(engine, 0.5) == ([TAKEN], False)


def test_a_half_precision_gradient_is_summed_in_floats():
    zero = SimpleNamespace(averaged_gradients={0: [torch.full((100,), 60_000.0, dtype=torch.float16)]})
    assert gradient_norms(zero)[0].item() == pytest.approx(600_000.0)  # infinite in fp16


def test_an_fp16_loss_scale_may_fall_before_a_step_counts_as_not_finite():
    """The scale starts high on purpose: DeepSpeed lowers it at each infinite gradient, to its minimum."""
    scaler = DynamicLossScaler(4.0, 1000, 1.0, 1, False)
    engine = engine_with([float("inf")], scaler)
    guard = StepGuard(engine)
    outcomes = []
    for _ in range(4):
        outcomes += decided(engine, 0.5, guard=guard)[0]
        scaler.update_scale(engine.optimizer.overflow)  # as DeepSpeed's step does
    assert outcomes == [RESCALED, RESCALED, SKIPPED, SKIPPED] and scaler.cur_scale == 1.0
    assert decided(engine_with([1.0], DynamicLossScaler(4.0, 1000, 1.0, 1, False)), float("nan")) == ([SKIPPED], True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_the_first_weight_that_is_not_finite_is_named(dtype, number):
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3))).to(dtype)
    engine = SimpleNamespace(module=model, device="cpu")
    assert nonfinite_weight(engine) == ""
    with torch.no_grad():
        model[0].weight[0, 0] = torch.finfo(dtype).max  # large is finite
        assert nonfinite_weight(engine) == ""
        model[2].weight[1, 2] = number
        model[1].bias[2] = number
    assert nonfinite_weight(engine) == "1.bias"


def test_a_batch_says_what_in_it_is_not_finite_and_in_how_many_rows():
    def experience(**values: torch.Tensor) -> Experience:
        whole = torch.zeros(2, 3)
        return Experience(**{"advantages": whole, "returns": whole, "action_log_probs": whole, **values})

    bad = torch.zeros(2, 3)
    bad[1, 0], bad[1, 2] = float("nan"), float("-inf")
    assert nonfinite_numbers([experience(), experience()]) == ""
    said = nonfinite_numbers([experience(rollout_log_probs=bad), experience(rollout_log_probs=bad, advantages=bad)])
    assert said == "the engine's log-probs in 2 rows, advantages in 1 rows"
    for read in (
        "rollout_log_probs", "action_log_probs", "base_action_log_probs", "kl", "values", "returns", "advantages",
    ):  # fmt: skip
        assert nonfinite_numbers([experience(**{read: bad})]).endswith(" in 1 rows"), read
