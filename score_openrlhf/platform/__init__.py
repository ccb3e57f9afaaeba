"""What differs between CUDA and CPU machines, in one place: `activate()` in, a process that OpenRLHF runs in out.

    from score_openrlhf import platform

    platform.start_ray(num_gpus=4)
    engine_args = {..., **platform.engine_kwargs()}

`activate()` runs when `score_openrlhf` is imported: by the driver, by every Ray worker (worker setup hook) and by
every vLLM process (`vllm.general_plugins` entry point). It imports neither torch nor ray nor vllm; each workaround is
applied when the module it is for is imported. On machines with an accelerator only the fp32 type is added, a model's
own code is refused, and what is missing stood in for: flash-attn where it is not installed, DeepSpeed's Adam where
there is no nvcc to compile it. Everything else is left to OpenRLHF.
"""

import sys

from score_openrlhf.platform.cores import engine_threads, sampling_dtype
from score_openrlhf.platform.detect import has_nvcc, is_cpu, is_installed
from score_openrlhf.platform.forking import start as start_fork_server
from score_openrlhf.platform.hooks import install
from score_openrlhf.platform.passed_on import hidden, shown, take_secrets
from score_openrlhf.platform.remote_code import trust
from score_openrlhf.platform.settings import (
    attn_implementation,
    device_variables,
    engine_batch,
    engine_kwargs,
    engines_measure_memory,
    environment,
    ray_init_kwargs,
    ray_start_words,
    reload_method,
    set_environment_defaults,
    start_ray,
    sync_backend,
    use_cores,
    use_cores_for_adam,
)
from score_openrlhf.platform.short_tmp import shorten_tmpdir

__all__ = [
    "activate",
    "attn_implementation",
    "device_variables",
    "engine_batch",
    "engine_kwargs",
    "engine_threads",
    "engines_measure_memory",
    "environment",
    "is_cpu",
    "ray_init_kwargs",
    "ray_start_words",
    "reload_method",
    "sampling_dtype",
    "set_up_role",
    "shorten_tmpdir",
    "start_fork_server",
    "start_ray",
    "sync_backend",
    "trust",
    "use_cores",
    "use_cores_for_adam",
]


def activate() -> None:
    """Make this process ready for OpenRLHF 0.11.2; calling it again does nothing.

    Workarounds named in the environment variable SCORE_OPENRLHF_PLATFORM_DISABLE (comma-separated) stay off.
    Raises UserError for a name that no workaround has.
    """
    # Importing these modules registers their workarounds.
    from score_openrlhf.platform import dtype, remote_code  # noqa: F401

    if is_cpu():
        from score_openrlhf.platform import deepspeed_cpu, flash_attn, openrlhf_cpu, vllm_cpu, weight_sync  # noqa: F401

        set_environment_defaults()
    else:
        if not is_installed("flash_attn"):
            from score_openrlhf.platform import flash_attn  # noqa: F401
        if is_installed("torch") and not has_nvcc():
            from score_openrlhf.platform import fused_adam  # noqa: F401
    install()


def set_up_role() -> None:
    """What Ray calls in each of its worker processes before it is a role (`ray_init_kwargs`).

    The process's log says what it has of the driver's environment.
    """
    activate()
    take_secrets()
    seen = [f"{name}={value}" for name, value in shown().items()] + [f"{name} (not shown)" for name in hidden()]
    print(f"score-openrlhf: from the driver: {', '.join(seen)}", file=sys.stderr, flush=True)
