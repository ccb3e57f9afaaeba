"""The installed torch build in, whether this is a CPU machine out. Imports no torch."""

from __future__ import annotations

import functools
import importlib.util
import runpy
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
