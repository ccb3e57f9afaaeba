"""Names in; hosts with their own addresses, process ids, host name and /tmp/ray on this one machine out.

    with hosts("n1", "n2") as (n1, n2):
        n1.run("ping", "-c1", "n2")
        n2.lose()

A host is a set of Linux namespaces (network, host name, mounts, process ids) on a bridge of its own. Files are shared,
as on a cluster. Needs root and iproute2; no network outside the machine is touched or reached.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from score_openrlhf.ray_cluster import temp_dir

NETWORK = "10.231.77"
BRIDGE = "score-br0"
# The first process of a host: it adopts what its parents leave behind and ends with the test.
INIT = """
import os, time
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.1)
"""


def missing() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "hosts are network namespaces, which need root"
    tools = [name for name in ("ip", "unshare", "nsenter", "mount") if shutil.which(name) is None]
    if tools:
        return f"{', '.join(tools)} not installed (Debian: iproute2, util-linux)"
    return None


@dataclass
class Host:
    """One host; it is up from `boot` until the block of `hosts` ends or `lose` is called."""

    name: str
    address: str
    table: Path  # its /etc/hosts
    own: Path  # what it does not share
    init: subprocess.Popen | None = None
    started: list[subprocess.Popen] = field(default_factory=list)

    @property
    def link(self) -> str:
        """The bridge's end of its cable."""
        return f"score-{self.name}"[:15]

    @property
    def up(self) -> bool:
        """Whether it has been booted and neither ended nor lost."""
        return self.init is not None and self.init.poll() is None

    @property
    def pid(self) -> int:
        """The first process of the host, as this machine counts processes."""
        assert self.init is not None
        children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
        return int(children[0])

    def boot(self) -> None:
        """Make the namespaces, plug the cable in and name the neighbours; again after `lose`."""
        unshare = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        self.init = subprocess.Popen(
            [*unshare, sys.executable, "-I", "-S", "-c", INIT],
            start_new_session=True,
            stderr=subprocess.DEVNULL,
            preexec_fn=_end_with_the_test,
        )
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError, IndexError):
                if os.readlink(f"/proc/{self.pid}/ns/net") != os.readlink("/proc/self/ns/net"):
                    break
            if time.monotonic() > deadline or self.init.poll() is not None:
                raise RuntimeError(f"host {self.name} could not be made: unshare ended with {self.init.poll()}")
            time.sleep(0.02)
        _ip("link", "del", self.link, check=False)
        _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        _ip("link", "set", self.link, "master", BRIDGE)
        _ip("link", "set", self.link, "up")
        self.run("hostname", self.name)
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("mount", "--bind", str(self.table), "/etc/hosts")
        for place in ("/tmp/ray", temp_dir()):  # sockets of Ray; everything else in /tmp is shared
            Path(place).mkdir(exist_ok=True)
            (self.own / Path(place).name).mkdir(parents=True, exist_ok=True)
            self.run("mount", "--bind", str(self.own / Path(place).name), place)

    def words(self, *command: str) -> list[str]:
        """What to run so that `command` runs on this host, in this process's directory."""
        namespaces = ["--net", "--uts", "--mount", "--pid", f"--wdns={Path.cwd()}"]
        return ["nsenter", "--target", str(self.pid), *namespaces, "--", *command]

    def start(self, *command: str, **options) -> subprocess.Popen:
        """Start `command` on this host; options as of `subprocess.Popen`."""
        process = subprocess.Popen(self.words(*command), start_new_session=True, **options)
        self.started.append(process)
        return process

    def run(self, *command: str, timeout: float = 60, check: bool = True, **options) -> subprocess.CompletedProcess:
        """Run `command` on this host to its end; returns it with its output."""
        done = subprocess.run(self.words(*command), capture_output=True, text=True, timeout=timeout, **options)
        if check and done.returncode:
            raise RuntimeError(f"{command} on {self.name} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def processes(self) -> list[str]:
        """Command lines of what runs on this host, its first process and zombies left out."""
        found = []
        try:
            namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        except (OSError, IndexError, AssertionError):  # it was lost just now
            return []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == self.pid:
                continue
            with contextlib.suppress(OSError):  # it ended meanwhile
                if os.readlink(entry / "ns" / "pid") == namespace:
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if words:
                        found.append(words)
        return found

    def lose(self) -> None:
        """Pull the cable, then the plug: nobody hears a goodbye."""
        _ip("link", "set", self.link, "down")
        time.sleep(0.2)
        self.end()

    def end(self) -> None:
        """End the host's first process; the kernel ends all others with it."""
        if self.init is None:
            return
        with contextlib.suppress(OSError, IndexError):
            os.kill(self.pid, signal.SIGKILL)
        self.init.wait()
        self.init = None
        for process in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Hosts of these names for the block; they know each other by name and address, and nobody else."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        _ip("link", "del", BRIDGE, check=False)  # of a test that was killed
        _ip("link", "add", BRIDGE, "type", "bridge")
        stack.callback(_ip, "link", "del", BRIDGE, check=False)
        _ip("link", "set", BRIDGE, "up")
        addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, start=11)}
        table = Path(folder, "hosts")
        table.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in addresses.items()))
        made = []
        for name, address in addresses.items():
            made.append(Host(name, address, table, Path(folder, name)))
            stack.callback(made[-1].end)
            made[-1].boot()
        yield made


def _end_with_the_test() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a test that is killed leaves no hosts


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
