"""A GPU for machines without one: tensors on the CPU whose storages are said to be on cuda:0, and Adam's kernel."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda:0")


class StandInGpu(TorchFunctionMode):
    """Within the block tensors know whether they are on the GPU, and `.to` copies from one memory to the other.

    Code that moves tensors (DeepSpeed's offload, torch's optimizers) runs as it is; `num_bytes` is what the GPU holds.
    """

    def __init__(self) -> None:
        super().__init__()
        # by the storage's address, which is not given again while a reference is here
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def put(self, tensors: Iterable[torch.Tensor]) -> None:
        """Say that these tensors, made without a device, are on the GPU."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._held

    @property
    def num_bytes(self) -> int:
        return sum(size for reference, size in self._held.values() if not reference.expired())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:  # a new object at each access
            return DEVICE if self.holds(args[0]) else func(*args)
        if func is torch.Tensor.to:
            return self._to(*args, **kwargs)
        like = args[0] if args and isinstance(args[0], torch.Tensor) and func.__name__.endswith("_like") else None
        device = kwargs.get("device")
        on_gpu = self._is_gpu(device) or (device is None and like is not None and self.holds(like))
        if self._is_gpu(device):
            kwargs["device"] = "cpu"
        made = func(*args, **kwargs)
        if on_gpu:
            self.put([made])
        return made

    def _to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        target = kwargs.get("device", next((value for value in args if isinstance(value, str | torch.device)), None))
        on_gpu = self._is_gpu(target)
        if target is None or not (on_gpu or self.holds(tensor)) or torch.device(target).type == "meta":
            return torch.Tensor.to(tensor, *args, **kwargs)
        dtype = kwargs.get("dtype", next((value for value in args if isinstance(value, torch.dtype)), tensor.dtype))
        moved = torch.Tensor.to(tensor, dtype, copy=on_gpu != self.holds(tensor))
        if on_gpu:
            self.put([moved])
        return moved

    @staticmethod
    def _is_gpu(device: Any) -> bool:
        return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


class AdamKernel:
    """What FusedAdam's CUDA kernel computes (deepspeed/csrc/adam/multi_tensor_adam.cu), on the CPU."""

    def multi_tensor_adam(self, chunk, overflow, lists, lr, beta1, beta2, eps, step, adam_w, bias_correction, decay):
        assert adam_w and bias_correction
        for gradient, weight, mean, square in zip(*lists, strict=True):
            mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = (square / (1 - beta2**step)).sqrt() + eps
            weight.sub_(lr * (mean / (1 - beta1**step) / denominator + decay * weight))


def use_fused_adam(set_attribute: Any) -> None:
    """Let DeepSpeed's own FusedAdam run here; `set_attribute(object, name, value)` as of pytest's monkeypatch."""
    from deepspeed.ops.adam import fused_adam

    set_attribute(fused_adam.FusedAdamBuilder, "load", lambda self, verbose=True: AdamKernel())
    set_attribute(fused_adam, "get_accelerator", lambda: SimpleNamespace(IntTensor=torch.IntTensor))
