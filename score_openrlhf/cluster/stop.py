"""SIGUSR1 in; the end of the run after its current step, with a checkpoint, out.

A batch system sends the signal before the time limit (`launch/slurm/`), a user by `kill -USR1 PID`. Exit status 75
then says that the same command has more to do (`EX_TEMPFAIL` of sysexits.h).
"""

from __future__ import annotations

import signal

from score_openrlhf.errors import STOPPED, RunError


class Stopped(RunError):
    """The run ended early because it was asked to; what it had done is in a checkpoint."""

    status = STOPPED


class StopRequest:
    """Whether the run was asked to end after its current step."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        """Take SIGUSR1 from now on; without this it would end the process at once."""
        signal.signal(signal.SIGUSR1, self._take)

    def _take(self, signum: int, frame: object) -> None:
        self.requested = True


stop_request = StopRequest()
