"""A policy with LoRA adapters in; the weights of one plain model, for its engines and its export, out.

Engines and exports know no adapters: they get each weight with its adapter added. The policy's own weights are never
touched: adding and taking away in bf16 would round the frozen weights at every step. The host's own broadcast sends
`base_layer` and `lora_A` under names that no engine has, and so ends in the first sync.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from openrlhf.models import Actor
from openrlhf.trainer.ray.utils import get_physical_gpu_id
from openrlhf.utils.distributed_util import torch_dist_barrier_and_cuda_sync
from openrlhf.utils.utils import convert_to_torch_dtype
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import transpose

from score_openrlhf.policies.finite import NonfiniteError

ADAPTER_FOLDER = "adapter"  # of an export: the adapters alone, in PEFT's form
ADAPTER = "default"  # the name get_peft_model gives the one adapter


class AdaptedActor(Actor):
    """OpenRLHF's model with adapters in the type of its weights.

    PEFT makes them floats, and ZeRO-3 takes parameters as they are (deepspeed/runtime/engine.py,
    _cast_module_mixed_precision), so bf16 and floats would stand side by side. Master weights are floats anyway.
    """

    def __init__(self, *args: Any, param_dtype: str = "bf16", **kwargs: Any):
        super().__init__(*args, param_dtype=param_dtype, **kwargs)
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.to(convert_to_torch_dtype(param_dtype))


@dataclass
class PlainWeight:
    """One weight of the plain model: its name there, the parameter, and the layer whose adapter is added to it."""

    name: str
    parameter: torch.nn.Parameter
    layer: LoraLayer | None

    @property
    def parts(self) -> list[torch.nn.Parameter]:
        if self.layer is None:
            return [self.parameter]
        layer: Any = self.layer  # peft adds its attributes by mixing in
        return [self.parameter, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]

    def value(self) -> torch.Tensor:
        """`W + alpha / rank * B A` (Hu et al. 2021, arXiv 2106.09685, equation 3), added up in floats; needs `parts`
        to be whole."""
        if self.layer is None:
            return self.parameter.data
        _, down, up = (part.data.float() for part in self.parts)
        layer: Any = self.layer
        change = transpose(up @ down, layer.fan_in_fan_out) * layer.scaling[ADAPTER]
        value = (self.parameter.data.float() + change).to(self.parameter.dtype)
        if not torch.isfinite(value).all():  # each part was; the sum may be too large for fp16
            raise NonfiniteError(f"the weight {self.name} with its adapter is not finite in {value.dtype}")
        return value


def plain_weights(model: PeftModel) -> list[PlainWeight]:
    """The weights of the model without adapters, in the order of its parameters; a tied one once."""
    layers = {id(layer.base_layer.weight): layer for layer in model.modules() if isinstance(layer, LoraLayer)}
    return [
        PlainWeight(name.replace(".base_layer.", "."), parameter, layers.get(id(parameter)))
        for name, parameter in model.get_base_model().named_parameters()
        if ".lora_" not in name
    ]


def whole_values(model: PeftModel, zero_stage: int) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, value) of each plain weight on every rank, one at a time; all ranks must go through to the end."""
    for weight in plain_weights(model):
        with GatheredParameters(weight.parts, enabled=zero_stage == 3):
            yield weight.name, weight.value()


def broadcast(trainer: Any) -> None:
    """Send the weights to the engines, as ActorPPOTrainer does (openrlhf/trainer/ray/ppo_actor.py)."""
    model, is_first = trainer.actor.model.module, torch.distributed.get_rank() == 0
    if trainer.args.vllm.enable_prefix_caching and is_first:
        ray.get([engine.reset_prefix_cache.remote() for engine in trainer.vllm_engines])
    torch.cuda.empty_cache()
    last = plain_weights(model)[-1].name
    for name, value in whole_values(model, trainer.args.ds.zero_stage):
        header: dict[str, Any] = dict(dtype=value.dtype, shape=value.shape, empty_cache=name == last)
        if trainer.use_cuda_ipc:
            _send_in_gpu(trainer, name, value, header)
        elif is_first:
            received = [engine.update_weight.remote(name, **header) for engine in trainer.vllm_engines]
            trainer._model_update_group.broadcast(value, src=0, stream=torch.cuda.current_stream())
            ray.get(received)
    torch.cuda.empty_cache()
    torch_dist_barrier_and_cuda_sync()


def _send_in_gpu(trainer: Any, name: str, value: torch.Tensor, header: dict[str, Any]) -> None:
    """Each rank hands its copy to the engine on the same GPU, as a CUDA IPC handle."""
    from torch.multiprocessing.reductions import reduce_tensor

    copy = value.clone()  # the gathered buffer is freed before the last engine has read it
    handles: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(handles, {get_physical_gpu_id(): reduce_tensor(copy)})
    if torch.distributed.get_rank() == 0:
        by_gpu = {gpu: handle for one in handles for gpu, handle in one.items()}
        ray.get(
            [
                engine.update_weight_cuda_ipc.remote(name, ipc_handles=by_gpu, **header)
                for engine in trainer.vllm_engines
            ]
        )
    torch_dist_barrier_and_cuda_sync()


def export(model: PeftModel, tokenizer: Any, folder: str, *, zero_stage: int) -> None:
    """Write the plain model to `folder`, for transformers and vLLM, and the adapters alone to `folder/adapter`.

    Called on all ranks; rank 0 writes, and holds the model in host memory meanwhile.
    """
    is_first = torch.distributed.get_rank() == 0
    whole = {}
    for name, value in whole_values(model, zero_stage):
        if is_first:
            whole[name] = value.to("cpu", copy=True)
    adapters = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with GatheredParameters([parameter], enabled=zero_stage == 3):
                if is_first:
                    adapters[name] = parameter.data.to("cpu", copy=True)
    if is_first:
        plain: Any = model.get_base_model()
        plain.save_pretrained(folder, state_dict=whole)
        plain.config.to_json_file(os.path.join(folder, "config.json"))
        tokenizer.save_pretrained(folder)
        adapter_folder = os.path.join(folder, ADAPTER_FOLDER)
        model.save_pretrained(adapter_folder, state_dict=adapters, save_embedding_layers=False)
    torch_dist_barrier_and_cuda_sync()
