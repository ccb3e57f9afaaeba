"""DeepSpeed's torch backend in; the same backend, with complete gathers and nothing to compile, out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from score_openrlhf.platform.hooks import Upstream, after_import


@after_import(
    "zero3_gather_race",
    "deepspeed.comm.torch",
    Upstream("deepspeed/runtime/zero/partition_parameters.py", 2082, "launch_handles[-1].wait()"),
)
def complete_gathers(module: ModuleType) -> None:
    """ZeRO-3 waits for the last of several asynchronous all-gathers only, and then reads all of them.

    NCCL runs them in order on one stream, so the last one is enough there. Gloo runs them on threads: with two ranks
    about one model load in four had wrong weights, silently. Waiting for each gather where it is started costs nothing
    here, since gloo's threads and the trainer's share the same cores.
    """
    for name in ("all_gather_into_tensor", "all_gather"):
        setattr(module.TorchBackend, name, _complete(getattr(module.TorchBackend, name)))


def _complete(gather: Callable) -> Callable:
    @functools.wraps(gather)
    def complete(*args: Any, **kwargs: Any) -> Any:
        handle = gather(*args, **kwargs)
        if handle is not None:  # None from a blocking call
            handle.wait()
        return handle

    return complete


@after_import(
    "shm_comm",
    "deepspeed.comm.torch",
    Upstream("deepspeed/comm/torch.py", 191, "self.shm_comm_op = build_shm_op()"),
)
def no_shared_memory_op(module: Any) -> None:
    """Starting the backend compiles a shared-memory all-reduce with g++ (half a minute, and a compiler).

    It serves tensor-parallel inference with DeepSpeed's own kernels; training goes through gloo with or without it.
    """
    module.build_shm_op = lambda: None


@after_import(
    "state_offload",
    "openrlhf.utils.deepspeed.deepspeed_utils",
    Upstream("deepspeed/runtime/zero/stage3.py", 3585, "deepspeed.ops.adam.fused_adam.FusedAdam"),
)
def states_stay(module: Any) -> None:
    """ds.enable_sleep moves a policy's states to host memory between updates; DeepSpeed does it for FusedAdam alone.

    Here they are in host memory already, and the optimizer is torch's own Adam.
    """
    module.offload_deepspeed_states = lambda model, pin_memory=True, non_blocking=True: None
    module.reload_deepspeed_states = lambda model, non_blocking=True: None
