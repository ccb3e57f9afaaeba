"""Names in; a real SLURM out: slurmctld on a login host, one slurmd a node, each with its own address.

    with slurm_cluster("n1", "n2") as cluster:
        job = cluster.submit("--nodes=2", "job.sbatch", cwd=folder)
        job.wait_for("COMPLETED", seconds=60)

Configuration, state, spool and munge's key and socket lie in a temporary folder; nothing of the machine's own SLURM or
munge is read or changed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import hosts as namespaces
from tests.cluster.hosts import Host, hosts

LOGIN = "login"
TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel", "munged")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "PREEMPTED")
START_SECONDS = 60
KILL_WAIT_SECONDS = 15  # between SIGTERM and SIGKILL of a job that is cancelled; SLURM's own default is 30

# linuxproc, task/none and no cgroups: what a machine that is itself a container allows. It is the harder case, too:
# SLURM then finds the processes of a job by their parents alone. config_overrides: a node may claim CPUs it has not.
CONF = """
ClusterName=score
SlurmctldHost={login}({login_address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2
ReturnToService=2
MailProg=/bin/true
KillWait={kill_wait}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why a SLURM cannot be run here; None where it can."""
    tools = [name for name in TOOLS if shutil.which(name) is None]
    if tools:
        return f"{', '.join(tools)} not installed; tests/cluster/install.sh installs them on Debian"
    if reason := namespaces.missing():
        return reason
    made = subprocess.run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True)
    return f"namespaces cannot be made here: {made.stderr.decode().strip()}" if made.returncode else None


@dataclass
class Cluster:
    """A SLURM that answers; commands are given on its login host."""

    folder: Path
    login: Host
    nodes: dict[str, Host]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command on the login host; returns what it printed."""
        return self.login.run(*command, check=check, env=self.environment).stdout

    def submit(self, *words: str, cwd: Path) -> Job:
        """`sbatch` in the folder `cwd`."""
        # entering a host's mounts leads to /, so the folder is entered after it
        number = self.run("env", f"--chdir={cwd}", "sbatch", "--parsable", *words).strip()
        return Job(self, number, cwd)

    def processes(self) -> list[str]:
        """What runs on the nodes beside SLURM's own slurmd."""
        return [
            f"{host.name}: {words}"
            for host in self.nodes.values()
            for words in host.processes()
            if not words.startswith("slurmd ")
        ]

    def daemon_logs(self) -> str:
        """The last lines of each daemon's log."""
        return "\n".join(_tail(path) for path in sorted(self.folder.glob("*.log")))


@dataclass
class Job:
    """A job and the folder it was submitted in, where its logs are."""

    cluster: Cluster
    number: str
    folder: Path

    def shown(self) -> dict[str, str]:
        """What `scontrol show job` says, by its own names."""
        words = self.cluster.run("scontrol", "--oneliner", "show", "job", self.number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def log(self, node: str | None = None) -> str:
        """What the batch script has printed, or the copy on `node`."""
        path = self.folder / (f"slurm-{self.number}-{node}.out" if node else f"slurm-{self.number}.out")
        return path.read_text(errors="replace") if path.is_file() else ""

    def logs(self) -> str:
        """The last lines of all logs of the job and of SLURM."""
        own = "\n".join(_tail(path, 40) for path in sorted(self.folder.glob(f"slurm-{self.number}*.out")))
        return f"{own}\n{self.cluster.daemon_logs()}\nrunning: " + "\n".join(self.cluster.processes())

    def wait_until(self, condition: Callable[[], Any], what: str, *, seconds: float) -> Any:
        """Poll `condition` until it is true; returns its answer; AssertionError with the logs after `seconds`."""
        return poll(condition, f"job {self.number}: {what}", seconds=seconds, logs=self.logs)

    def wait_for(self, state: str, *, seconds: float) -> dict[str, str]:
        """Wait until the job is in `state`; raises AssertionError with the logs if it ends in another, or late."""

        def in_state() -> dict[str, str] | None:
            shown = self.shown()
            if shown["JobState"] in ENDED and shown["JobState"] != state:
                raise AssertionError(f"job {self.number} is {shown['JobState']}, not {state}\n{self.logs()}")
            return shown if shown["JobState"] == state else None

        return self.wait_until(in_state, state, seconds=seconds)

    def start_soon(self) -> None:
        """Do not wait the two minutes that SLURM keeps a requeued job back.

        Three seconds later at the earliest: a slurmd takes what comes in the second of the requeue for the old start.
        """
        self.cluster.run("scontrol", "update", f"jobid={self.number}", "starttime=now+3")


def poll(condition: Callable[[], Any], what: str, *, seconds: float, logs: Callable[[], str]) -> Any:
    """Ask `condition` four times a second; returns its first true answer; AssertionError with `logs` in the end."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s for {what}\n{logs()}")
        time.sleep(0.25)
    return answer


@contextlib.contextmanager
def slurm_cluster(*names: str, cpus: int = 4) -> Iterator[Cluster]:
    """A SLURM with nodes of these names for the block."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as made, contextlib.ExitStack() as stack:
        folder = Path(made)
        folder.chmod(0o755)  # munged runs as its own user and must get to its folder
        stack.enter_context(_munged(folder / "munge"))
        login, *nodes = stack.enter_context(hosts(LOGIN, *names))
        cluster = Cluster(folder, login, {host.name: host for host in nodes})
        lines = [f"NodeName={host.name} NodeAddr={host.address} CPUs={cpus} State=UNKNOWN" for host in nodes]
        conf = CONF.format(
            login=login.name,
            login_address=login.address,
            folder=folder,
            nodes="\n".join(lines),
            kill_wait=KILL_WAIT_SECONDS,
        )
        (folder / "slurm.conf").write_text(conf)
        (folder / "state").mkdir()
        _daemon(cluster, login, "slurmctld")
        for host in nodes:
            (folder / f"spool-{host.name}").mkdir()
            _daemon(cluster, host, "slurmd", "-N", host.name)
        idle = {(name, "idle") for name in names}

        def ready() -> bool:
            shown = cluster.run("sinfo", "--noheader", "--Node", "--format=%N %t", check=False).splitlines()
            return {tuple(line.split()) for line in shown} == idle

        poll(ready, f"{', '.join(names)} to be idle", seconds=START_SECONDS, logs=cluster.daemon_logs)
        yield cluster


def _daemon(cluster: Cluster, host: Host, *command: str) -> None:
    """Start one of SLURM's daemons in the foreground: it ends with its host."""
    with (cluster.folder / f"{command[0]}-{host.name}.stderr").open("w") as output:
        host.start(*command, "-D", stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=cluster.environment)


@contextlib.contextmanager
def _munged(folder: Path) -> Iterator[None]:
    """A munged of our own, with its own key, as user munge; its socket is a file, so all hosts reach it."""
    folder.mkdir(mode=0o755)
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    for path in (folder, key):
        shutil.chown(path, "munge", "munge")
    words = ["munged", "--foreground", f"--key-file={key}", f"--socket={folder / 'socket'}"]
    words += [f"--pid-file={folder / 'pid'}", f"--seed-file={folder / 'seed'}", f"--log-file={folder / 'munged.log'}"]
    with (folder.parent / "munged.stderr").open("w") as output:
        process = subprocess.Popen(
            words, stdout=output, stderr=output, user="munge", group="munge", extra_groups=[], start_new_session=True
        )
    try:
        poll(
            lambda: process.poll() is not None or (folder / "socket").exists(),
            "munged's socket",
            seconds=START_SECONDS,
            logs=lambda: _tail(folder.parent / "munged.stderr"),
        )
        if process.poll() is not None:
            raise RuntimeError(f"munged ended with {process.returncode}: {_tail(folder.parent / 'munged.stderr')}")
        yield
    finally:
        process.terminate()
        process.wait(10)


def _tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log under its name."""
    return f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
