"""A TCP port to listen on out."""

from __future__ import annotations

import secrets
import socket

# Below what the kernel gives to outgoing connections (ip_local_port_range, 32768 and up): a port of those, free when
# it is looked for, may be some connection's when it is listened on. Above Ray's worker ports (10002 to 19999) and
# those at which the copies of a SLURM job meet (20000 to 29999).
RANGE = range(30000, 32768)


def free_port() -> int:
    """A port that nobody listens on now; one that the kernel chooses where all of RANGE are taken."""
    for _ in range(len(RANGE)):
        port = secrets.choice(RANGE)  # forks of one process would draw the same from `random`
        with socket.socket() as sock:
            try:
                sock.bind(("", port))
            except OSError:  # taken
                continue
            return port
    with socket.socket() as sock:
        sock.bind(("", 0))
        chosen: int = sock.getsockname()[1]
        return chosen
