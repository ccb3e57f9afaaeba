"""One of the copies a launcher starts in; one training run out: rank 0 trains, the others wait and leave as it leaves.

    deepspeed launch/train_rl_guided.sh [CONFIG] [key=value ...]                       one copy a GPU
    deepspeed --hostfile hosts launch/train_rl_guided.sh [CONFIG] [key=value ...]      ... of every node
    srun --ntasks-per-node=1 launch/train_rl_guided.sh [CONFIG] [key=value ...]        one copy a node
    bash launch/train_rl_guided.sh [CONFIG] [key=value ...]                            one copy
    deepspeed --module score_openrlhf.launch CONFIG [key=value ...]                    without a checkout; srun as well

The copies meet at the launcher's own address, in a TCP store; torch's process group is not used, because Ray places
the workers. On several nodes the first copy of each starts Ray there: rank 0 the head, the others join it. No second
copy trains, and all leave with the driver's exit status.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from score_openrlhf import platform, ray_cluster
from score_openrlhf.cli import main as command
from score_openrlhf.cluster.stop import stop_request
from score_openrlhf.errors import FAULT, RUN_ERROR, UserError, finish, status_of

MEETING_TIMEOUT = timedelta(minutes=10)
LEAVING_SECONDS = 10.0  # below the time that a batch system leaves between SIGTERM and SIGKILL
PID_FILE = "SCORE_OPENRLHF_PID_FILE"  # rank 0 writes its process id there, for a batch script that passes a signal on
# What launchers set for torch.distributed; Ray's workers would take it for theirs.
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
MEETING_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")
NOTHING_TO_START = {"--dry-run", "--help", "-h"}


@dataclass(frozen=True)
class Copy:
    """Where this copy stands among those the launcher started."""

    rank: int
    world_size: int
    node: int
    num_nodes: int
    first_of_node: bool
    address: str  # where the copies meet
    port: int


ALONE = Copy(0, 1, 0, 1, True, "", 0)


def copy_of(environment: Mapping[str, str]) -> Copy:
    """Which copy this is, by the variables of the deepspeed launcher or of srun; alone if there are none.

    Raises UserError if there are several copies and no meeting place.
    """
    if int(environment.get("WORLD_SIZE", 1)) > 1 and "RANK" in environment:
        return _copy_by_deepspeed(environment)
    # a batch script has SLURM's variables too, but is no task of a step
    if "SLURM_STEP_ID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return _copy_by_srun(environment)
    return ALONE


def _copy_by_deepspeed(environment: Mapping[str, str]) -> Copy:
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    missing = [name for name in MEETING_VARIABLES if name not in environment]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {world_size} and {' and '.join(missing)} not set; start the copies with the deepspeed "
            "launcher"
        )
    local_size = int(environment.get("LOCAL_SIZE", world_size))
    num_nodes = int(environment.get("CROSS_SIZE", world_size // local_size))
    return Copy(
        rank,
        world_size,
        node=int(environment.get("CROSS_RANK", rank // local_size)),
        num_nodes=num_nodes,
        first_of_node=int(environment.get("LOCAL_RANK", rank % local_size)) == 0,
        address=environment["MASTER_ADDR"],
        port=int(environment["MASTER_PORT"]),
    )


def _copy_by_srun(environment: Mapping[str, str]) -> Copy:
    address = environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"])
    # outside a batch script nobody has looked for a free port: one that differs from step to step
    step = int(environment["SLURM_JOB_ID"]) * 31 + int(environment["SLURM_STEP_ID"])
    return Copy(
        int(environment["SLURM_PROCID"]),
        int(environment["SLURM_STEP_NUM_TASKS"]),
        node=int(environment["SLURM_NODEID"]),
        num_nodes=int(environment["SLURM_STEP_NUM_NODES"]),
        first_of_node=int(environment["SLURM_LOCALID"]) == 0,
        address=address,
        port=int(environment.get("MASTER_PORT") or 20000 + step % 10000),
    )


def _first_host(nodes: str) -> str:
    words = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0]


def main(argv: list[str]) -> int:
    """Run this copy's part; returns the driver's exit status."""
    # the deepspeed launcher adds it; LOCAL_RANK says the same
    argv = [word for word in argv if not word.startswith("--local_rank")]
    platform.shorten_tmpdir()
    try:
        copy = copy_of(os.environ)
    except UserError as error:
        _say(str(error))
        return error.status
    for name in (*LAUNCHER_VARIABLES, *MEETING_VARIABLES, *platform.device_variables()):
        os.environ.pop(name, None)
    signal.signal(signal.SIGTERM, _leave)
    if copy.rank == 0:
        stop_request.listen()  # before anyone can know the process: until then the signal would end it
        with _pid_file():
            return command(["train", *argv]) if copy.world_size == 1 else _drive(copy, argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's to answer
    try:
        store = _meet(copy)
    except RuntimeError as error:
        _say(f"the driver did not come to {copy.address}:{copy.port} within {MEETING_TIMEOUT}: {error}")
        return RUN_ERROR
    return _host_ray(store, copy) if copy.num_nodes > 1 and copy.first_of_node else _follow(store)


def _meet(copy: Copy) -> Any:
    from torch.distributed import TCPStore

    return TCPStore(copy.address, copy.port, is_master=copy.rank == 0, timeout=MEETING_TIMEOUT, wait_for_workers=False)


# ── the driver ──


def _drive(copy: Copy, argv: list[str]) -> int:
    """Rank 0: train, on a Ray cluster of all nodes if there are several; then tell the others how it ended."""
    try:
        store = _meet(copy)
    except RuntimeError as error:
        _say(f"port {copy.port} of {copy.address}, where the copies are to meet, cannot be had: {error}")
        return RUN_ERROR
    status = FAULT
    try:
        if copy.num_nodes == 1:
            status = command(["train", *argv])
        else:
            status = status_of(lambda: _train_on_cluster(store, copy, argv))
    except SystemExit as end:  # `--help`, a mistyped option
        status = end.code if isinstance(end.code, int) else 0
        raise
    finally:
        finish("telling the other copies", lambda: _tell(store, copy, status))
    return status


def _tell(store: Any, copy: Copy, status: int) -> None:
    """Leave the exit status in the store, which lives in this process: it stays until the others have read it."""
    store.set("status", str(status))
    deadline = time.monotonic() + LEAVING_SECONDS / 2
    while store.add("left", 0) < copy.world_size - 1 and time.monotonic() < deadline:
        time.sleep(0.2)


def _train_on_cluster(store: Any, copy: Copy, argv: list[str]) -> int:
    """Check the configuration, start Ray on every node, train on it; returns the exit status."""
    from score_openrlhf.cli.train import prepare_task
    from score_openrlhf.cluster.placement import place
    from score_openrlhf.config.compose import load_config
    from score_openrlhf.config.validate import validate

    if NOTHING_TO_START & set(argv):
        return command(["train", *argv])
    words = [word for word in argv if not word.startswith("-")]
    resolved = load_config(words[0], words[1:])
    prepare_task(resolved)
    validate(resolved.cfg)
    num_gpus = -(-place(resolved.cfg).num_gpus // copy.num_nodes)
    if resolved.cfg.ray.address not in (None, "auto"):
        return command(["train", *argv])  # the user's own cluster
    peers = _wait_for(store, copy, "node", f"come to {copy.address}:{copy.port}")
    folder = f"/tmp/score-openrlhf-{secrets.token_hex(4)}"
    with ray_cluster.head(ray_cluster.own_address(peers[0]["ip"]), num_gpus) as node:
        store.set("ray", json.dumps({"address": node.address, "folder": folder, "num_gpus": num_gpus}))
        _wait_for(store, copy, "joined", f"join Ray at {node.address}")
        names = ", ".join([socket.gethostname(), *(peer["host"] for peer in peers)])
        _say(f"Ray runs at {node.address} on {copy.num_nodes} nodes: {names}")
        platform.start_fork_server(folder)
        return command(["train", *argv, f"ray.address={node.address}", f"ray.num_nodes={copy.num_nodes}"])


def _wait_for(store: Any, copy: Copy, key: str, doing: str) -> list[dict[str, str]]:
    """What every other node has put under `key`; raises RayNodeError if one has failed, or says nothing in time."""
    deadline = time.monotonic() + MEETING_TIMEOUT.total_seconds()
    missing = list(range(1, copy.num_nodes))
    said: list[int] | None = None
    while missing := [node for node in missing if not store.check([f"{key}/{node}"])]:
        for node in missing:
            if store.check([f"failed/{node}"]):
                raise ray_cluster.RayNodeError(store.get(f"failed/{node}").decode())
        if missing != said:
            _say(f"waiting for {len(missing)} of {copy.num_nodes} nodes to {doing}")
            said = missing
        if time.monotonic() > deadline:
            numbers = ", ".join(map(str, missing))
            raise ray_cluster.RayNodeError(
                f"node {numbers} of 0 to {copy.num_nodes - 1} did not {doing} within {MEETING_TIMEOUT}; look at its "
                "own log, and whether it can reach this address and port"
            )
        time.sleep(0.5)
    return [json.loads(store.get(f"{key}/{node}")) for node in range(1, copy.num_nodes)]


@contextlib.contextmanager
def _pid_file() -> Iterator[None]:
    path = os.environ.get(PID_FILE)
    if path is None:
        yield
        return
    Path(path).write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        Path(path).unlink(missing_ok=True)


# ── the others ──


def _host_ray(store: Any, copy: Copy) -> int:
    """The first copy of another node: join the driver's Ray cluster until the driver leaves."""
    own = {"host": socket.gethostname(), "ip": ray_cluster.own_address(copy.address)}
    store.set(f"node/{copy.node}", json.dumps(own))
    driver = _Driver(store)
    meeting = driver.wait_for_ray()
    if meeting is None:
        return driver.wait()
    platform.start_fork_server(meeting["folder"])
    try:
        with ray_cluster.member(meeting["address"], own["ip"], meeting["num_gpus"]) as node:
            store.set(f"joined/{copy.node}", json.dumps(own))
            driver.watch()
            while driver.status is None:
                node.check()
                time.sleep(0.5)
            return driver.status
    except ray_cluster.RayNodeError as error:
        _say(str(error))
        with contextlib.suppress(RuntimeError):  # the driver has gone too
            store.set(f"failed/{copy.node}", str(error))
        return RUN_ERROR


def _follow(store: Any) -> int:
    """Any other copy: wait for the driver's status."""
    return _Driver(store).wait()


class _Driver:
    """The driver as the other copies see it: its exit status, once it is there."""

    def __init__(self, store: Any):
        self.store = store
        self.status: int | None = None

    def wait_for_ray(self) -> dict[str, Any] | None:
        """Where the cluster is; None if the driver left, or trains without one."""
        try:
            while not self.store.check(["ray"]):
                if self.store.check(["status"]):
                    return None
                time.sleep(0.5)
            return json.loads(self.store.get("ray"))
        except RuntimeError:
            return None

    def wait(self) -> int:
        """Block until the driver has left; returns its exit status, 1 if it is gone without one."""
        try:
            while not self.store.check(["status"]):
                time.sleep(1.0)
            status = int(self.store.get("status"))
            self.store.add("left", 1)
        except RuntimeError as error:  # the driver's process is gone, and the store with it
            _say(f"the driver is gone ({type(error).__name__}); leaving")
            status = RUN_ERROR
        self.status = status
        return status

    def watch(self) -> None:
        """Wait in a thread: a question to a host that is lost may stay without an answer."""
        threading.Thread(target=self.wait, name="driver-watch", daemon=True).start()


def _leave(signum: int, frame: object) -> None:
    """SIGTERM: leave in order, or in LEAVING_SECONDS without: who sends it sends SIGKILL soon after, to this process
    alone, and what it has started would stay."""
    last = threading.Timer(LEAVING_SECONDS, _leave_at_once, [128 + signum])
    last.daemon = True
    last.start()
    raise SystemExit(128 + signum)


def _leave_at_once(status: int) -> None:
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(status)


def _say(text: str) -> None:
    print(f"score-openrlhf: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
