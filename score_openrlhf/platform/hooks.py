"""Workarounds in, patched modules out: each is applied when its module is imported, at once if it already is.

A workaround is a small named function that takes the imported module. Besides what it does it says which upstream line
needs it (`Upstream`), so that a test can point out the lines that changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from score_openrlhf.errors import UserError

DISABLE_VARIABLE = "SCORE_OPENRLHF_PLATFORM_DISABLE"


@dataclass(frozen=True)
class Upstream:
    """A line of an installed package that needs a workaround."""

    file: str  # relative to site-packages
    line: int  # 1-based, of the pinned version
    text: str  # what stands there


@dataclass(frozen=True)
class Workaround:
    """A named patch of one module."""

    name: str
    module: str
    upstream: tuple[Upstream, ...]
    apply: Callable[[ModuleType], Any]
    around: bool  # apply returns a context manager that is open while the module is executed


WORKAROUNDS: dict[str, Workaround] = {}


def after_import(name: str, module: str, *upstream: Upstream) -> Callable:
    """Register the decorated function to be called with `module` once it is imported."""
    return _register(name, module, upstream, around=False)


def around_import(name: str, module: str, *upstream: Upstream) -> Callable:
    """Register the decorated context manager to be open while `module` is being imported."""
    return _register(name, module, upstream, around=True)


def _register(name: str, module: str, upstream: tuple[Upstream, ...], around: bool) -> Callable:
    def decorate(function: Callable) -> Callable:
        assert name not in WORKAROUNDS, name
        WORKAROUNDS[name] = Workaround(name, module, upstream, function, around)
        return function

    return decorate


def enabled() -> list[Workaround]:
    """The registered workarounds that are not switched off; raises UserError for an unknown name in the variable."""
    disabled = {name for name in os.environ.get(DISABLE_VARIABLE, "").split(",") if name}
    unknown = disabled - set(WORKAROUNDS)
    if unknown:
        raise UserError(
            f"{DISABLE_VARIABLE} names {sorted(unknown)}, which are no workarounds; known here: {sorted(WORKAROUNDS)}"
        )
    return [item for item in WORKAROUNDS.values() if item.name not in disabled]


class _PatchingLoader(Loader):
    """The module's own loader, with the workarounds around and after the module's code."""

    def __init__(self, inner: Any, workarounds: Sequence[Workaround]):
        self.inner = inner
        self.workarounds = workarounds

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps no trace of the hook: its loader is asked for sources and resources later.
        module.__loader__ = self.inner
        assert module.__spec__ is not None
        module.__spec__.loader = self.inner
        with ExitStack() as stack:
            for item in self.workarounds:
                if item.around:
                    context: AbstractContextManager = item.apply(module)
                    stack.enter_context(context)
            self.inner.exec_module(module)
        for item in self.workarounds:
            if not item.around:
                item.apply(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _Finder(MetaPathFinder):
    """Finds a module where the other finders do, and puts its workarounds into the loader."""

    def __init__(self, workarounds: Sequence[Workaround]):
        self.by_module: dict[str, list[Workaround]] = {}
        for item in workarounds:
            self.by_module.setdefault(item.module, []).append(item)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        workarounds = self.by_module.get(fullname)
        if workarounds is None:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _PatchingLoader(spec.loader, workarounds)
                return spec
        return None


def install() -> None:
    """Put the finder first in `sys.meta_path` and patch what is already imported; once per process."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    workarounds = enabled()
    sys.meta_path.insert(0, _Finder(workarounds))
    for item in workarounds:
        module = sys.modules.get(item.module)
        if module is not None and not item.around:
            item.apply(module)
