"""A model and this machine's cores in; how an engine without an accelerator computes out: its threads and its type.

Reads files of the kernel and of the model and imports nothing heavy, so that a command can ask before anything starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from math import ceil, prod
from pathlib import Path

from score_openrlhf.platform.detect import is_cpu

# Below it a layer is done before a second thread has woken up, and bf16 costs more in conversions than it saves.
REAL_MODEL_PARAMS = 50_000_000
# Flags of /proc/cpuinfo: matrix tiles, and vectors, that multiply bf16.
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def engine_threads(requested: int | None, engines_on_node: int, model_path: str) -> int | None:
    """Threads of each of `engines_on_node` engines; None where an accelerator computes.

    `requested` is `vllm.cpu_threads`. Without it engines of real models share the cores that this process may use, and
    each keeps at least one. Call it on the engine's own node.
    """
    if not is_cpu():
        return None
    if requested is not None:
        return requested
    return max(1, usable_cores() // engines_on_node) if is_real_model(model_path) else 1


def sampling_dtype(model_paths: Iterable[str]) -> str | None:
    """`bf16` or `fp32` for engines of these models that only sample; None where an accelerator leaves no question."""
    if not is_cpu():
        return None
    return "bf16" if has_bf16() and any(is_real_model(path) for path in model_paths) else "fp32"


def is_real_model(path: str) -> bool:
    """Whether the model is large enough to be worth several threads and bf16; a hub name is taken for one that is."""
    counted = num_params(path)
    return counted is None or counted > REAL_MODEL_PARAMS


def num_params(path: str) -> int | None:
    """Parameters in the safetensors files of a model's folder, of any architecture; None where it has none."""
    files = sorted(Path(path).glob("*.safetensors"))
    try:
        return sum(prod(tensor["shape"]) for file in files for tensor in _header(file)) if files else None
    except ValueError:
        return None  # not a file of this format; whoever loads the model says so


def _header(file: Path) -> list[dict]:
    # 8 bytes with the header's length, then JSON: name -> dtype, shape, place (the format's own description)
    with file.open("rb") as opened:
        content = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return [entry for name, entry in content.items() if name != "__metadata__"]


def has_bf16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether the CPU multiplies bf16 itself; False where that is not known."""
    try:
        lines = Path(cpuinfo).read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return bool(BF16_FLAGS & set(flags.split()))


def usable_cores(root: str = "/") -> int:
    """Physical cores this process may run on: of its affinity, within its container's share; at least 1.

    Two threads of one core share the unit that multiplies, so a second one brings nothing.
    """
    allowed = os.sched_getaffinity(0)
    cores = {_core(root, cpu) for cpu in allowed}
    quota = _quota(root)
    return max(1, min(len(cores), ceil(quota)) if quota is not None else len(cores))


def _core(root: str, cpu: int) -> str:
    try:
        return Path(root, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(root: str) -> float | None:
    """CPUs' worth of time that the container gives (cgroup v2, v1); None for no limit."""
    groups = Path(root, "sys/fs/cgroup")
    try:
        if (groups / "cpu.max").is_file():
            quota, period = (groups / "cpu.max").read_text().split()
        else:
            quota, period = ((groups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    except OSError:
        return None
    return int(quota) / int(period) if quota.strip() not in ("max", "-1") else None
