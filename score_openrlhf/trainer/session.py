"""A configuration in; a Ray session that ends with the block, whatever ends the block, out."""

from __future__ import annotations

import logging
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from rich.console import Console

from score_openrlhf import platform
from score_openrlhf.config.schema import Config


@contextmanager
def ray_session(cfg: Config, num_gpus: int, output_dir: Path, console: Console) -> Iterator[None]:
    """Start or join Ray for the block; on a failure keep the processes' logs in output_dir/logs and say so.

    The roles' own output goes to their log files, not between the lines of the driver.
    """
    _quiet()
    kwargs = platform.ray_init_kwargs(num_gpus=num_gpus, num_cpus=cfg.ray.num_cpus, address=cfg.ray.address)
    ray.init(**kwargs, log_to_driver=False, logging_level=logging.ERROR)
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    previous = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    except Exception:
        kept = keep_logs(logs, output_dir / "logs")
        console.print(f"[red]the run failed[/red]; the logs of its processes are kept in {kept}", soft_wrap=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
        ray.shutdown()


def keep_logs(session_logs: Path, target: Path) -> Path:
    """Copy what the workers of a Ray session printed to `target`; returns it."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(session_logs.glob("worker-*")):
        if path.is_file() and path.stat().st_size:
            shutil.copy(path, target)
    return target


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
