"""What differs between CUDA and CPU machines, in one place: `activate()` in, a process that OpenRLHF runs in out.

    from score_openrlhf import platform

    ray.init(**platform.ray_init_kwargs(num_gpus=4))
    engine_args = {..., **platform.engine_kwargs()}

`activate()` runs when `score_openrlhf` is imported: by the driver, by every Ray worker (worker setup hook) and by
every vLLM process (`vllm.general_plugins` entry point). It imports neither torch nor ray nor vllm; each workaround is
applied when the module it is for is imported. On machines with an accelerator only the fp32 type is added and
everything else is left to OpenRLHF.
"""

from score_openrlhf.platform.detect import is_cpu
from score_openrlhf.platform.forking import start as start_fork_server
from score_openrlhf.platform.hooks import install
from score_openrlhf.platform.settings import (
    attn_implementation,
    device_variables,
    engine_kwargs,
    environment,
    ray_init_kwargs,
    ray_start_words,
    reload_method,
    set_environment_defaults,
    sync_backend,
)

__all__ = [
    "activate",
    "attn_implementation",
    "device_variables",
    "engine_kwargs",
    "environment",
    "is_cpu",
    "ray_init_kwargs",
    "ray_start_words",
    "reload_method",
    "start_fork_server",
    "sync_backend",
]


def activate() -> None:
    """Make this process ready for OpenRLHF 0.11.2; calling it again does nothing.

    Workarounds named in the environment variable SCORE_OPENRLHF_PLATFORM_DISABLE (comma-separated) stay off.
    Raises ValueError for a name that no workaround has.
    """
    # Importing these modules registers their workarounds.
    from score_openrlhf.platform import dtype  # noqa: F401

    if is_cpu():
        from score_openrlhf.platform import deepspeed_cpu, flash_attn, openrlhf_cpu, vllm_cpu, weight_sync  # noqa: F401

        set_environment_defaults()
    install()
