"""The installed packages and compilers in, what this machine can do out. Imports no torch."""

from __future__ import annotations

import functools
import importlib.util
import os
import runpy
import shutil
from pathlib import Path

ACCELERATORS = ("cuda", "hip", "xpu")


@functools.cache
def is_cpu() -> bool:
    """Whether torch is built for CPU only; False where torch is not installed, since then there is nothing to adapt.

    The build decides, not the devices in sight: a CUDA build on a node whose GPUs are hidden must fail loudly, not
    train on the CPU.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    # torch/version.py is plain assignments, so reading it costs nothing and importing torch costs seconds.
    version = runpy.run_path(str(Path(spec.origin).parent / "version.py"))
    return all(version.get(name) is None for name in ACCELERATORS)


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def cuda_home() -> Path | None:
    """The CUDA toolkit that torch would build extensions with, by its own rule (torch/utils/cpp_extension.py,
    _find_cuda_home); None where there is none. It need not hold a compiler, or the libraries' headers."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return Path(named)
    nvcc = shutil.which("nvcc")
    if nvcc:
        return Path(nvcc).parent.parent
    usual = Path("/usr/local/cuda")
    return usual if usual.is_dir() else None


def has_nvcc() -> bool:
    """Whether CUDA extensions can be compiled here."""
    home = cuda_home()
    return home is not None and os.access(home / "bin" / "nvcc", os.X_OK)
