"""Engines of a finished run in; the same engines with the weights of the next run in this process out.

    with engine_pool.shared_session(num_gpus=6):
        main(["playground", "configs/playground.yaml"])  # starts engines
        main(["evaluate", "runs/quickstart"])  # loads other weights into them

Starting an engine takes longer than a small model's evaluation. Only engines whose every option and whose model's
shape and stop ids are the same are used again, and only where the seed of each request alone says what is
sampled: a run in a shared session samples what it samples in its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from openrlhf.utils.utils import get_tokenizer
from ray.util.placement_group import PlacementGroup

from score_openrlhf import platform
from score_openrlhf.cluster import reservation

# What an engine has read of a model's folder beside its weights. It is given token ids and gives token ids, so of the
# tokenizer the end of a sequence is all that matters.
READ_AT_START = ("config.json", "generation_config.json")
# Keys in them that say nothing about the model.
NOISE = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache")


@dataclass
class Kept:
    """A set of engines that outlives its run."""

    kind: str
    handles: list[Any]
    groups: list[PlacementGroup]
    lent: bool = True


class EnginePool:
    """The engines of a shared session."""

    def __init__(self) -> None:
        self._kept: list[Kept] = []

    def take(self, kind: str, model_path: str) -> list[Any] | None:
        """Idle engines of this kind, holding `model_path` now; None if there are none.

        Those of other kinds are then ended, since the new ones need their place.
        """
        found = next((kept for kept in self._kept if kept.kind == kind and not kept.lent), None)
        if found is None:
            self.drop_idle()
            return None
        ray.get([engine.hold.remote(model_path) for engine in found.handles])
        found.lent = True
        return found.handles

    def add(self, kind: str, handles: list[Any], groups: list[PlacementGroup]) -> None:
        """Keep new engines after the run that started them."""
        self._kept.append(Kept(kind, handles, groups))

    def drop_idle(self) -> None:
        """End the engines that the current run does not use: they would count as its memory."""
        for kept in self._kept:
            if not kept.lent:
                reservation.release(kept.groups)
        self._kept = [kept for kept in self._kept if kept.lent]

    def end_run(self, *, whole: bool) -> None:
        """Give back what a run reserved, which ends its roles; only the engines of one that came to its end stay.

        After a failure or an interruption nobody knows what an engine is still at.
        """
        if not whole:
            self._kept = [kept for kept in self._kept if not kept.lent]
        ray.get([engine.end_rollout.remote() for kept in self._kept if kept.lent for engine in kept.handles])
        for kept in self._kept:
            kept.lent = False
        mine = {group.id for kept in self._kept for group in kept.groups}
        reservation.release([group for group in reservation.reserved if group.id not in mine])


pool: EnginePool | None = None


@contextmanager
def shared_session(num_gpus: int) -> Iterator[None]:
    """One Ray session for the runs of the block, which then start none; `num_gpus` is enough for each of them."""
    global pool
    platform.start_ray(num_gpus, log_to_driver=False, logging_level=logging.ERROR)
    reservation.reserved.clear()  # what is left there is of sessions that have ended
    pool = EnginePool()
    try:
        yield
    finally:
        pool = None
        ray.shutdown()


def kind_of(model_path: str, num_engines: int, options: dict[str, Any]) -> str:
    """What two sets of engines must share for one to stand in for the other."""
    shape = {name: _meaning(Path(model_path, name)) for name in READ_AT_START}
    return json.dumps([num_engines, options, shape, get_tokenizer(model_path, None, "left").eos_token_id])


def _meaning(path: Path) -> Any:
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    return {key: value for key, value in sorted(content.items()) if key not in NOISE}
