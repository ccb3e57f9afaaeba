"""A configuration and a step number in; the stage and the number of steps out."""

from __future__ import annotations

from score_openrlhf.config.schema import Config


def num_steps(cfg: Config) -> int:
    """Steps of the whole run."""
    steps = cfg.stage2_steps + (cfg.stage1_steps if cfg.start_stage == 1 else 0)
    return min(steps, cfg.max_steps) if cfg.max_steps else steps


def stage_of(cfg: Config, step: int) -> int:
    """The stage of step number `step`, counted from 0."""
    return 1 if cfg.start_stage == 1 and step < cfg.stage1_steps else 2
