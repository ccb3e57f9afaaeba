"""Adam on a GPU that is stood in for: DeepSpeed's own offload, torch's own loading, before and after a resume."""

from __future__ import annotations

import io

import pytest
import torch

import score_openrlhf  # noqa: F401  before DeepSpeed, for the platform

# isort: split
from deepspeed.runtime.zero.offload_states import offload_adam_states, reload_adam_states

from score_openrlhf.policies.offload import BUFFER, keep_offload_buffers_out
from tests.support.gpu_stand_in import StandInGpu


def adam_on(gpu: StandInGpu, *, mended: bool) -> torch.optim.AdamW:
    """An Adam after a step, on the GPU."""
    weight = torch.nn.Parameter(torch.ones(5))
    adam = torch.optim.AdamW([weight])
    weight.grad = torch.arange(1.0, 6.0)
    adam.step()
    gpu.put([weight, *moments(adam).values()])
    if mended:
        keep_offload_buffers_out(adam)
    return adam


def moments(adam: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    (state,) = adam.state.values()
    return {name: state[name] for name in ("exp_avg", "exp_avg_sq")}


def through_a_file(saved: dict) -> dict:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file)


def names(saved: dict) -> set[str]:
    return {name for state in saved["state"].values() for name in state}


@pytest.mark.parametrize("saved_mended", [False, True], ids=["old checkpoint", "new checkpoint"])
@pytest.mark.parametrize("mended", [False, True], ids=["as DeepSpeed has it", "mended"])
def test_after_a_resume_the_moments_leave_the_gpu(saved_mended, mended):
    """Without the hooks, and from a checkpoint with the buffers, they never do."""
    gpu = StandInGpu()
    first, resumed = adam_on(gpu, mended=saved_mended), adam_on(gpu, mended=mended)
    expected = {name: value.clone() for name, value in moments(first).items()}
    with gpu:
        offload_adam_states(first, "cpu")
        assert not any(map(gpu.holds, moments(first).values()))
        saved = through_a_file(first.state_dict())
        assert any(name.endswith(BUFFER) for name in names(saved)) != saved_mended
        reload_adam_states(first, "cuda:0")  # saving has left it what this reads
        assert all(map(gpu.holds, moments(first).values()))

        resumed.load_state_dict(saved)
        assert all(map(gpu.holds, moments(resumed).values()))
        for _ in range(2):
            offload_adam_states(resumed, "cpu")
            left = [gpu.holds(value) for value in moments(resumed).values()]
            assert left == [not (mended or saved_mended)] * 2
            reload_adam_states(resumed, "cuda:0")
    for adam in (first, resumed):
        for name, value in moments(adam).items():
            assert torch.equal(value, expected[name])
