"""OpenRLHF's group of ranks in; the same group, that two threads may call, out."""

from __future__ import annotations

import threading
from typing import Any

from openrlhf.trainer.ray.launcher import RayActorGroup


class ActorGroup(RayActorGroup):
    """A call reaches all ranks before the next one reaches any.

    A reference that serves both policies is asked by both at the same time. Ray runs a rank's calls in the order in
    which they come; ranks that had two calls in different orders would gather parameters for different passes.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._one_call = threading.Lock()
        super().__init__(*args, **kwargs)

    def async_run_method(self, method_name: str, *args: Any, **kwargs: Any) -> list[Any]:
        with self._one_call:
            return super().async_run_method(method_name, *args, **kwargs)

    def async_run_method_batch(self, method_name: str, **kwargs: Any) -> list[Any]:
        with self._one_call:
            return super().async_run_method_batch(method_name, **kwargs)
