"""Tasks of several policies in; their results, from threads that run side by side, out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

Result = TypeVar("Result")


def at_once(tasks: Mapping[str, Callable[[], Result]]) -> dict[str, Result]:
    """Run each task in a thread of its own; returns the results by name, in the order of `tasks`.

    When one fails the others are let finish, since an update that is left half-way could not be saved; then the error
    that came first is raised, with a note that names its task and the other errors.
    """
    results: dict[str, Result] = {}
    errors: dict[str, BaseException] = {}

    def run(name: str, task: Callable[[], Result]) -> None:
        try:
            results[name] = task()
        except BaseException as error:  # raised below, where the caller sees it
            errors[name] = error

    # Daemons: a signal that ends the driver while it waits must not wait for an update.
    threads = [
        threading.Thread(target=run, args=item, name=f"{item[0]} learns", daemon=True) for item in tasks.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = list(errors)  # in the order of time: the later may be of the first's making
    for name in failed:
        errors[name].add_note(f"while the {name} policy learned")
    for other in failed[1:]:
        errors[failed[0]].add_note(f"the {other} policy failed too: {errors[other]!r}")
    if failed:
        raise errors[failed[0]]
    return {name: results[name] for name in tasks}
