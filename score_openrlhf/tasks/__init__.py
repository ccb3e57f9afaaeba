"""The name of a task in, the `Task` out: `math`, `playground`, or your own as `path/to/file.py:Class`."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from score_openrlhf.tasks.base import Task

BUILT_IN = ("math", "playground")


def make_task(name: str) -> Task:
    """The task called `name`; ValueError for an unknown name (with the nearest), a missing file or a class not a Task.

    Each task's module is imported only when it is asked for, so a grading process loads nothing it does not use.
    """
    if name == "math":
        from score_openrlhf.tasks.math import MathTask

        return MathTask()
    if name == "playground":
        from score_openrlhf.tasks.playground import PlaygroundTask

        return PlaygroundTask()
    path, colon, class_name = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _own_task(Path(path).expanduser().resolve(), class_name)
    near = difflib.get_close_matches(name, BUILT_IN, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown task {name!r}; {hint}known are {', '.join(BUILT_IN)}, or path/to/file.py:Class")


def _own_task(path: Path, class_name: str) -> Task:
    if not path.is_file():
        raise ValueError(f"task file {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"score_openrlhf_task_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task_class = getattr(module, class_name, None)
    if not (isinstance(task_class, type) and issubclass(task_class, Task)):
        tasks = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Task)]
        own = ", ".join(key for key in tasks if key != "Task") or "none"
        raise ValueError(f"{path} has no subclass of Task called {class_name!r}; it has: {own}")
    return task_class()
