"""vLLM's CPU platform in, the same platform with sleep mode out."""

from __future__ import annotations

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
