"""Problems in; those whose gold answer nothing can be graded against, out, asked in grading processes and remembered.

Thousands of golds take seconds; what was found is kept by the content of the rows and of the grader's own code.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from score_openrlhf.config.schema import Config
from score_openrlhf.files import write_atomically
from score_openrlhf.preflight.rows import Advance, BadRow
from score_openrlhf.tasks import make_task
from score_openrlhf.tasks.base import Problem, Task
from score_openrlhf.tasks.pool import GradingPool

MAX_PROCESSES = 8
REMEMBERED_FROM = 500  # rows; fewer are asked again


def gold_faults(problems: Sequence[Problem], cfg: Config, advance: Advance = lambda rows: None) -> list[BadRow]:
    """The problems whose gold the task cannot use; none where an own reward function grades or the task never asks."""
    asks = type(make_task(cfg.task.name)).gold_fault is not Task.gold_fault
    if cfg.task.reward_func is not None or not asks or not problems:
        advance(len(problems))
        return []
    path = _cache_folder() / f"{_digest(problems, cfg)}.json"
    if path.is_file():
        advance(len(problems))
        return [BadRow(problems[number], reason) for number, reason in json.loads(path.read_text())]
    found: list[tuple[int, str]] = []
    pool = GradingPool(
        cfg.task.name,
        processes=min(MAX_PROCESSES, os.cpu_count() or 1),
        timeout_seconds=cfg.task.grade_timeout_seconds,
        max_answer_chars=cfg.task.max_answer_chars,
    )
    with pool:
        waiting = [pool.gold_fault(problem.answer, problem.text) for problem in problems]
        for number, future in enumerate(waiting):
            reason = future.result()
            if reason is not None:
                found.append((number, reason))
            advance(1)
    if len(problems) >= REMEMBERED_FROM:
        with suppress(OSError):  # a home that is read-only or full costs the seconds again, nothing else
            write_atomically(path, json.dumps(found))
    return [BadRow(problems[number], reason) for number, reason in found]


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "score_openrlhf", "golds")


def _digest(problems: Sequence[Problem], cfg: Config) -> str:
    """Of the rows, the task's settings and code; another math-verify is another grader."""
    from importlib.metadata import PackageNotFoundError, version

    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.text, problem.answer]).encode())
    own = Path(cfg.task.name.rpartition(":")[0])
    code = sorted(Path(__file__).parents[1].glob("tasks/**/*.py")) + ([own] if own.suffix == ".py" else [])
    for file in code:
        digest.update(file.read_bytes())
    with suppress(PackageNotFoundError):  # the grading processes say so
        digest.update(version("math-verify").encode())
    digest.update(f"{cfg.task.name} {cfg.task.grade_timeout_seconds} {cfg.task.max_answer_chars}".encode())
    return digest.hexdigest()
