"""What ends a command -> a line for what a user can mend, a traceback in a log for the rest, and the exit status.

A `UserError` is the only exception that becomes one line. Whatever else comes out of a command is a fault of the
program or of the machine, a ValueError from inside a run too: a number that is out of range there was not typed by
anyone. Its traceback is kept, with the phase and step in which it happened.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

RUN_ERROR, USER_ERROR, FAULT, STOPPED, INTERRUPTED, TERMINATED = 1, 2, 70, 75, 130, 143
# For `--help` and the docs; 70 and 75 are EX_SOFTWARE and EX_TEMPFAIL of sysexits.h.
EXIT_STATUSES = {
    0: "done",
    RUN_ERROR: "it ended for a cause that it names in a line: a plan that does not fit, a problem that could not be "
    "solved, a run that cannot go on (host lost, too many failed trajectories, no update, no room in the cluster)",
    USER_ERROR: "the command, the configuration, a file or a row is wrong: a line each says which, and the mend",
    FAULT: "a fault: the phase and step, and where its traceback is kept, are said",
    STOPPED: "stopped on request (SIGUSR1) with a checkpoint: the same command goes on",
    INTERRUPTED: "interrupted (Ctrl-C): what was done is kept, and the same command goes on, as its last line says",
    TERMINATED: "ended by SIGTERM",
}
Result = TypeVar("Result")
TRACEBACK = "traceback.log"


class UserError(ValueError):
    """What a user can mend: the message names the value, the limit and the fix, and is shown without a traceback."""

    status = USER_ERROR


class RunError(UserError):
    """A run that had started cannot go on, for a cause that the message names."""

    status = RUN_ERROR


class Fault(Exception):
    """What nobody could have typed; the message is ready to be shown. Its cause is the exception itself."""


@contextmanager
def faults_logged(folder: Path, where: Callable[[], str]) -> Iterator[None]:
    """Keep the traceback of a fault in the block in `folder`; raises Fault, which says `where()` it was and the file.

    A UserError leaves as it is, also one that was raised in a Ray actor or worker.
    """
    try:
        yield
    except Exception as error:
        mendable = user_error(error)
        if mendable is error or isinstance(error, Fault):
            raise
        if mendable is not None:
            for note in getattr(error, "__notes__", ()):  # of what failed after it: Ray's wrapping has them
                mendable.add_note(note)
            raise mendable from error
        error.add_note(f"during {where()}")
        raise Fault(f"failed during {where()}: {_in_short(error)}\n{_keep(error, folder)}") from error


def finish(doing: str, step: Callable[[], Result]) -> Result | None:
    """Take a `step` of a `finally` or `except` block; while an error is on its way, its failure is a note on that.

    So the first cause is the one that is shown, and whose status the command has. Without one the failure is raised.
    Returns what the step returns, None if it failed.
    """
    first = sys.exception()
    try:
        return step()
    except BaseException as error:
        if first is None:
            raise
        first.add_note(f"{doing} failed too: {_in_short(error)}")
        return None


def status_of(run: Callable[[], int]) -> int:
    """Call a command; returns its exit status, or that of the error which ended it, with its message shown."""
    try:
        return run()
    except KeyboardInterrupt as stop:  # a command that keeps what it has done says in it how to go on
        print(f"\ninterrupted: {stop}" if str(stop) else "\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except Fault as fault:
        _say(str(fault))
        return FAULT
    except Exception as error:
        mendable = user_error(error)
        if mendable is None:
            traceback.print_exception(error)
            _say(f"failed: {_in_short(error)}; the traceback stands above")
            return FAULT
        _say(str(mendable))
        for note in getattr(mendable, "__notes__", ()):
            _say(note)
        return mendable.status


def user_error(error: BaseException | None) -> UserError | None:
    """The UserError that `error` is, or that Ray has wrapped: of a task or method, or of an actor's constructor."""
    while error is not None and _is_ray_error(error):
        cause = getattr(error, "cause", None)
        if not isinstance(cause, BaseException):
            return _in_text_of(error)
        error = cause
    return error if isinstance(error, UserError) else None


def _is_ray_error(error: BaseException) -> bool:
    ray_error = getattr(sys.modules.get("ray.exceptions"), "RayError", None)
    return ray_error is not None and isinstance(error, ray_error)


def _in_text_of(error: BaseException) -> UserError | None:
    """The UserError at the end of the remote traceback: of an actor that could not be made Ray keeps the text only."""
    found = list(re.finditer(r"^(score_openrlhf[\w.]*)\.(\w+): ", str(error), flags=re.MULTILINE))
    if not found:
        return None
    kind = getattr(sys.modules.get(found[-1][1]), found[-1][2], None)
    status = kind.status if isinstance(kind, type) and issubclass(kind, UserError) else None
    text = str(error)[found[-1].end() :].rstrip()
    return {USER_ERROR: UserError, RUN_ERROR: RunError}[status](text) if status is not None else None


def _in_short(error: BaseException) -> str:
    """`ValueError: message`, of the exception in a Ray worker where it comes from one."""
    while _is_ray_error(error) and isinstance(getattr(error, "cause", None), BaseException):
        error = error.cause  # type: ignore[attr-defined]
    if isinstance(error, UserError):
        return str(error)
    lines = "".join(traceback.format_exception_only(type(error), error)).splitlines()
    if not _is_ray_error(error):
        return lines[0]
    # of an actor that could not be made: what stands under the last frame of the remote traceback in the text
    frames = [number for number, line in enumerate(lines[:-1]) if line.startswith("    ")]
    return lines[frames[-1] + 1] if frames else lines[0]


def _keep(error: Exception, folder: Path) -> str:
    """Write the traceback, to the terminal where it cannot be kept; returns a sentence that says where it is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder.absolute() / TRACEBACK
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as full:
        traceback.print_exception(error)
        return f"the traceback stands above; it could not be kept in {folder.absolute()} ({full})"
    return f"the traceback is in {path}, what its processes said beside it"


def printable(text: str) -> str:
    """The text without what a terminal would obey: models, rows and their errors may hold escape sequences."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _say(text: str) -> None:
    print(f"score-openrlhf: {printable(text)}", file=sys.stderr, flush=True)
