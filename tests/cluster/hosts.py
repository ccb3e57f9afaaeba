"""Names in; hosts with their own addresses, process ids, host name and /tmp/ray on this one machine out.

    with hosts("n1", "n2") as (n1, n2):
        n1.run("ping", "-c1", "n2")
        n2.lose()

A host is a set of Linux namespaces (network, host name, mounts, process ids) on a bridge of its own. Files are shared,
as on a cluster. Needs root and iproute2; no network outside the machine is touched or reached.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    """One host; it is there until the block of `hosts` ends or `lose` is called."""

    name: str
    address: str
    init: subprocess.Popen
    link: str  # the bridge's end of its cable
    started: list[subprocess.Popen] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """The first process of the host, as this machine counts processes."""
        children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
        return int(children[0])

    def words(self, *command: str) -> list[str]:
        """What to run so that `command` runs on this host."""
        return ["nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--pid", "--", *command]

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
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
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
        with contextlib.suppress(OSError, IndexError):
            os.kill(self.pid, signal.SIGKILL)
        self.init.wait()
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
            host = _make(name, address, table, Path(folder, name))
            stack.callback(host.end)
            made.append(host)
        yield made


def _make(name: str, address: str, table: Path, own: Path) -> Host:
    unshare = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    init = subprocess.Popen([*unshare, sys.executable, "-I", "-S", "-c", INIT], start_new_session=True)
    host = Host(name, address, init, f"score-{name}"[:15])
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError, IndexError):
            if os.readlink(f"/proc/{host.pid}/ns/net") != os.readlink("/proc/self/ns/net"):
                break
        if time.monotonic() > deadline or init.poll() is not None:
            raise RuntimeError(f"host {name} could not be made: unshare ended with {init.poll()}")
        time.sleep(0.02)
    _ip("link", "del", host.link, check=False)
    _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
    _ip("link", "set", host.link, "master", BRIDGE)
    _ip("link", "set", host.link, "up")
    host.run("hostname", name)
    host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    host.run("ip", "link", "set", "eth0", "up")
    host.run("ip", "link", "set", "lo", "up")
    host.run("mount", "--bind", str(table), "/etc/hosts")
    for place in ("/tmp/ray", f"/tmp/ray-{os.getuid()}"):  # sockets of Ray; everything else in /tmp is shared
        Path(place).mkdir(exist_ok=True)
        (own / Path(place).name).mkdir(parents=True)
        host.run("mount", "--bind", str(own / Path(place).name), place)
    return host


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def read_all(process: subprocess.Popen, timeout: float) -> str:
    """The output of a process started with stdout=PIPE, once it has ended."""
    output, _ = process.communicate(timeout=timeout)
    return output


def joined(words: Sequence[str]) -> str:
    """Lines for an assertion's message."""
    return "\n".join(words)
