"""vLLM's CPU platform and worker in; the same with sleep mode, and with the threads it is told to use, out."""

from __future__ import annotations

import os
from types import ModuleType

from score_openrlhf.platform.hooks import Upstream, after_import


@after_import(
    "vllm_sleep",
    "vllm.platforms.cpu",
    Upstream("vllm/config/model.py", 608, 'raise ValueError("Sleep mode is not supported on current platform.")'),
    Upstream("vllm/v1/worker/cpu_worker.py", 192, "def sleep(self, level: int = 1)"),
)
def allow_sleep(module: ModuleType) -> None:
    """An engine with `enable_sleep_mode` does not start on CPU, though sleep and wake_up are there and do nothing.

    Allowing it lets colocated runs go through the same calls as on GPUs.
    """
    module.CpuPlatform.is_sleep_mode_available = lambda self: True


@after_import(
    "engine_threads",
    "vllm.v1.worker.cpu_worker",
    Upstream("vllm/v1/worker/cpu_worker.py", 158, "torch.set_num_threads = skip_set_num_threads"),
)
def threads_of_forks(module: ModuleType) -> None:
    """A fork has OpenMP loaded already, which reads OMP_NUM_THREADS then and never again: tell it by a call.

    vLLM's own kernels and torch share one OpenMP; the worker later refuses any such call.
    """
    init_device = module.CPUWorker.init_device

    def with_threads(self) -> None:
        if threads := os.environ.get("OMP_NUM_THREADS"):
            module.torch.set_num_threads(int(threads))
        init_device(self)

    module.CPUWorker.init_device = with_threads
