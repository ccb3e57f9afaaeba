"""One of the copies a launcher starts in; one training run out: rank 0 trains, the others wait and leave as it leaves.

    deepspeed launch/train_rl_guided.sh [CONFIG] [key=value ...]
    bash launch/train_rl_guided.sh [CONFIG] [key=value ...]

Launchers start one copy per GPU. The copies meet at the launcher's own address, in a TCP store; torch's process group
is not used, because Ray places the workers. No second copy trains.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from score_openrlhf.cli import main as command

MEETING_TIMEOUT = timedelta(minutes=10)
LEAVING_SECONDS = 30.0
# What launchers set for torch.distributed; Ray's workers would take it for theirs.
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
MEETING_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Where this copy stands among those the launcher started."""

    rank: int
    world_size: int
    num_nodes: int
    address: str  # where the copies meet
    port: int


def place_of(environment: Mapping[str, str]) -> Place:
    """This copy's place by the deepspeed launcher's variables; alone if there are none.

    Raises ValueError if there are several copies and no meeting place, or several nodes.
    """
    world_size = int(environment.get("WORLD_SIZE", 1))
    if world_size == 1 or "RANK" not in environment:
        return Place(0, 1, 1, "", 0)
    missing = [name for name in MEETING_VARIABLES if name not in environment]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {world_size} and {' and '.join(missing)} not set; start the copies with the deepspeed "
            "launcher"
        )
    num_nodes = world_size // int(environment.get("LOCAL_SIZE", world_size))
    if num_nodes > 1:
        raise ValueError(
            f"the launcher started {world_size} copies on {num_nodes} nodes; several nodes are joined by Ray: run "
            "`ray start` on each and this script on one of them alone, with ray.address=HOST:PORT"
        )
    address, port = (environment[name] for name in MEETING_VARIABLES)
    return Place(int(environment["RANK"]), world_size, num_nodes, address, int(port))


def main(argv: list[str]) -> int:
    """Run this copy's part; returns the driver's exit status."""
    try:
        place = place_of(os.environ)
    except ValueError as error:
        print(f"score-openrlhf: {error}", file=sys.stderr)
        return 2
    for name in (*LAUNCHER_VARIABLES, *MEETING_VARIABLES):
        os.environ.pop(name, None)
    if place.world_size == 1:
        return command(["train", *argv])
    from torch.distributed import TCPStore

    is_driver = place.rank == 0
    store = TCPStore(place.address, place.port, is_master=is_driver, timeout=MEETING_TIMEOUT, wait_for_workers=False)
    return _drive(store, place, argv) if is_driver else _follow(store)


def _drive(store, place: Place, argv: list[str]) -> int:
    """Rank 0: train, then tell the others how it ended."""
    status = 1
    try:
        status = command(["train", *argv])
    finally:
        store.set("status", str(status))
        deadline = time.monotonic() + LEAVING_SECONDS
        # the store lives in this process: it stays until the others have read the status
        while store.add("left", 0) < place.world_size - 1 and time.monotonic() < deadline:
            time.sleep(0.2)
    return status


def _follow(store) -> int:
    """Any other copy: wait for the driver's status."""
    try:
        while not store.check(["status"]):
            time.sleep(1.0)
        status = int(store.get("status"))
        store.add("left", 1)
    except RuntimeError as error:  # the driver's process is gone, and the store with it
        print(f"score-openrlhf: the driver is gone ({type(error).__name__}); leaving", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
