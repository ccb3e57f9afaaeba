"""One of the copies a launcher starts in; one training run out: rank 0 trains, the others wait and leave as it leaves.

    deepspeed launch/train_rl_guided.sh [CONFIG] [key=value ...]                       one copy a GPU
    deepspeed --hostfile hosts launch/train_rl_guided.sh [CONFIG] [key=value ...]      ... of every node
    srun --ntasks-per-node=1 launch/train_rl_guided.sh [CONFIG] [key=value ...]        one copy a node
    bash launch/train_rl_guided.sh [CONFIG] [key=value ...]                            one copy

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
from score_openrlhf.trainer.stop import stop_request

MEETING_TIMEOUT = timedelta(minutes=10)
LEAVING_SECONDS = 10.0  # below the time that a batch system leaves between SIGTERM and SIGKILL
PID_FILE = "SCORE_OPENRLHF_PID_FILE"  # rank 0 writes its process id there, for a batch script that passes a signal on
# What launchers set for torch.distributed; Ray's workers would take it for theirs.
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
MEETING_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")
NOTHING_TO_START = {"--dry-run", "--help", "-h"}


@dataclass(frozen=True)
class Place:
    """Where this copy stands among those the launcher started."""

    rank: int
    world_size: int
    node: int
    num_nodes: int
    first_of_node: bool
    address: str  # where the copies meet
    port: int


ALONE = Place(0, 1, 0, 1, True, "", 0)


def place_of(environment: Mapping[str, str]) -> Place:
    """This copy's place by the variables of the deepspeed launcher or of srun; alone if there are none.

    Raises ValueError if there are several copies and no meeting place.
    """
    if int(environment.get("WORLD_SIZE", 1)) > 1 and "RANK" in environment:
        return _place_by_deepspeed(environment)
    # a batch script has SLURM's variables too, but is no task of a step
    if "SLURM_STEP_ID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return _place_by_srun(environment)
    return ALONE


def _place_by_deepspeed(environment: Mapping[str, str]) -> Place:
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    missing = [name for name in MEETING_VARIABLES if name not in environment]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {world_size} and {' and '.join(missing)} not set; start the copies with the deepspeed "
            "launcher"
        )
    local_size = int(environment.get("LOCAL_SIZE", world_size))
    num_nodes = int(environment.get("CROSS_SIZE", world_size // local_size))
    return Place(
        rank,
        world_size,
        node=int(environment.get("CROSS_RANK", rank // local_size)),
        num_nodes=num_nodes,
        first_of_node=int(environment.get("LOCAL_RANK", rank % local_size)) == 0,
        address=environment["MASTER_ADDR"],
        port=int(environment["MASTER_PORT"]),
    )


def _place_by_srun(environment: Mapping[str, str]) -> Place:
    address = environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"])
    # outside a batch script nobody has looked for a free port: one that differs from step to step
    step = int(environment["SLURM_JOB_ID"]) * 31 + int(environment["SLURM_STEP_ID"])
    return Place(
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
    try:
        place = place_of(os.environ)
    except ValueError as error:
        _say(str(error))
        return 2
    for name in (*LAUNCHER_VARIABLES, *MEETING_VARIABLES, *platform.device_variables()):
        os.environ.pop(name, None)
    signal.signal(signal.SIGTERM, _leave)
    if place.rank == 0:
        stop_request.listen()  # before anyone can know the process: until then the signal would end it
        with _pid_file():
            return command(["train", *argv]) if place.world_size == 1 else _drive(place, argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's to answer
    try:
        store = _meet(place)
    except RuntimeError as error:
        _say(f"the driver did not come to {place.address}:{place.port} within {MEETING_TIMEOUT}: {error}")
        return 1
    return _host_ray(store, place) if place.num_nodes > 1 and place.first_of_node else _follow(store)


def _meet(place: Place) -> Any:
    from torch.distributed import TCPStore

    return TCPStore(
        place.address, place.port, is_master=place.rank == 0, timeout=MEETING_TIMEOUT, wait_for_workers=False
    )


# ── the driver ──


def _drive(place: Place, argv: list[str]) -> int:
    """Rank 0: train, on a Ray cluster of all nodes if there are several; then tell the others how it ended."""
    try:
        store = _meet(place)
    except RuntimeError as error:
        _say(f"port {place.port} of {place.address}, where the copies are to meet, cannot be had: {error}")
        return 1
    status = 1
    try:
        status = command(["train", *argv]) if place.num_nodes == 1 else _train_on_cluster(store, place, argv)
    finally:
        store.set("status", str(status))
        deadline = time.monotonic() + LEAVING_SECONDS / 2
        # the store lives in this process: it stays until the others have read the status
        while store.add("left", 0) < place.world_size - 1 and time.monotonic() < deadline:
            time.sleep(0.2)
    return status


def _train_on_cluster(store: Any, place: Place, argv: list[str]) -> int:
    """Check the configuration, start Ray on every node, train on it; returns the exit status."""
    from score_openrlhf.cli.train import complain, prepare_task
    from score_openrlhf.config.compose import load_config
    from score_openrlhf.config.validate import validate
    from score_openrlhf.policies.placement import place as place_roles

    if NOTHING_TO_START & set(argv):
        return command(["train", *argv])
    words = [word for word in argv if not word.startswith("-")]
    try:
        resolved = load_config(words[0], words[1:])
        prepare_task(resolved)
        validate(resolved.cfg)
        num_gpus = -(-place_roles(resolved.cfg).num_gpus // place.num_nodes)
    except ValueError as error:  # ConfigError included
        return complain(error)
    if resolved.cfg.ray.address not in (None, "auto"):
        return command(["train", *argv])  # the user's own cluster
    try:
        peers = _wait_for(store, place, "node", f"come to {place.address}:{place.port}")
        meeting = {"folder": f"/tmp/score-openrlhf-{secrets.token_hex(4)}", "num_gpus": num_gpus}
        with ray_cluster.head(ray_cluster.own_address(peers[0]["ip"]), num_gpus) as node:
            store.set("ray", json.dumps({"address": node.address, **meeting}))
            _wait_for(store, place, "joined", f"join Ray at {node.address}")
            names = ", ".join([socket.gethostname(), *(peer["host"] for peer in peers)])
            _say(f"Ray runs at {node.address} on {place.num_nodes} nodes: {names}")
            platform.start_fork_server(meeting["folder"])
            return command(["train", *argv, f"ray.address={node.address}", f"ray.num_nodes={place.num_nodes}"])
    except ray_cluster.RayNodeError as error:
        return complain(error, status=1)


def _wait_for(store: Any, place: Place, key: str, doing: str) -> list[dict[str, str]]:
    """What every other node has put under `key`; raises RayNodeError if one has failed, or says nothing in time."""
    deadline = time.monotonic() + MEETING_TIMEOUT.total_seconds()
    missing = list(range(1, place.num_nodes))
    said: list[int] | None = None
    while missing := [node for node in missing if not store.check([f"{key}/{node}"])]:
        for node in missing:
            if store.check([f"failed/{node}"]):
                raise ray_cluster.RayNodeError(store.get(f"failed/{node}").decode())
        if missing != said:
            _say(f"waiting for {len(missing)} of {place.num_nodes} nodes to {doing}")
            said = missing
        if time.monotonic() > deadline:
            numbers = ", ".join(map(str, missing))
            raise ray_cluster.RayNodeError(
                f"node {numbers} of 0 to {place.num_nodes - 1} did not {doing} within {MEETING_TIMEOUT}; look at its "
                "own log, and whether it can reach this address and port"
            )
        time.sleep(0.5)
    return [json.loads(store.get(f"{key}/{node}")) for node in range(1, place.num_nodes)]


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


def _host_ray(store: Any, place: Place) -> int:
    """The first copy of another node: join the driver's Ray cluster until the driver leaves."""
    own = {"host": socket.gethostname(), "ip": ray_cluster.own_address(place.address)}
    store.set(f"node/{place.node}", json.dumps(own))
    driver = _Driver(store)
    meeting = driver.wait_for_ray()
    if meeting is None:
        return driver.wait()
    platform.start_fork_server(meeting["folder"])
    try:
        with ray_cluster.member(meeting["address"], own["ip"], meeting["num_gpus"]) as node:
            store.set(f"joined/{place.node}", json.dumps(own))
            driver.watch()
            while driver.status is None:
                node.check()
                time.sleep(0.5)
            return driver.status
    except ray_cluster.RayNodeError as error:
        _say(str(error))
        with contextlib.suppress(RuntimeError):  # the driver has gone too
            store.set(f"failed/{place.node}", str(error))
        return 1


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
            status = 1
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
