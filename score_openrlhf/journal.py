"""Results of a long command in, a line each as they come; what an interrupted one had, for the same command, out.

    journal = Journal.open(folder / "progress.jsonl", settings)
    todo = everything - {record["place"] for record in journal.records}
    journal.add({"place": ..., ...})      # on disk when it returns
    journal.remove()                      # when all is in its final form

The first line holds the settings; records of other settings are never mixed in. A process that is killed while it
writes leaves a torn last line, which is cut off.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from score_openrlhf.errors import UserError
from score_openrlhf.files import lock

SETTINGS, OPENED, SECONDS = "settings", "opened", "seconds"


class JournalInUse(UserError):
    """Another process works on the same results now."""


class Journal:
    """The records of one command with their settings; made by `open`."""

    def __init__(self, path: Path, descriptor: int, records: list[dict[str, Any]], seconds_before: float):
        self.path = path
        self.records = records  # of the sessions before this one
        self.seconds_before = seconds_before  # that those took, up to the last record of each
        self.num_added = 0
        self.started = time.perf_counter()
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any]) -> Journal:
        """Open or begin the journal at `path`; its settings, if it has any, must be `settings` (see `settings_in`).

        Raises JournalInUse while another process has it open.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        if not lock(descriptor):
            os.close(descriptor)
            raise JournalInUse(f"another process writes {path} now; wait for it, or name another folder")
        lines, whole = _whole_lines(path)
        os.truncate(path, whole)
        if lines:
            assert lines[0][SETTINGS] == json.loads(json.dumps(settings)), "settings were not compared"
        journal = cls(path, descriptor, [line for line in lines[1:] if OPENED not in line], _seconds_of(lines))
        journal._write({OPENED: True} if lines else {SETTINGS: settings})
        return journal

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record; what the process does after this does not lose it."""
        self._write({SECONDS: round(time.perf_counter() - self.started, 3), **record})
        self.num_added += 1

    def begin(self) -> None:
        """Count the seconds of this session from now on."""
        self.started = time.perf_counter()

    def close(self) -> None:
        os.close(self._descriptor)

    def remove(self) -> None:
        """All is kept elsewhere."""
        self.path.unlink()

    def _write(self, line: Mapping[str, Any]) -> None:
        data = memoryview(json.dumps(line).encode() + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]


def settings_in(path: Path) -> dict[str, Any] | None:
    """The settings of the journal at `path`; None where none is, or none was begun."""
    lines, _ = _whole_lines(path) if path.is_file() else ([], 0)
    return lines[0][SETTINGS] if lines else None


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines up to the first that is torn, and their bytes; none where the first is not that of a journal."""
    lines: list[dict[str, Any]] = []
    size = 0
    with path.open("rb") as file:
        for raw in file:
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:  # a machine that lost power may leave anything
                line = None
            if not isinstance(line, dict) or (not lines and SETTINGS not in line):
                break
            lines.append(line)
            size += len(raw)
    return lines, size


def _seconds_of(lines: list[dict[str, Any]]) -> float:
    """Of all sessions, each up to its last record."""
    total = last = 0.0
    for line in lines:
        if OPENED in line:
            total, last = total + last, 0.0
        last = line.get(SECONDS, last)
    return total + last
