"""torch's view of the machine in; rows about GPUs, driver, compilers and what is compiled with them, out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from score_openrlhf.doctor.imports import Import
from score_openrlhf.doctor.packages import version_of
from score_openrlhf.doctor.row import Row, fault, first_line, ok, warning
from score_openrlhf.memory_plan.footprint import GIB
from score_openrlhf.platform.detect import cuda_home, has_nvcc, is_cpu, is_installed

MIN_DRIVERS = {11: 450, 12: 525, 13: 580}  # CUDA's major version -> the first driver that runs it
MIN_CAPABILITY = (8, 0)  # bf16, flash-attn
HEADERS = ("cuda_runtime.h", "cublas_v2.h", "cusparse.h", "cusolverDn.h")  # that torch's own headers include
SDPA = "set ds.attn_implementation=sdpa"


def devices(torch: Import) -> Iterator[Row]:
    """torch's build and the GPUs it sees."""
    if not torch.works:
        yield fault("GPUs", "torch cannot say, see its row", "mend torch first")
        return
    facts = torch.facts or {}
    if is_cpu():
        yield ok("CUDA", "torch is built for CPUs: GPUs are logical, as for the playground")
        return
    yield ok("CUDA", f"torch is built for {facts['cuda']}")
    if not facts["devices"]:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        mend = "unset CUDA_VISIBLE_DEVICES" if hidden is not None else "look at the rows of the driver below"
        shown = f" (CUDA_VISIBLE_DEVICES is {hidden!r})" if hidden is not None else ""
        yield fault("GPUs", f"none that torch can use{shown}", f"{mend}; on a machine without GPUs: make install")
        return
    for index, (name, memory, capability) in enumerate(facts["devices"]):
        found = f"{name}, {memory / GIB:.1f} GiB, compute capability {capability[0]}.{capability[1]}"
        if tuple(capability) < MIN_CAPABILITY:
            yield warning(f"GPU {index}", found, f"older than 8.0: {SDPA} and ds.param_dtype=fp16")
        else:
            yield ok(f"GPU {index}", found)


def driver(torch: Import) -> Iterator[Row]:
    """The NVIDIA driver against the CUDA version that torch is built for."""
    if is_cpu():
        yield ok("driver", "none needed")
        return
    cuda = str((torch.facts or {}).get("cuda") or "13")
    needed = MIN_DRIVERS.get(int(cuda.split(".")[0]), max(MIN_DRIVERS.values()))
    try:
        version = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        yield fault(
            "driver",
            f"nvidia-smi does not answer: {first_line(error)}",
            f"install NVIDIA's driver {needed} or newer; in a container start it with --gpus all",
        )
        return
    if int(version.split(".")[0]) < needed:
        yield fault("driver", version, f"CUDA {cuda} needs driver {needed} or newer")
    else:
        yield ok("driver", version)


def compilers(torch: Import) -> Iterator[Row]:
    """gcc, which Triton needs at run time, and nvcc, which is for what is compiled here."""
    if is_cpu():
        yield ok("compilers", "none needed: nothing is compiled on CPU machines")
        return
    absent = [name for name in ("gcc", "g++") if shutil.which(name) is None]
    if absent:
        yield fault(
            "gcc", f"no {' and no '.join(absent)}", "Triton compiles at run time: apt-get install build-essential"
        )
    else:
        yield ok("gcc", output("gcc", "-dumpfullversion").strip())
    yield from _nvcc(str((torch.facts or {}).get("cuda") or ""))


def _nvcc(built_for: str) -> Iterator[Row]:
    home = cuda_home()
    if home is None or not has_nvcc():
        where = f" in {home}" if home else ""
        yield warning(
            "nvcc",
            f"none{where}: torch's own Adam kernel stands in for DeepSpeed's; flash-attn cannot be built",
            "none needed with ds.attn_implementation=sdpa; else install the CUDA toolkit and set CUDA_HOME",
        )
        return
    found = re.search(r"release (\d+\.\d+)", output(str(home / "bin" / "nvcc"), "--version"))
    version = found[1] if found else "unknown version"
    missing = [name for name in HEADERS if not (home / "include" / name).is_file()]
    if missing:
        yield fault(
            "nvcc",
            f"{version} in {home}, a toolkit without {', '.join(missing)}",
            "DeepSpeed's Adam cannot be compiled: set CUDA_HOME to a whole toolkit, or to a folder without one",
        )
    elif version == built_for or _accepted(version, built_for):
        yield ok("nvcc", f"{version} in {home}")
    elif os.environ.get("DS_SKIP_CUDA_CHECK") == "1" and version.split(".")[0] == built_for.split(".")[0]:
        yield ok("nvcc", f"{version} in {home}, torch is built for {built_for}; DS_SKIP_CUDA_CHECK=1 accepts that")
    elif version.split(".")[0] == built_for.split(".")[0]:
        yield fault(
            "nvcc",
            f"{version} in {home}, torch is built for {built_for}, and DeepSpeed refuses to compile its Adam",
            f"export DS_SKIP_CUDA_CHECK=1 (minor versions fit each other), or set CUDA_HOME to CUDA {built_for}",
        )
    else:
        yield fault(
            "nvcc",
            f"{version} in {home}, torch is built for {built_for}",
            f"set CUDA_HOME to a toolkit of CUDA {built_for}, or to a folder without one (torch's Adam stands in)",
        )


def _accepted(version: str, built_for: str) -> bool:
    """Whether DeepSpeed takes the pair: it knows the minor versions of 10 to 12 that fit each other
    (deepspeed/ops/op_builder/builder.py, cuda_minor_mismatch_ok)."""
    major = version.split(".")[0]
    return major == built_for.split(".")[0] and major in ("10", "11", "12")


def flash_attention(imports: dict[str, Import], attention: str | None) -> Iterator[Row]:
    """flash-attn, a fault where the configuration asks for it; `attention` is None without a configuration."""
    if is_cpu():
        yield ok("flash-attn", "none on CPU machines: sdpa stands in")
        return
    wanted = attention is not None and attention.startswith("flash")
    version = version_of("flash_attn")
    broken = [imports[name] for name in ("flash_attn", "flash_attn_2_cuda") if not imports[name].works]
    if version is None and not is_installed("flash_attn"):
        mend = f"{SDPA}, or make install-cuda (needs nvcc)"
        yield (fault if wanted else warning)("flash-attn", "not installed", mend)
    elif broken:
        # OpenRLHF imports it whatever the attention is, so a broken one is worse than none
        mend = "built for another torch: pip uninstall flash-attn, then make install-cuda or " + SDPA
        yield fault("flash-attn", f"{version}: {first_line(broken[0].error or '')}", mend)
    else:
        yield ok("flash-attn", version or "of unknown version")


def operators(deepspeed: Import) -> Iterator[Row]:
    """Where DeepSpeed's Adam comes from."""
    if is_cpu():
        yield ok("DeepSpeed Adam", "torch's own stands in")
    elif not (deepspeed.works or deepspeed.slow):
        yield fault("DeepSpeed Adam", "DeepSpeed cannot be imported, see its row", "mend DeepSpeed first")
    elif not has_nvcc():
        yield ok("DeepSpeed Adam", "torch's kernel stands in for FusedAdam's (no nvcc); CPUAdam is compiled with g++")
    else:
        built = sorted({path.parent.name for path in _extensions().glob("*/*_adam/*_adam.so")})
        if built:
            yield ok("DeepSpeed Adam", f"{', '.join(built)} compiled before, in {_extensions()}")
        else:
            yield ok("DeepSpeed Adam", f"compiled at the first start, about a minute, into {_extensions()}")


def _extensions() -> Path:
    """Where torch keeps what it compiles (torch/utils/cpp_extension.py, get_default_build_root)."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")


def output(*command: str) -> str:
    """What a command prints; raises OSError or SubprocessError."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
