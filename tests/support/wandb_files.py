"""The file of an offline W&B run in; what the run logged, out."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_HEADER, RECORD_HEADER, BLOCK = 7, 7, 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, which W&B's files have behind a header of their own."""
    data = path.read_bytes()
    assert data[:4] == b":W&B", data[:FILE_HEADER]
    place, parts = FILE_HEADER, b""
    while place + RECORD_HEADER <= len(data):
        if BLOCK - place % BLOCK < RECORD_HEADER:  # what is left of a block is zeros
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + RECORD_HEADER])
        place += RECORD_HEADER
        parts += data[place : place + length]
        place += length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
        else:
            assert kind in (FIRST, MIDDLE), kind


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Configuration and history, one dictionary a step, of the only offline run in a run's folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    for record in map(Record.FromString, records(path)):
        for update in [*record.run.config.update, *record.config.update]:
            config[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        if record.HasField("history"):
            history.append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            )
    return config, history


def read_steps(folder: Path, num_steps: int, timeout_seconds: float = 60) -> list[dict[str, Any]]:
    """The history once it has `num_steps` steps: W&B's own process writes the last of them after `finish` returns."""
    deadline = time.monotonic() + timeout_seconds
    while len(history := read(folder)[1]) < num_steps and time.monotonic() < deadline:
        time.sleep(0.05)
    return history
