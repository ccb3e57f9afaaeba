"""DeepSpeed's FusedAdam without a compiler in; the same optimizer, its kernel torch's own fused AdamW, out.

Only the kernel is another: the class, its state and its checkpoints stay, so that OpenRLHF's offload of optimizer
states (`ds.enable_sleep`), which DeepSpeed does for this class alone, works too.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from score_openrlhf.platform.hooks import Upstream, after_import

if TYPE_CHECKING:
    import torch


@after_import(
    "fused_adam_kernel",
    "deepspeed.ops.adam.fused_adam",
    Upstream("deepspeed/ops/adam/fused_adam.py", 94, "fused_adam_cuda = FusedAdamBuilder().load()"),
)
def without_compiler(module: Any) -> None:
    """FusedAdam's kernel is compiled with nvcc when the first optimizer is made; without one that is an error."""
    module.FusedAdamBuilder = _Builder


class _Builder:
    """Stands where DeepSpeed's FusedAdamBuilder does."""

    def load(self) -> SimpleNamespace:
        return SimpleNamespace(multi_tensor_adam=multi_tensor_adam)


def multi_tensor_adam(
    _chunk_size: int,
    _noop_flag: torch.Tensor,
    tensors: Sequence[Sequence[torch.Tensor]],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    adam_w_mode: int,
    bias_correction: int,
    weight_decay: float,
) -> None:
    """Update parameters in place: `tensors` are gradients, parameters, first and second moments, all of one type.

    As deepspeed/ops/csrc/adam/multi_tensor_adam.cu. `step` counts from 1 and is that of this update. Raises ValueError
    for what torch's kernel has no mode for, which OpenRLHF never asks for: no bias correction.
    """
    import torch
    from torch.optim.adam import adam
    from torch.optim.adamw import adamw

    if not bias_correction:
        raise ValueError("Adam without bias correction needs DeepSpeed's own kernel: install a CUDA toolkit with nvcc")
    gradients, parameters, first, second = tensors
    # torch counts a step of its own for each tensor, and counts before it updates
    steps = [torch.full((), float(step - 1), device=parameter.device) for parameter in parameters]
    with torch.no_grad():
        (adamw if adam_w_mode else adam)(
            list(parameters),
            list(gradients),
            list(first),
            list(second),
            [],
            steps,
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            maximize=False,
        )
