"""One request in, its reply out, by a process of its own that is killed if the reply is late."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START_SECONDS = 120.0  # imports only, but on a machine that is loading models at the same moment
CHUNK_BYTES = 65536


class ProcessDied(Exception):
    """A grading process ended, or could not start; the text is the cause."""


class NotTaken(ProcessDied):
    """A grading process ended before it read the request: the request is not the cause, and another may take it."""


class GradingProcess:
    """A running `score_openrlhf.tasks.worker`; not thread-safe, but `kill` may be called from any thread."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Starts the process and does not wait for it; OSError if the system cannot start one."""
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._child = subprocess.Popen(
            # -P: no module of the working directory may stand in for one of the standard library.
            [sys.executable, "-P", "-m", "score_openrlhf.tasks.worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # ctrl-C is for the program; it closes the pool, or its end does
        )
        self._received = b""
        assert self._child.stdin and self._child.stdout
        self._stdin, self._stdout = self._child.stdin, self._child.stdout
        for pipe in (self._stdin, self._stdout):
            os.set_blocking(pipe.fileno(), False)

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_ready(self) -> None:
        """Returns once requests are taken; ProcessDied with the cause if the task cannot be made or takes too long."""
        try:
            reply = self._exchange(b"", START_SECONDS)
        except TimeoutError as error:
            raise ProcessDied(f"it was not ready after {START_SECONDS:.0f} s") from error
        if "error" in reply:
            raise ProcessDied(reply["error"])

    def call(self, request: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        """The reply to `request`; TimeoutError if it is late, ProcessDied if none will come. `end` it after either."""
        deadline = time.monotonic() + timeout_seconds
        try:
            self._exchange(json.dumps(request).encode() + b"\n", timeout_seconds)  # "taken", before the work begins
        except ProcessDied as death:
            raise NotTaken(*death.args) from death
        return self._exchange(b"", deadline - time.monotonic())

    def kill(self) -> None:
        self._child.kill()

    def end(self) -> None:
        """Kills the process, waits until it is gone and closes its pipes."""
        self._child.kill()
        self._child.wait()
        self._stdin.close()
        self._stdout.close()

    def _exchange(self, unsent: bytes, timeout_seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_seconds
        stdin, stdout = self._stdin.fileno(), self._stdout.fileno()
        # poll, for select takes no descriptor above 1023 and a program with engines has those.
        with selectors.PollSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if unsent:
                selector.register(stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._received:
                seconds_left = deadline - time.monotonic()
                if seconds_left <= 0:
                    raise TimeoutError
                for key, _ in selector.select(seconds_left):
                    if key.fd == stdout:
                        self._receive(stdout)
                    else:
                        unsent = unsent[self._send(stdin, unsent) :]
                        if not unsent:
                            selector.unregister(stdin)
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def _send(self, stdin: int, unsent: bytes) -> int:
        try:
            return os.write(stdin, unsent[:CHUNK_BYTES])
        except BrokenPipeError as error:
            raise ProcessDied(self._cause()) from error

    def _receive(self, stdout: int) -> None:
        chunk = os.read(stdout, CHUNK_BYTES)
        if not chunk:
            raise ProcessDied(self._cause())
        self._received += chunk

    def _cause(self) -> str:
        code = self._child.wait()
        return f"the grading process ended with {'signal' if code < 0 else 'exit code'} {abs(code)}"
