"""Starts of phases in; the seconds each phase took, in one step and in the whole run, out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds by phase; two policies that learn at the same time may add at once."""

    step: dict[str, float] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, phase: str, start: float) -> None:
        """A phase that began at time.perf_counter() `start` is over."""
        seconds = time.perf_counter() - start
        with self.lock:
            self.step[phase] = self.step.get(phase, 0.0) + seconds
            self.total[phase] = self.total.get(phase, 0.0) + seconds

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """Phases of the block run side by side: `step` has each one's own seconds, `total` shares the block's.

        So the phases of a run add up to its wall time, whatever ran beside what.
        """
        start, step, total = time.perf_counter(), dict(self.step), dict(self.total)
        yield
        own = {phase: seconds - step.get(phase, 0.0) for phase, seconds in self.step.items()}
        share = (time.perf_counter() - start) / (sum(own.values()) or 1.0)
        self.total = total | {phase: total.get(phase, 0.0) + seconds * share for phase, seconds in own.items()}
