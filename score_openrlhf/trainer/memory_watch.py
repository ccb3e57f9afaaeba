"""The driver's process tree in; peak memory of the run and of each kind of process out."""

from __future__ import annotations

import re
import threading

import psutil


class MemoryWatch:
    """Samples the proportional memory of the driver and everything it started, every `interval` seconds."""

    def __init__(self, interval: float = 5.0):
        self.interval = interval
        self.peak_bytes = 0
        self.peak_by_process: dict[str, int] = {}  # largest single process of each kind, bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.sample()
            self._stop.wait(self.interval)

    def sample(self) -> None:
        """One look at every process; a process that ends meanwhile is left out."""
        me = psutil.Process()
        total = 0
        for process in [me, *me.children(recursive=True)]:
            try:
                # PSS counts pages that processes share once in all; RSS would count them once each
                size = process.memory_full_info().pss
                kind = _kind(process, me.pid)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            total += size
            self.peak_by_process[kind] = max(self.peak_by_process.get(kind, 0), size)
        self.peak_bytes = max(self.peak_bytes, total)


def _kind(process: psutil.Process, driver_pid: int) -> str:
    if process.pid == driver_pid:
        return "driver"
    command = process.cmdline()
    title = command[0] if command else process.name()
    match = re.match(r"ray::(\w+)", title)
    if match:
        return match.group(1).lstrip("_")
    if title.startswith("VLLM"):
        return "vllm engine core"
    for known in ("raylet", "gcs_server"):
        if known in title:
            return known
    return "other"
