"""A configuration in; a Ray session that ends with the block, whatever ends the block, out."""

from __future__ import annotations

import logging
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from score_openrlhf import platform
from score_openrlhf.cluster import engine_pool
from score_openrlhf.cluster.stop import Stopped
from score_openrlhf.config.schema import Config
from score_openrlhf.errors import RunError, finish
from score_openrlhf.ray_cluster import other_cluster

NODES_TIMEOUT_SECONDS = 600.0
VERDICT_SECONDS = 60.0


class ClusterError(RunError):
    """The Ray cluster is not, or no longer, what the run needs; says which hosts and what to do."""


class MemoryFull(RunError):
    """A host's memory was full, and Ray ended one of the run's processes; says during what."""


@contextmanager
def ray_session(
    cfg: Config,
    num_gpus: int,
    output_dir: Path,
    console: Console,
    where: Callable[[], str] = lambda: "sampling",
) -> Iterator[None]:
    """Start or join Ray for the block; on a failure keep the processes' logs in output_dir/logs and say so.

    In a session that several runs share (`cluster/engine_pool.py`) it is used, and given back without the run's roles.
    The roles' own output goes to their log files, not between the lines of the driver. A failure that comes of a host
    that was lost is raised as ClusterError, which names the host and `where()` the run was.
    """
    _quiet()
    if engine_pool.pool is None:
        if cfg.ray.address is None and (other := other_cluster()):
            console.print(
                f"Ray: starting one of its own; the cluster at {other} is left alone (ray.address=auto joins it)",
                highlight=False,
                soft_wrap=True,
            )
        options: dict[str, Any] = dict(log_to_driver=False, logging_level=logging.ERROR)
        platform.start_ray(num_gpus, cfg.ray.num_cpus, address=cfg.ray.address, **options)
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    previous = signal.getsignal(signal.SIGTERM)
    if previous == signal.SIG_DFL:  # the launcher has its own
        signal.signal(signal.SIGTERM, _leave)
    nodes: dict[str, dict] = {}
    whole = False
    try:
        if cfg.ray.num_nodes is not None:
            wait_for_nodes(cfg.ray.num_nodes, console)
        nodes = _alive()
        yield
        whole = True
    except Stopped:
        raise
    except Exception as error:
        finish("keeping the logs", partial(keep_logs, logs, output_dir / "logs", console))
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            raise MemoryFull(memory_full(error, where(), output_dir / "logs")) from error
        if lost := finish("asking Ray for its nodes", partial(lost_hosts, nodes, error)):
            raise ClusterError(
                f"host {lost} was lost during {where()} ({type(error).__name__}). The same command goes on from the "
                "newest checkpoint, on as many nodes as the configuration asks for"
            ) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
        if engine_pool.pool is None:
            finish("ending Ray", ray.shutdown)
        else:
            finish("giving the engines back", partial(engine_pool.pool.end_run, whole=whole))


def memory_full(error: Exception, during: str, logs: Path) -> str:
    """What to tell the user of Ray's OutOfMemoryError, whose text has a host's figures and its largest processes."""
    said = " ".join(str(error).split())
    figures = re.search(r"was ([\d.]+ ?[KMGT]i?B) / ([\d.]+ ?[KMGT]i?B)", said)
    full = f" ({figures[1]} of {figures[2]} in use)" if figures else ""
    return (
        f"a host's memory was full during {during}{full}, and Ray ended a process of the run. `score-openrlhf plan` "
        "and `doctor` say what it takes: fewer ranks or engines on the host, ds.param_dtype=bf16, smaller "
        "train.micro_batch_size and rollout.micro_batch_size, or other programs ended. The same command goes on from "
        f"the newest checkpoint. Ray's own words are in {logs}"
    )


def wait_for_nodes(num_nodes: int, console: Console, timeout_seconds: float = NODES_TIMEOUT_SECONDS) -> None:
    """Return when the cluster has `num_nodes` nodes; raises ClusterError that names those that are there if it has not
    in time."""
    deadline = time.monotonic() + timeout_seconds
    said = -1
    while len(alive := _alive()) < num_nodes:
        if len(alive) != said:
            console.print(f"waiting for nodes: {len(alive)} of {num_nodes} have joined Ray", highlight=False)
            said = len(alive)
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{len(alive)} of {num_nodes} nodes joined Ray within {timeout_seconds:.0f} s: "
                f"{_names(alive.values())}. Look at the "
                "logs of the others: each must reach the head's address and port; ray.num_nodes is what is waited for"
            )
        time.sleep(0.5)


def lost_hosts(nodes: dict[str, dict], error: Exception) -> str:
    """Names and addresses of those of `nodes` that Ray has lost; empty if all are there.

    The roles of a host are missed before the host is: Ray calls a host dead when it has not answered for about half a
    minute, so after an error of Ray's own its verdict is waited for.
    """
    deadline = time.monotonic() + (VERDICT_SECONDS if isinstance(error, ray.exceptions.RayError) else 0.0)
    while len(nodes) > 1:
        alive = _alive()
        if lost := [node for key, node in nodes.items() if key not in alive]:
            return _names(lost)
        if time.monotonic() > deadline:
            break
        time.sleep(1.0)
    return ""


def _alive() -> dict[str, dict]:
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _names(nodes: Iterable[dict]) -> str:
    return ", ".join(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in nodes)


def keep_logs(session_logs: Path, target: Path, console: Console) -> None:
    """Copy what the workers of a Ray session printed to `target`, and say so."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(session_logs.glob("worker-*")):
        if path.is_file() and path.stat().st_size:
            shutil.copy(path, target)
    console.print(f"[red]the run failed[/red]; the logs of its processes are kept in {target}", soft_wrap=True)


def _leave(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


def _quiet() -> None:
    """Leave the driver's terminal to the progress lines: the host logs each phase of each step at level INFO."""
    import warnings

    from openrlhf.utils import logging_utils
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="Tip: In future versions of Ray")
    if logging_utils._default_handler is not None:
        logging_utils._default_handler.setLevel(logging.WARNING)
