"""`ray.init` in; a node that has started out, on a machine too busy for the time Ray gives it as well."""

from __future__ import annotations

import traceback
from typing import Any

from score_openrlhf.errors import RunError

ATTEMPTS = 3
TOO_SLOW = "timed out during startup"  # ray/_private/node.py: 30 s, for which it has no setting


class BusyMachine(RunError):
    """Ray's own processes did not come up in the time that Ray gives them."""


def init_ray(**kwargs: Any) -> None:
    """`ray.init(**kwargs)`, anew where its node did not come up in time; raises BusyMachine after ATTEMPTS times."""
    import ray

    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(**kwargs)
            return
        except Exception as error:
            if TOO_SLOW not in str(error):
                raise
            _end_node(error)
            ray.shutdown()
            if attempt == ATTEMPTS:
                raise BusyMachine(
                    f"Ray did not start: {ATTEMPTS} times its processes were not up after 30 s. The machine is "
                    "busy or short of memory: end other programs on it and give the same command again"
                ) from error


def _end_node(error: Exception) -> None:
    """End the processes of the node whose start raised: nothing but the error's frames has it, and they would stay."""
    from ray._private.node import Node

    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            return
