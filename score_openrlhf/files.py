"""Files that a reader finds whole, old or new; names that are on the disk; a folder that one process has at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from score_openrlhf.errors import UserError

LOCK = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # Lustre mounted without them, say: nothing is held there


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush which names `folder` holds to the disk: without it a rename may be undone by a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that order names by themselves
            raise
    finally:
        os.close(descriptor)


def sync_folders(root: Path) -> None:
    """`sync_folder` of `root` and every folder below it."""
    for folder, _, _ in os.walk(root):
        sync_folder(Path(folder))


@contextmanager
def claimed(folder: Path, key: str) -> Iterator[None]:
    """Hold `folder`, which the key `key` names, for the block; it is let go of however this process ends.

    Raises UserError where another process holds it, or where nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{key}: {error.filename}: {error.strerror}; choose another: {key}=/path") from error
    try:
        if not lock(descriptor):
            holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "another process"
            raise UserError(
                f"{folder} is in use by {holder}; wait for it, or give this run a folder of its own: {key}=/path"
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        try:
            yield
        finally:
            if folder.is_dir() and [path.name for path in folder.iterdir()] == [
                LOCK
            ]:  # nothing came of it: no folder is left either
                (folder / LOCK).unlink()
                folder.rmdir()
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Take the lock of an open file, which goes with the descriptor; False while another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    return True
