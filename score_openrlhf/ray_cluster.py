"""This node's part of a Ray cluster in, `ray start` for the length of a block out.

    with head(ip, num_gpus) as node:                     # the first node
        with member(node.address, ip, num_gpus) as own:  # every other one
            ...

`ray start --block` ends everything it started when it is told to end. It is told so when the block ends, and by the
kernel when this process dies without a word.
"""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from score_openrlhf import platform
from score_openrlhf.errors import RunError
from score_openrlhf.platform.ports import free_port

START_SECONDS = 180.0  # a cold file system can take a minute for Ray's imports
END_SECONDS = 5.0
STARTED = "Ray runtime started"  # `ray start` prints it when all its processes are there
PR_SET_PDEATHSIG = 1


class RayNodeError(RunError):
    """`ray start` did not start, or ended by itself."""


@dataclass
class RayNode:
    """A running `ray start`."""

    address: str  # of the cluster, IP:PORT
    process: subprocess.Popen
    log: Path

    def wait(self) -> None:
        """Return when Ray runs on this node; raises RayNodeError if it ends or takes longer than START_SECONDS."""
        deadline = time.monotonic() + START_SECONDS
        while STARTED not in self.log.read_text(errors="replace"):
            self.check()
            if time.monotonic() > deadline:
                raise RayNodeError(
                    f"Ray on {socket.gethostname()} did not start within {START_SECONDS:.0f} s; {self.last_words()}"
                )
            time.sleep(0.2)

    def last_words(self) -> str:
        """The end of what `ray start` printed."""
        lines = self.log.read_text(errors="replace").strip().splitlines()[-15:]
        return "the last it said:\n  " + "\n  ".join(lines)

    def check(self) -> None:
        """Raises RayNodeError if Ray has ended on this node, with the end of what it said."""
        status = self.process.poll()
        if status is not None:
            raise RayNodeError(f"Ray on {socket.gethostname()} ended with status {status}; {self.last_words()}")


@contextlib.contextmanager
def head(ip: str, num_gpus: int) -> Iterator[RayNode]:
    """A new cluster with this node as its head, on a free port of `ip`; yields when it runs.

    `num_gpus` are the logical GPUs of a CPU machine; on GPU machines Ray counts the devices. Raises RayNodeError.
    """
    port = free_port()
    words = ["--head", f"--port={port}", f"--ray-client-server-port={free_port()}", "--include-dashboard=false"]
    with _ray_start([*words, f"--temp-dir={temp_dir()}"], f"{ip}:{port}", ip, num_gpus) as node:
        yield node


@contextlib.contextmanager
def member(address: str, ip: str, num_gpus: int) -> Iterator[RayNode]:
    """This node as a member of the cluster at `address`; yields when it has joined; the rest as of `head`."""
    with _ray_start([f"--address={address}"], address, ip, num_gpus) as node:
        yield node


@contextlib.contextmanager
def _ray_start(words: list[str], address: str, ip: str, num_gpus: int) -> Iterator[RayNode]:
    parent = os.getpid()

    def end_with_parent() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    # its port is fixed by default, and two runs on a node would share it
    command += [f"--node-ip-address={ip}", f"--dashboard-agent-listen-port={free_port()}", *words]
    with tempfile.TemporaryDirectory(prefix="score-openrlhf-ray-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "ray_start.log")
        with log.open("w") as output:
            process = subprocess.Popen(
                command + platform.ray_start_words(num_gpus),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # ctrl-C is for the driver, which ends its roles in order
                preexec_fn=end_with_parent,
            )
        node = RayNode(address, process, log)
        started: set[psutil.Process] = set()
        try:
            node.wait()
            # remembered now: told to end all at once, `ray start` can go before them, and they are nobody's children
            started = _descendants(process)
            yield node
        finally:
            _end(process, started)


def _descendants(process: subprocess.Popen) -> set[psutil.Process]:
    try:
        return set(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _end(process: subprocess.Popen, started: set[psutil.Process]) -> None:
    """End `ray start` and what it `started`; what has not gone in END_SECONDS has nothing to save, and is killed."""
    started = started | _descendants(process)
    process.terminate()
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline and (process.poll() is None or any(map(_lives, started))):
        time.sleep(0.1)
    process.kill()
    process.wait()
    for left in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def temp_dir() -> str:
    """Where Ray keeps sessions and sockets: of this user, since another's /tmp/ray cannot be written to.

    Short, because the path of a socket has 107 characters at most.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"/tmp/ray-{user}"


def other_cluster() -> str | None:
    """The cluster that `ray.init` would join by itself, as "ADDRESS (what names it)"; None where there is none.

    RAY_ADDRESS counts whatever answers there; the file that `ray start` leaves behind counts if something does.
    """
    from ray._common.utils import get_ray_address_file

    if named := os.environ.get("RAY_ADDRESS"):
        return f"{named} (RAY_ADDRESS)"
    file = Path(get_ray_address_file(None))
    address = file.read_text().strip() if file.is_file() else ""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return None
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except OSError:
        return None
    return f"{address} ({file})"


def own_address(peer: str) -> str:
    """The address of this node by which it reaches `peer`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((peer, 1))  # sends nothing: the kernel picks the route
        return sock.getsockname()[0]
