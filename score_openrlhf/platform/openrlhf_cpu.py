"""OpenRLHF's modules in, the same modules without their CUDA devices out."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from score_openrlhf.platform.hooks import Upstream, after_import
from score_openrlhf.platform.settings import attn_implementation, sync_backend

STRATEGY = "openrlhf/utils/deepspeed/deepspeed.py"
PPO_ACTOR = "openrlhf/trainer/ray/ppo_actor.py"
PPO_CRITIC = "openrlhf/trainer/ray/ppo_critic.py"
REPLAY_BUFFER = "openrlhf/trainer/ppo_utils/replay_buffer.py"


@after_import(
    "torch_cuda",
    "torch",
    Upstream(STRATEGY, 97, "torch.cuda.set_device(local_rank)"),
    Upstream(STRATEGY, 106, '"cuda", (dp_size, self.ring_attn_size, self.ds_tensor_parallel_size)'),
    Upstream(STRATEGY, 614, "data = data.to(torch.cuda.current_device())"),
    Upstream("openrlhf/utils/distributed_util.py", 10, "torch.cuda.synchronize()"),
    Upstream("openrlhf/trainer/ray/launcher.py", 136, "device = torch.cuda.current_device()"),
    Upstream(PPO_ACTOR, 436, "stream=torch.cuda.current_stream()"),
)
def answer_for_cuda(torch: ModuleType) -> None:
    """OpenRLHF asks torch.cuda for its device and stream everywhere; a CPU build raises AssertionError.

    Its device mesh on "cuda" sets the device too; the mesh's groups are gloo's, which is all that is used of it.
    """
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.current_stream = lambda device=None: None


class _TorchOnCpu:
    """The torch module with one change: every device is the CPU."""

    def __init__(self, torch: ModuleType):
        self._torch = torch

    def device(self, *_args: Any) -> Any:
        return self._torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


@after_import(
    "replay_buffer_device",
    "openrlhf.trainer.ppo_utils.replay_buffer",
    Upstream(REPLAY_BUFFER, 40, 'torch.device(f"cuda:{torch.cuda.current_device()}")'),
)
def replay_buffer_on_cpu(module: Any) -> None:
    """The replay buffer writes its device as "cuda:N", which is no device here."""
    module.torch = _TorchOnCpu(module.torch)


@after_import(
    "torch_adam",
    "openrlhf.utils.deepspeed.deepspeed",
    Upstream(STRATEGY, 359, '"type": "AdamW"'),
    Upstream("deepspeed/runtime/engine.py", 2197, "from deepspeed.ops.adam import FusedAdam"),
)
def adam_of_torch(module: ModuleType) -> None:
    """DeepSpeed compiles its own Adam with g++ (50 s, and a compiler); torch's AdamW is the same optimizer.

    DeepSpeed takes it when "torch_adam" stands among the optimizer's parameters (deepspeed/runtime/engine.py:2172),
    with ZeRO-2, ZeRO-3 and offloaded states alike.
    """
    strategy = module.DeepspeedStrategy
    get_ds_train_config = strategy.get_ds_train_config

    @functools.wraps(get_ds_train_config)
    def with_torch_adam(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        config = get_ds_train_config(self, *args, **kwargs)
        if config.get("optimizer", {}).get("type") == "AdamW":
            config["optimizer"]["params"]["torch_adam"] = True
        return config

    strategy.get_ds_train_config = with_torch_adam


@after_import(
    "ema_device",
    "openrlhf.utils.deepspeed.deepspeed",
    Upstream(PPO_ACTOR, 367, 'self.strategy.moving_average(self.actor, self.ema_model, self.ema_beta, "cuda")'),
)
def ema_on_cpu(module: ModuleType) -> None:
    """The trainer asks for the moving average of the weights on "cuda"."""
    strategy = module.DeepspeedStrategy
    moving_average = strategy.moving_average

    @functools.wraps(moving_average)
    def on_cpu(self: Any, model: Any, model_ema: Any, beta: float = 0.992, device: str = "cpu") -> None:
        moving_average(self, model, model_ema, beta, "cpu")

    strategy.moving_average = on_cpu


def _without_flash_attention(function: Callable) -> Callable:
    """`function` with flash attention replaced in its `attn_implementation` argument, given or by default."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        bound.arguments["attn_implementation"] = attn_implementation(bound.arguments["attn_implementation"])
        return function(*bound.args, **bound.kwargs)

    return wrapped


@after_import(
    "actor_attention",
    "openrlhf.models.actor",
    Upstream("openrlhf/models/actor.py", 79, 'attn_implementation="flash_attention_2"'),
    Upstream("openrlhf/models/actor.py", 152, "attn_implementation=attn_impl"),
)
def actor_without_flash_attention(module: ModuleType) -> None:
    """Flash attention is the default, and forced by packing and dynamic batches; it cannot run without CUDA."""
    module.Actor.__init__ = _without_flash_attention(module.Actor.__init__)


@after_import(
    "critic_attention",
    "openrlhf.models.model",
    Upstream("openrlhf/models/model.py", 71, "config._attn_implementation = attn_implementation"),
)
def critic_without_flash_attention(module: Any) -> None:
    """As `actor_attention`, for the critic and the reward model."""
    module.get_llm_for_sequence_regression = _without_flash_attention(module.get_llm_for_sequence_regression)


@after_import(
    "pin_memory",
    "torch.utils.data.dataloader",
    Upstream(PPO_ACTOR, 168, "pin_memory=self.dataloader_pin_memory"),
    Upstream(PPO_CRITIC, 80, "pin_memory=self.dataloader_pin_memory"),
)
def no_pin_memory_warning(_module: ModuleType) -> None:
    """OpenRLHF pins its batches for the copy to the GPU; without one torch leaves it and warns at every pass."""
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator is found")


@after_import(
    "cuda_ipc",
    "openrlhf.trainer.ray.ppo_actor",
    Upstream(PPO_ACTOR, 101, 'self.use_cuda_ipc = backend == "nccl" and self.args.train.colocate_all'),
)
def no_cuda_ipc(module: ModuleType) -> None:
    """With the default backend nccl and colocated roles the weights travel as CUDA IPC handles."""
    init = module.ActorPPOTrainer.__init__

    @functools.wraps(init)
    def __init__(self: Any, strategy: Any, *args: Any, **kwargs: Any) -> None:
        strategy.args.vllm.sync_backend = sync_backend(getattr(strategy.args.vllm, "sync_backend", "nccl"))
        init(self, strategy, *args, **kwargs)

    module.ActorPPOTrainer.__init__ = __init__
