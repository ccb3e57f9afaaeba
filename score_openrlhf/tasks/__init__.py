"""The name of a task in, the `Task` out: one of `TASKS`, or your own as `path/to/file.py:Class`."""

from __future__ import annotations

import difflib

from score_openrlhf.config.choices import TASKS
from score_openrlhf.errors import UserError
from score_openrlhf.tasks.base import Task
from score_openrlhf.tasks.own_code import load_object, names_object


def _is_task(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Task)


def make_task(name: str) -> Task:
    """The task called `name`; UserError for an unknown name (with the nearest), a missing file or a class not a Task.

    Each task's module is imported only when it is asked for, so a grading process loads nothing it does not use.
    """
    if name in TASKS:
        return TASKS[name].load()()
    if names_object(name):
        return load_object(name, "task", "subclass of Task", _is_task)()
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown task {name!r}; {hint}known are {', '.join(TASKS)}, or path/to/file.py:Class")
