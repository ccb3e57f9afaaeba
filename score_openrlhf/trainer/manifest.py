"""A checkpoint's manifest: every file with its size and SHA-256. A folder in; why it is not whole, or nothing, out.

    manifest.json   {"format": 2, "step", "policies", "files": {name: [bytes, SHA-256]}, "state": [SHA-256 of
                    trainer.json], "sha256": that of all the rest of the manifest}

It is written last, when every other file and folder is on the disk itself and not only in the kernel's memory.
Format 1 held sizes alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from score_openrlhf.files import sync_folders, write_atomically

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer.json"
FORMAT = 2
SIZES_ONLY = 1  # the format that had no digests
PIECE_BYTES = 1 << 22
MAX_READERS = 8  # hashing releases the interpreter's lock; more readers than this only wait for the disk


def write(folder: Path, state: dict[str, Any], *, step: int, policies: Sequence[str]) -> None:
    """Flush all that lies in `folder` to the disk, write the trainer's `state`, and the manifest last."""
    text = _text(state)
    write_atomically(folder / TRAINER_STATE, text)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names.remove(TRAINER_STATE)
    with ThreadPoolExecutor(_readers()) as pool:
        files = dict(zip(names, pool.map(lambda name: _read(folder / name, flush=True), names), strict=True))
    sync_folders(folder)
    _write(folder, {"format": FORMAT, "step": step, "policies": list(policies), "files": files, "state": [_sha(text)]})


def amend(folder: Path, state: dict[str, Any]) -> None:
    """Replace the trainer's state in a whole checkpoint; killed at any moment in it, the checkpoint is whole."""
    text = _text(state)
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest["format"] == SIZES_ONLY:
        manifest["files"].pop(TRAINER_STATE, None)
        write_atomically(folder / MANIFEST, _text(manifest))
        write_atomically(folder / TRAINER_STATE, text)
        return
    either = [_sha(text), *manifest["state"]]  # until the new one stands there; several where an amendment was killed
    _write(folder, {**manifest, "state": either})
    write_atomically(folder / TRAINER_STATE, text)
    _write(folder, {**manifest, "state": [_sha(text)]})


def num_bytes(folder: Path) -> int:
    """Bytes of the files in the manifest of a whole checkpoint."""
    sizes = json.loads((folder / MANIFEST).read_text())["files"].values()
    return sum(size if isinstance(size, int) else size[0] for size in sizes)


def fault(folder: Path, *, full: bool) -> str | None:
    """Why the checkpoint in `folder` is not what was written, None if it is.

    With `full` every byte is read and compared by SHA-256; without, the files are there and have their sizes.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        state = (folder / TRAINER_STATE).read_bytes()
        if manifest["format"] not in (SIZES_ONLY, FORMAT):
            return f"its {MANIFEST} is of format {manifest['format']}, which this version does not know"
        if manifest["format"] == FORMAT:
            if manifest["sha256"] != _sha(_content(manifest)):
                return f"its {MANIFEST} is not as it was written"
            if _sha(state) not in manifest["state"]:
                return f"its {TRAINER_STATE} is not as it was written"
        if folder.name != f"step_{manifest['step']}":
            return f"its {MANIFEST} is of step {manifest['step']}"
        json.loads(state)
        files: dict[str, Any] = manifest["files"]
        return _fault_of_files(folder, files, full=full and manifest["format"] == FORMAT)
    except FileNotFoundError as error:
        return f"it has no {Path(error.filename).name}"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):  # what a flipped byte makes of JSON
        return f"its {MANIFEST} or {TRAINER_STATE} is not as it was written"


def _fault_of_files(folder: Path, files: dict[str, Any], *, full: bool) -> str | None:
    for name, known in files.items():
        size = known if isinstance(known, int) else known[0]
        if not (folder / name).is_file():
            return f"it has no {name}"
        if (there := (folder / name).stat().st_size) != size:
            return f"its {name} has {there:,} of {size:,} bytes"
    if full:
        with ThreadPoolExecutor(_readers()) as pool:
            found = pool.map(lambda name: _read(folder / name), files)
            for (name, known), (_, digest) in zip(files.items(), found, strict=True):
                if digest != known[1]:
                    return f"its {name} is not as it was written (SHA-256)"
    return None


def _read(path: Path, *, flush: bool = False) -> tuple[int, str]:
    """Bytes and SHA-256 of a file; with `flush` it is on the disk itself afterwards."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
        if flush:
            os.fsync(file.fileno())
    return size, digest.hexdigest()


def _readers() -> int:
    return min(MAX_READERS, os.cpu_count() or 1)


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    write_atomically(folder / MANIFEST, _text({**manifest, "sha256": _sha(_content(manifest))}))


def _content(manifest: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in manifest.items() if key != "sha256"}, sort_keys=True)


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1)


def _sha(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()
