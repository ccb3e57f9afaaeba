"""The platform in, arguments and environment for Ray, vLLM and OpenRLHF out."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import Any

from score_openrlhf.platform import forking
from score_openrlhf.platform.detect import is_cpu
from score_openrlhf.platform.hooks import DISABLE_VARIABLE

SETUP_HOOK = "score_openrlhf.platform.activate"
HOST_WORKER_EXTENSION = "openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap"
CPU_WORKER_EXTENSION = "score_openrlhf.platform.weight_sync.WeightSyncExtension"
VLLM_PLUGIN = "score_openrlhf_platform"

OBJECT_STORE_BYTES = 512 << 20

CPU_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "true",
    # Actors and engines share the cores; one thread each is faster than all of them on all cores.
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    # GiB of KV cache per engine; the default is a part of the machine's whole memory.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # "auto" ties every engine to the same cores (vllm/utils/ompmultiprocessing.py:125).
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The engine's worker runs in the engine core's process (vllm/platforms/cpu.py:272): one process fewer to start.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # vLLM compiles its sampler with g++ in the first batch: 17 s, against 0.4 s without.
    "TORCHDYNAMO_DISABLE": "1",
    # OpenRLHF turns it on; a tensor that is moved to "the GPU" is then a read-only view of Ray's store.
    "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "0",
}


def environment() -> dict[str, str]:
    """The variables OpenRLHF's processes need here; what the user has set wins.

    On CUDA machines these are the ones OpenRLHF sets itself (openrlhf/cli/train_ppo_ray.py:26-30).
    """
    if is_cpu():
        defaults = CPU_ENVIRONMENT
    else:
        defaults = {
            "TOKENIZERS_PARALLELISM": "true",
            "NCCL_DEBUG": "WARN",
            "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
        }
    variables = {name: os.environ.get(name, value) for name, value in defaults.items()}
    if DISABLE_VARIABLE in os.environ:
        variables[DISABLE_VARIABLE] = os.environ[DISABLE_VARIABLE]
    return variables


def set_environment_defaults() -> None:
    """Set `environment()` in this process where nothing is set."""
    for name, value in environment().items():
        os.environ.setdefault(name, value)


def ray_init_kwargs(num_gpus: int, num_cpus: int | None = None, *, address: str | None = None) -> dict[str, Any]:
    """Arguments of `ray.init` for roles that ask for `num_gpus` GPUs in all; `address` joins a running cluster.

    On CPU machines the GPUs are logical: Ray counts them and no device stands behind them. `num_cpus` (null: enough
    for the roles) are logical too: a placement bundle wants one CPU and would wait for ever on a small machine. Raises
    RuntimeError on a CPU machine where the package is not installed, since vLLM's processes find the platform layer
    through its entry point.
    """
    kwargs: dict[str, Any] = {
        "runtime_env": {"env_vars": environment(), "worker_process_setup_hook": SETUP_HOOK},
    }
    if address is not None:
        kwargs["address"] = address
    if not is_cpu():
        return kwargs if num_cpus is None or address is not None else {**kwargs, "num_cpus": num_cpus}
    _require_vllm_plugin()
    if python := forking.python(cluster=address is not None):
        kwargs["runtime_env"]["py_executable"] = python
    if address is None:
        kwargs |= {
            "num_gpus": num_gpus,
            "num_cpus": num_cpus if num_cpus is not None else _enough_cpus(num_gpus),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    return kwargs


def device_variables() -> tuple[str, ...]:
    """What a launcher says of devices and does not hold here: on CPU machines the GPUs are logical, and Ray refuses to
    count more of them than CUDA_VISIBLE_DEVICES names."""
    return ("CUDA_VISIBLE_DEVICES",) if is_cpu() else ()


def ray_start_words(num_gpus: int) -> list[str]:
    """Words for `ray start` on a node of a cluster: on CPU machines its logical GPUs and CPUs."""
    if not is_cpu():
        return []
    _require_vllm_plugin()
    return [
        f"--num-gpus={num_gpus}",
        f"--num-cpus={_enough_cpus(num_gpus)}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
    ]


def _enough_cpus(num_gpus: int) -> int:
    return max(16, num_gpus + 8)


def _require_vllm_plugin() -> None:
    if not any(point.name == VLLM_PLUGIN for point in entry_points(group="vllm.general_plugins")):
        raise RuntimeError(
            f"vLLM's processes would run without the platform layer: entry point {VLLM_PLUGIN!r} is not installed. "
            "Install the package (pip install --no-deps -e .) into the environment that runs it."
        )


def engine_kwargs() -> dict[str, Any]:
    """Arguments that every vLLM engine of ours gets on this platform: the worker extension that receives weights.

    On CPU machines also prompts in one piece: after a part of a prompt vLLM rewinds the generator of a request that
    has a seed (vllm/v1/worker/gpu_model_runner.py:3785), which a CPU generator cannot do, and the engine dies. And no
    compiled graphs: with torch.compile off (CPU_ENVIRONMENT) vLLM refuses to start with them.
    """
    if not is_cpu():
        return {"worker_extension_cls": HOST_WORKER_EXTENSION}
    return {"worker_extension_cls": CPU_WORKER_EXTENSION, "enable_chunked_prefill": False, "enforce_eager": True}


def reload_method() -> str:
    """The worker's method that loads other weights of the same shape (`weights_path`) into a running engine."""
    return "reload_checkpoint" if is_cpu() else "reload_weights"


def attn_implementation(requested: str) -> str:
    """The attention to use where `requested` is asked for: flash attention has no CPU kernel, sdpa stands in.

    transformers builds the block-diagonal mask of a packed row from its position ids, so packing works with sdpa too.
    """
    return "sdpa" if is_cpu() and "flash" in requested else requested


def sync_backend(requested: str) -> str:
    """The weight-sync backend to use where `requested` (nccl or gloo) is asked for: gloo on CPU machines."""
    return "gloo" if is_cpu() else requested
