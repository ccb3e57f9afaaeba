"""Starts this process's fork server (`fork_server.py`) and names the executable that stands in for the interpreter."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from score_openrlhf.errors import UserError
from score_openrlhf.platform.detect import is_cpu

# In the environment. "0": every process imports for itself; a folder: the server there is used, of a process that
# outlives this one (the tests' commands share one).
SWITCH = "SCORE_OPENRLHF_FORK_SERVER"
CLIENT = Path(__file__).with_name("fork_client.py")

_lock = threading.Lock()
_folder: str | None = None
_on_cluster = False


def start(cluster_folder: str | None = None) -> None:
    """Start the server, once, or find the one that `SWITCH` names; it imports in the background.

    Does nothing where an accelerator is.

    Nodes of a cluster give the same `cluster_folder`: Ray starts workers by one path on all of them, and each node has
    a server of its own behind it. Call it from the main thread: the kernel ends the server, and all its forks, with
    the thread that started it.
    """
    global _folder, _on_cluster
    if not is_cpu() or os.environ.get(SWITCH) == "0":
        return
    with _lock:
        if _folder is not None:
            return
        shared = os.environ.get(SWITCH)
        if shared and cluster_folder is None:
            if not Path(shared, "python").is_file():
                raise UserError(f"{SWITCH}={shared} names no fork server: unset it, or set it to 0 to use none")
            _folder = shared
            return
        _folder, _on_cluster = cluster_folder or tempfile.mkdtemp(prefix="score-openrlhf-"), cluster_folder is not None
        Path(_folder).mkdir(mode=0o700, exist_ok=True)
        executable = Path(_folder, "python")
        # the host's name is part of the path: nodes may share the folder, and a socket is of one node
        written = Path(_folder, f"python.{os.uname().nodename}")
        written.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{CLIENT}" "{_folder}/$(uname -n)" "$@"\n')
        written.chmod(0o755)
        written.rename(executable)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"{_folder}/{os.uname().nodename}")
            listener.listen(128)  # calls wait here until the imports are done
            fd = listener.fileno()
            child = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "score_openrlhf.platform.fork_server"]
                + [str(executable), str(os.getpid()), str(fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[fd],
                start_new_session=True,  # ctrl-C is for the driver, which ends its roles in order
            )
        atexit.register(_end, child, _folder)


def python(*, cluster: bool = False) -> str | None:
    """The executable that stands in for the interpreter; None where no server was started, or not on all nodes."""
    return f"{_folder}/python" if _folder and (_on_cluster or not cluster) else None


def _end(child: subprocess.Popen, folder: str) -> None:
    child.kill()  # the kernel ends its forks with it
    child.wait()
    shutil.rmtree(folder, ignore_errors=True)
