"""A configuration -> what follows from it: the method, the guidance model's start, the stages it runs."""

from __future__ import annotations

from typing import Any

from score_openrlhf.config.keys import keys, value_of
from score_openrlhf.config.methods import GUIDANCE, METHODS, Method
from score_openrlhf.config.schema import Config
from score_openrlhf.config.stages import num_steps, stage_of


def method_of(cfg: Config) -> str:
    """`score`, `smart_score` or `rl_guided_score`: `method` itself, or what the two flags say."""
    if cfg.method is not None:
        return cfg.method
    if cfg.train_guidance_model:
        return "rl_guided_score"
    return "smart_score" if cfg.use_smart_corrections else "score"


def method(cfg: Config) -> Method:
    """What the configured method trains, and with which models; all of them under a name that `validate` refuses."""
    return METHODS.get(method_of(cfg), METHODS["rl_guided_score"])


def differences(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """Keys of which two runs' configurations have another value, with both; `ray.*`, where a run runs, is no part."""
    pairs = {key: (value_of(before, key), value_of(now, key)) for key in keys() if not key.startswith("ray.")}
    pairs["method"] = (method_of(before), method_of(now))
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def has_guidance(cfg: Config) -> bool:
    """Whether a guidance model writes the hint."""
    return GUIDANCE in method(cfg).models


def guidance_start(cfg: Config) -> str | None:
    """The guidance model's starting model: its own path, else the frozen model's of smart_score, else the solver's."""
    return cfg.guidance_model_path or cfg.correction_model_path or cfg.model_path


def runs_stage(cfg: Config, stage: int) -> bool:
    """Whether the run has a step of `stage` (1 or 2), or may have one where a metric can end stage I early."""
    if stage == 2 and cfg.stage_switch.metric is not None and cfg.stage2_steps and num_steps(cfg) > 1:
        return True
    return any(stage_of(cfg, step) == stage for step in (0, num_steps(cfg) - 1) if 0 <= step < num_steps(cfg))


def trajectories_per_step(cfg: Config) -> int:
    """Problems x attempts per problem (N) x revisions per attempt (K)."""
    return cfg.rollout.batch_size * cfg.rollout.n_samples_per_prompt * cfg.guidance_samples
