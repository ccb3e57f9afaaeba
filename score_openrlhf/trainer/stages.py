"""A run's metrics in; the stage of the next step out: stage I ends after `stage1_steps`, or earlier on a metric."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from score_openrlhf.config.schema import Config
from score_openrlhf.errors import UserError


class Stages:
    """Which stage a step belongs to. Steps are counted from 0; a run that starts in stage II never was in stage I."""

    def __init__(self, cfg: Config):
        self.cfg = cfg
        self.switch_step = cfg.stage1_steps if cfg.start_stage == 1 else 0  # the first step of stage II
        self.window: list[float] = []  # the metric of the last steps of stage I

    @property
    def num_steps(self) -> int:
        """Steps of the whole run, as far as is known now."""
        steps = self.switch_step + self.cfg.stage2_steps
        return min(steps, self.cfg.max_steps) if self.cfg.max_steps else steps

    def stage(self, step: int) -> int:
        return 1 if step < self.switch_step else 2

    def observe(self, step: int, metrics: dict[str, Any]) -> bool:
        """Take note of a finished step; True if its metrics end stage I before `stage1_steps`.

        Raises UserError if the configured metric is not among the step's.
        """
        switch = self.cfg.stage_switch
        if switch.metric is None or self.stage(step) == 2:
            return False
        if switch.metric not in metrics:
            names = ", ".join(sorted(name for name, value in metrics.items() if isinstance(value, (int, float))))
            raise UserError(f"stage_switch.metric {switch.metric!r} is no metric of this run; there are {names}")
        if metrics[switch.metric] is not None:
            self.window = [*self.window, float(metrics[switch.metric])][-switch.window :]
        ends = len(self.window) == switch.window and fmean(self.window) >= switch.threshold
        if ends and step + 1 < self.switch_step:
            self.switch_step = step + 1
            return True
        return False

    def state(self) -> dict[str, Any]:
        return {"switch_step": self.switch_step, "window": self.window}

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Take over from a checkpoint of `step`; a switch that has happened stands, whatever is configured now."""
        self.window = list(state["window"])
        if state["switch_step"] <= step:
            self.switch_step = state["switch_step"]
