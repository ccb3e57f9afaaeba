"""A policy's arguments in; OpenRLHF's DeepSpeed strategy, which takes no step that is not finite, out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from openrlhf.models import Actor
from openrlhf.utils.deepspeed import DeepspeedStrategy
from openrlhf.utils.utils import get_strategy

from score_openrlhf import platform
from score_openrlhf.policies.finite import StepGuard
from score_openrlhf.policies.offload import keep_offload_buffers_out


class PolicyStrategy(DeepspeedStrategy):
    """The host's strategy of one policy or critic: steps are guarded, and checkpoints reload as they were saved.

    Weights may be in host memory, and an Adam on the CPU has cores.
    """

    param_offload = False
    ranks_on_node = 1  # training processes that may step at once beside this one, itself included
    guard: StepGuard | None = None  # of the one engine that this process trains

    def _ds_init_train_model(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        if self.adam_offload:
            platform.use_cores_for_adam(self.ranks_on_node)
        model, optimizer, scheduler = super()._ds_init_train_model(*args, **kwargs)
        keep_offload_buffers_out(optimizer.optimizer)  # the Adam inside ZeRO's optimizer
        return model, optimizer, scheduler

    def backward(self, loss: Any, model: Any, optimizer: Any, **kwargs: Any) -> None:
        if self.guard is None:
            self.guard = StepGuard(model.model if isinstance(model, Actor) else model)
        self.guard.see(loss)
        super().backward(loss, model, optimizer, **kwargs)

    def optimizer_step(self, optimizer: Any, model: Any, scheduler: Any, **kwargs: Any) -> None:
        """The host calls it after each micro batch; DeepSpeed steps at the end of a window."""
        assert self.guard is not None
        if self.guard.engine.is_gradient_accumulation_boundary():
            self.guard.decide()
        super().optimizer_step(optimizer, model, scheduler, **kwargs)

    def get_ds_train_config(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The host writes "offload_param": "none" for whatever it trains."""
        config = super().get_ds_train_config(*args, **kwargs)
        if self.param_offload:
            config["zero_optimization"]["offload_param"] = {"device": "cpu", "pin_memory": True}
        return config


def make_strategy(args: SimpleNamespace, *, param_offload: bool) -> DeepspeedStrategy:
    """The strategy for one policy's arguments."""
    strategy = get_strategy(args)
    strategy.__class__ = PolicyStrategy  # get_strategy names its class itself; the state is the same
    strategy.param_offload = param_offload
    return strategy
