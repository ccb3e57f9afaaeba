"""The platform in, arguments and environment for Ray, vLLM and OpenRLHF out."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import Any

from score_openrlhf.errors import UserError
from score_openrlhf.platform import cores, forking
from score_openrlhf.platform.detect import is_cpu
from score_openrlhf.platform.hooks import DISABLE_VARIABLE
from score_openrlhf.platform.passed_on import hand_over_secrets, new_secrets_key, of_the_job, shown
from score_openrlhf.platform.ray_start import init_ray
from score_openrlhf.platform.remote_code import TRUSTED_VARIABLE

SETUP_HOOK = "score_openrlhf.platform.set_up_role"
HOST_WORKER_EXTENSION = "openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap"
CPU_WORKER_EXTENSION = "score_openrlhf.platform.weight_sync.WeightSyncExtension"
VLLM_PLUGIN = "score_openrlhf_platform"

OBJECT_STORE_BYTES = 512 << 20
DEFAULTED = "SCORE_OPENRLHF_DEFAULTED"  # in the environment: the names in it whose values are ours, not the user's

CPU_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "true",
    # Actors and small engines share the cores; one thread each is faster than all of them on all cores. Engines of
    # real models take more (cores.py).
    "OMP_NUM_THREADS": "1",
    # Threads that wait for each other sleep after some 40 us. Left to itself OpenMP spins for 10 ms on a core that the
    # thread it waits for may need.
    "GOMP_SPINCOUNT": "1000",
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
    """The variables OpenRLHF's processes need here, and those of the user that they get too (`platform/passed_on.py`,
    without secrets); what the user has set wins.

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
    variables = shown() | {name: os.environ.get(name, value) for name, value in defaults.items()}
    if is_cpu():
        variables[DEFAULTED] = ",".join(name for name in defaults if not _is_users(name))
    passed_on = (DISABLE_VARIABLE, TRUSTED_VARIABLE)
    return variables | {name: os.environ[name] for name in passed_on if os.environ.get(name)}


def set_environment_defaults() -> None:
    """Set `environment()` in this process where nothing is set."""
    for name, value in environment().items():
        os.environ.setdefault(name, value)


def _is_users(name: str) -> bool:
    return name in os.environ and name not in os.environ.get(DEFAULTED, "").split(",")


def start_ray(num_gpus: int, num_cpus: int | None = None, *, address: str | None = None, **options: Any) -> None:
    """`ray.init` with `ray_init_kwargs` and `options`; the roles it starts get the driver's tokens too."""
    kwargs = ray_init_kwargs(num_gpus, num_cpus, address=address)
    kwargs["runtime_env"]["env_vars"] |= new_secrets_key()
    init_ray(**kwargs, **options)
    hand_over_secrets(kwargs["runtime_env"])


def ray_init_kwargs(num_gpus: int, num_cpus: int | None = None, *, address: str | None = None) -> dict[str, Any]:
    """Arguments of `ray.init` for roles that ask for `num_gpus` GPUs in all; `address` joins a running cluster.

    Without an address a Ray of our own is started, in so many words: left to itself `ray.init` joins what RAY_ADDRESS
    names, or whatever cluster was started on this machine last, and refuses resources there.

    On CPU machines the GPUs are logical: Ray counts them and no device stands behind them. `num_cpus` (null: enough
    for the roles) are logical too: a placement bundle wants one CPU and would wait for ever on a small machine. Raises
    RuntimeError on a CPU machine where the package is not installed, since vLLM's processes find the platform layer
    through its entry point.
    """
    variables = {name: value for name, value in environment().items() if name not in of_the_job()}
    kwargs: dict[str, Any] = {
        "address": address or "local",
        "runtime_env": {"env_vars": variables, "worker_process_setup_hook": SETUP_HOOK},
    }
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
        raise UserError(
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


def use_cores(requested: int | None, engines_on_node: int, model_path: str) -> int | None:
    """Give the engine that this process is about to start its threads; returns their number, None on accelerators.

    `requested` (`vllm.cpu_threads`) comes first, then what the user has set as OMP_NUM_THREADS, then the engine's
    share of the cores (cores.engine_threads).
    """
    if requested is None and _is_users("OMP_NUM_THREADS"):
        return int(os.environ["OMP_NUM_THREADS"])
    threads = cores.engine_threads(requested, engines_on_node, model_path)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    return threads


def use_cores_for_adam(processes_on_node: int) -> None:
    """Let this role compute with its share of the node's cores: DeepSpeed's Adam on the CPU (`ds.adam_offload`).

    Ray sets OMP_NUM_THREADS to the CPUs a role asks for, which is one, and Adam would walk over a node's weights on as
    many cores as it has GPUs. The variable is for a library that is loaded later (DeepSpeed's operator may bring an
    OpenMP of its own), the call for torch's. On CPU machines torch's Adam runs, and threads are set for all roles.
    """
    if is_cpu():
        return
    import torch

    threads = max(1, cores.usable_cores() // processes_on_node)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def engines_measure_memory() -> bool:
    """Whether a starting engine measures what is free on its device, so that trainers must not start meanwhile."""
    return not is_cpu()


def engine_batch(asked: dict[str, int | None], defaults: dict[str, int], *, max_model_len: int) -> dict[str, int]:
    """How much an engine computes at once: max_num_seqs and max_num_batched_tokens, what is `asked` for or `defaults`.

    On CPU machines vLLM's own numbers are the defaults: a batch is as slow as it is long there, and vLLM tries the
    largest one when it starts. Prompts come in one piece (`engine_kwargs`), so the longest must fit.
    """
    chosen = {name: value for name, value in asked.items() if value is not None}
    if not is_cpu():
        return {**defaults, **chosen}
    if "max_num_batched_tokens" in chosen:
        chosen["max_num_batched_tokens"] = max(chosen["max_num_batched_tokens"], max_model_len)
    return chosen


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
