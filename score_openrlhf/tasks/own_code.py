"""`path/to/file.py` or `path/to/file.py:name` in; the module or the object out, or a UserError with what is wrong."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from score_openrlhf.errors import UserError


def names_object(source: str) -> bool:
    """Whether `source` has the form `path/to/file.py:name`."""
    path, colon, name = source.rpartition(":")
    return bool(colon) and path.endswith(".py") and name.isidentifier()


def load_object(source: str, what: str, noun: str = "function", fits: Callable[[Any], bool] = callable) -> Any:
    """The `noun` that `path/to/file.py:name` names, for the key or the use `what`.

    UserError if the file is missing or raises, or has no such name that `fits`; those of its own that do are listed.
    """
    path_text, _, name = source.rpartition(":")
    path = Path(path_text).expanduser().absolute()
    module = _load_file(path, f"{what} {source!r}: the file")
    found = getattr(module, name, None)
    if found is None or not fits(found):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        there = ", ".join(key for key in own if fits(vars(module)[key])) or "none"
        raise UserError(f"{what} {source!r}: {path} defines no {noun} called {name!r}; it has: {there}")
    return found


def _load_file(path: Path, what: str) -> ModuleType:
    """The module in the file `path`, which is a `what`; UserError if it is missing or raises while it is imported."""
    if not path.is_file():
        raise UserError(f"{what} {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"score_openrlhf_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{what} {path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises is the user's to mend: the file and line are named
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path}:{line}" if line else str(path)
        raise UserError(f"{what} {where} cannot be imported: {type(error).__name__}: {error}") from error
    return module
