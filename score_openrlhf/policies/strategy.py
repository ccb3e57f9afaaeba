"""A policy's arguments in; OpenRLHF's DeepSpeed strategy, with weights in host memory if asked for, out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from openrlhf.utils.deepspeed import DeepspeedStrategy
from openrlhf.utils.utils import get_strategy


class ParamOffloadStrategy(DeepspeedStrategy):
    """The host's strategy, which writes "offload_param": "none" for whatever it trains."""

    def get_ds_train_config(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        config = super().get_ds_train_config(*args, **kwargs)
        config["zero_optimization"]["offload_param"] = {"device": "cpu", "pin_memory": True}
        return config


def make_strategy(args: SimpleNamespace, *, param_offload: bool) -> DeepspeedStrategy:
    """The strategy for one policy's arguments."""
    strategy = get_strategy(args)
    if param_offload:
        strategy.__class__ = ParamOffloadStrategy  # get_strategy names its class itself; the state is the same
    return strategy
