"""What one check found: a row of `score-openrlhf doctor`'s table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

OK, WARNING, FAULT = "ok", "warning", "fault"


@dataclass(frozen=True)
class Row:
    """One finding; `mend` says what to do about it and is empty where nothing need be done."""

    name: str
    status: str  # ok, warning: a run may suffer; fault: a run cannot work
    found: str
    mend: str = ""


def ok(name: str, found: str) -> Row:
    return Row(name, OK, found)


def warning(name: str, found: str, mend: str) -> Row:
    return Row(name, WARNING, found, mend)


def fault(name: str, found: str, mend: str) -> Row:
    return Row(name, FAULT, found, mend)


def rows_of(name: str, check: Callable[..., Iterable[Row]], *args: object) -> Iterator[Row]:
    """The rows of `check(*args)`; whatever it raises is a fault of its own, so that the others are still made."""
    try:
        yield from list(check(*args))
    except Exception as error:  # a broken installation can raise anything anywhere
        yield fault(name, f"the check failed: {first_line(error)}", "mend the packages above first")


def first_line(error: BaseException | str) -> str:
    """An exception in one line."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return text.strip().splitlines()[0][:300] if text.strip() else "no message"
