"""Losses and gradients of a DeepSpeed engine in; whether its next step may be taken, the same on all ranks, out.

A step whose loss or gradient is not finite on some rank is skipped on all of them, in DeepSpeed's own way: as an
overflow. Weights, Adam's moments and step counts and the learning-rate schedule stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad

from score_openrlhf.errors import RunError

TAKEN, SKIPPED, RESCALED = "taken", "skipped", "rescaled"


class NonfiniteError(RunError):
    """NaN or infinity where it would end up in weights, an engine or a checkpoint."""


@dataclass
class StepGuard:
    """Decides each optimizer step of one engine and keeps what was decided since `take`.

    DeepSpeed looks for overflows in fp16, and in bf16 with ZeRO-2; everywhere else it steps with what it has, and
    shows -1 for a norm that is not finite. Its optimizers skip where `overflow` is set, whatever the type
    (deepspeed/runtime/zero/stage3.py, _overflow_check_and_loss_scale_update; stage_1_and_2.py, step), so it is set
    here and nowhere else.

    A norm that overflows counts as infinite though each number is finite: Adam's second moment would be infinite. With
    a finite norm both moments are finite.
    """

    engine: Any
    outcomes: list[str] = field(default_factory=list)  # of each optimizer step: taken, skipped or rescaled
    first: str = ""  # what was nonfinite at the first skipped step
    bad_loss: torch.Tensor | None = None  # of the current window, on this rank
    steps_now: bool = True  # whether the last decision was to step

    def __post_init__(self) -> None:
        self.engine.optimizer.check_overflow = lambda *args, **kwargs: None
        if self.scaler.dynamic:
            self.scaler.raise_error_at_min_scale = False  # counted like any other instead, with a name

    @property
    def scaler(self) -> Any:
        return self.engine.optimizer.loss_scaler

    def see(self, loss: torch.Tensor) -> None:
        """Note a micro batch's loss; asks the device for nothing."""
        bad = ~torch.isfinite(loss.detach()).all()
        self.bad_loss = bad if self.bad_loss is None else self.bad_loss | bad

    @torch.no_grad()
    def decide(self) -> None:
        """At the end of a window, on all ranks, before the engine steps."""
        assert self.bad_loss is not None
        norm = torch.linalg.vector_norm(torch.stack(gradient_norms(self.engine.optimizer)).to(self.bad_loss.device))
        bad = torch.stack([self.bad_loss, ~torch.isfinite(norm)]).float()
        torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        in_loss, in_gradient = (bool(flag) for flag in bad.tolist())
        self.bad_loss = None
        self.steps_now = not (in_loss or in_gradient)
        self.engine.optimizer.overflow = not self.steps_now
        if self.steps_now:
            self.outcomes.append(TAKEN)
            return
        # In fp16 a gradient may be infinite for the loss scale alone, which then falls until it is not.
        if not in_loss and self.scaler.dynamic and self.scaler.cur_scale > self.scaler.min_scale:
            self.outcomes.append(RESCALED)
            return
        self.outcomes.append(SKIPPED)
        if not self.first:
            self.first = first_nonfinite(self.engine) or "the loss alone, no gradient"

    def take(self) -> tuple[list[str], str]:
        """The outcomes since the last call, and what was nonfinite first."""
        taken = self.outcomes, self.first
        self.outcomes, self.first = [], ""
        return taken


def gradient_norms(zero: Any) -> list[torch.Tensor]:
    """Norms, 0-d floats, of the parts of the accumulated gradient that this rank holds (of a ZeRO-2 or 3 optimizer).

    With offloaded states DeepSpeed has them from the end of the backward pass, on the GPU.
    """
    if getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False):
        norms = list(zero.norm_for_param_grads.values())
    else:
        parts = [part for group in zero.averaged_gradients.values() for part in group or () if part is not None]
        norms = [torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts]
    return [norm.float() for norm in norms] or [torch.zeros(())]


def first_nonfinite(engine: Any) -> str:
    """The first parameter, in the model's order, with a weight or gradient that is not finite; "" if there is none.

    All ranks must call it, between the backward pass and the step. Gathers one gradient after the other.
    """
    weight = nonfinite_weight(engine)
    if weight:
        return f"the weight {weight}"
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            gradient = safe_get_full_grad(parameter)
            # summed by gathering or added up over ranks: the same on all of them
            if gradient is not None and not torch.isfinite(torch.linalg.vector_norm(gradient.float())):
                return f"the gradient of {name}"
    return ""


@torch.no_grad()
def nonfinite_weight(engine: Any) -> str:
    """The first weight, in the model's order, that is not finite as engines get it; "" if there is none.

    All ranks must call it. Each looks at what it holds: one pass over its part in ZeRO-3, over all in ZeRO-2. The fp32
    weights of the optimizer are finite where these are, which are cast from them.
    """
    names, ends = [], []
    for name, parameter in engine.module.named_parameters():
        held = parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter.data
        names.append(name)
        # least and greatest number, NaN if there is one: a tenth of the time of isfinite(), and no copy
        value = torch.stack(torch.aminmax(held)) if held.numel() else torch.zeros(2)
        ends.append(value.float().to(engine.device, non_blocking=True))
    bad = (~torch.isfinite(torch.stack(ends)).all(-1)).float()
    torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
    where = bad.nonzero()
    return names[int(where[0])] if len(where) else ""
