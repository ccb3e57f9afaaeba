"""A policy's weights in (one broadcast a parameter), a vLLM-CPU model that samples from them out.

The trainer's rank 0 and the engines' workers share a `GlooBroadcastGroup`. A worker collects the parameters and loads
them together when the last one has come: vLLM-CPU packs linear weights after loading and drops the originals, so they
can only be replaced through its own reload, which wants the whole model.
"""

from __future__ import annotations

from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any

from score_openrlhf.platform.hooks import Upstream, after_import

if TYPE_CHECKING:
    import torch

SYNC_TIMEOUT = timedelta(minutes=10)
WORKER_WRAP = "openrlhf/trainer/ray/vllm_worker_wrap.py"


class GlooBroadcastGroup:
    """Ranks of several processes that broadcast tensors, outside torch's default group.

    Takes the place of vLLM's PyNcclCommunicator, of which OpenRLHF uses `broadcast`.
    """

    def __init__(self, host: str, port: int, rank: int, world_size: int):
        import torch.distributed as dist

        self.rank = rank
        store = dist.TCPStore(host, port, world_size, is_master=rank == 0, timeout=SYNC_TIMEOUT)
        self._store = dist.PrefixStore("weight_sync", store)  # the server lives as long as this reference
        self._group = dist.ProcessGroupGloo(self._store, rank, world_size, SYNC_TIMEOUT)

    def broadcast(self, tensor: torch.Tensor, src: int = 0, stream: None = None) -> None:
        """Fill `tensor` on all ranks with that of rank `src`; returns when it has arrived. `stream` is CUDA's."""
        from torch.distributed import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank = src
        contiguous = tensor.contiguous()
        group: Any = self._group  # its methods are C++, which the stubs leave out
        group.broadcast([contiguous], options).wait()
        if contiguous is not tensor and self.rank != src:
            tensor.copy_(contiguous)


class WeightSyncExtension:
    """vLLM worker extension with the methods that OpenRLHF's `RolloutRayActor` calls."""

    # Of the vLLM worker this class is mixed into.
    device: torch.device
    model_config: Any
    model_runner: Any
    reload_weights: Any

    def init_process_group(
        self,
        master_address: str,
        master_port: int,
        rank_offset: int,
        world_size: int,
        group_name: str,
        backend: str = "gloo",
        use_ray: bool = False,
    ) -> None:
        """Join the trainer's broadcast group; raises ValueError for vllm.sync_with_ray, which gloo cannot serve."""
        import torch.distributed as dist

        if use_ray:
            raise ValueError("vllm.sync_with_ray is not available on CPU machines; leave it out")
        rank = dist.get_rank() + rank_offset
        self._sync_group = GlooBroadcastGroup(master_address, master_port, rank, world_size)
        self._sync_weights: dict[str, torch.Tensor] = {}

    def reload_checkpoint(self, weights_path: str) -> None:
        """Load the weights in the folder `weights_path`, of a model of the same shape."""
        self.reload_weights(weights_path=weights_path)
        repack_output_heads(self.model_runner.get_model())

    def update_weight(self, name: str, dtype: torch.dtype, shape: torch.Size, empty_cache: bool = False) -> None:
        """Receive parameter `name`; with `empty_cache` (OpenRLHF sets it on the last one) load all that came.

        Raises ValueError if the engine's type differs from the trainer's.
        """
        import torch

        if dtype != self.model_config.dtype:
            raise ValueError(
                f"{name} comes as {dtype} and the engine holds {self.model_config.dtype}; "
                "start the engine with the type of ds.param_dtype"
            )
        weight = torch.empty(shape, dtype=dtype, device=self.device)
        self._sync_group.broadcast(weight)
        self._sync_weights[name] = weight
        if empty_cache:
            weights, self._sync_weights = self._sync_weights, {}
            self.model_runner.reload_weights(weights_iterator=iter(weights.items()))
            repack_output_heads(self.model_runner.get_model())


def repack_output_heads(model: torch.nn.Module) -> None:
    """Pack the output head's weights again after a reload.

    A head tied to the embeddings has no weight of its own in the checkpoint, so vLLM's reload passes it by
    (vllm/model_executor/model_loader/reload/layerwise.py:246, "No weights were loaded") and on CPU its packed copy
    (vllm/model_executor/layers/vocab_parallel_embedding.py:62) keeps the old values: the engine then samples from the
    new body under the old head.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


@after_import(
    "sync_group",
    "openrlhf.utils.distributed_util",
    Upstream("openrlhf/utils/distributed_util.py", 25, "pynccl = PyNcclCommunicator(pg, device=device)"),
)
def gloo_sync_group(module: Any) -> None:
    """Weights go from the trainer to the engines through NCCL whatever `vllm.sync_backend` says."""

    def stateless_init_process_group(
        master_address: str, master_port: int, rank: int, world_size: int, device: Any
    ) -> GlooBroadcastGroup:
        return GlooBroadcastGroup(master_address, master_port, rank, world_size)

    module.stateless_init_process_group = stateless_init_process_group


@after_import(
    "worker_wrap",
    "openrlhf.trainer.ray.vllm_worker_wrap",
    Upstream(WORKER_WRAP, 40, 'weight = torch.empty(shape, dtype=dtype, device="cuda")'),
    Upstream(WORKER_WRAP, 48, "self.model_runner.model.load_weights(weights=[(name, weight)])"),
    Upstream("vllm/model_executor/layers/utils.py", 534, "layer.weight = torch.nn.Parameter(torch.empty(0)"),
)
def host_worker_on_cpu(module: ModuleType) -> None:
    """The host's own engines name its WorkerWrap, which puts weights on "cuda" and loads them one by one.

    On vLLM-CPU a weight that has been packed cannot be loaded alone: its parameter is empty and has no loader.
    """
    module.WorkerWrap.init_process_group = WeightSyncExtension.init_process_group
    module.WorkerWrap.update_weight = WeightSyncExtension.update_weight
