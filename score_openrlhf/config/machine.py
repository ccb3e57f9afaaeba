"""A configuration -> what it needs that is not installed on this machine, each with the fix.

Like missing files (`config/paths.py`) these are errors where the run starts, and notes where it is only planned.
"""

from __future__ import annotations

from collections.abc import Iterator

from score_openrlhf.config.schema import Config
from score_openrlhf.platform.detect import is_cpu, is_installed

INSTALL_FLASH = "build it with requirements/install_cuda.sh (needs nvcc)"


def missing_packages(cfg: Config) -> Iterator[str]:
    """Packages that the training side imports once the GPUs are taken."""
    if cfg.ds.attn_implementation == "flash_attention_2" and not is_cpu() and not is_installed("flash_attn"):
        yield (
            "ds.attn_implementation flash_attention_2 needs the package flash-attn, which is not installed: "
            f"set ds.attn_implementation=sdpa, or {INSTALL_FLASH}"
        )
    if cfg.ds.ring_attn_size > 1 and is_cpu():
        yield f"ds.ring_attn_size {cfg.ds.ring_attn_size} needs flash attention, which no CPU has: set it to 1"
    elif cfg.ds.ring_attn_size > 1 and not is_installed("ring_flash_attn"):
        yield (
            f"ds.ring_attn_size {cfg.ds.ring_attn_size} needs the package ring-flash-attn, which is not installed: "
            "pip install ring-flash-attn, or set ds.ring_attn_size=1"
        )
