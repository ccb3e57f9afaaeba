"""A configuration -> nothing, or one ConfigError with every problem; warnings for what is allowed but doubtful."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from score_openrlhf.config.checks import (
    check_batches,
    check_engines,
    check_host_settings,
    check_lists,
    check_method,
    check_objective,
    check_placement,
    check_sequence_budget,
    check_stages,
)
from score_openrlhf.config.derive import guidance_start, has_guidance, method_of, runs_stage
from score_openrlhf.config.errors import ConfigError
from score_openrlhf.config.keys import keys, value_of
from score_openrlhf.config.machine import missing_packages
from score_openrlhf.config.methods import SOLVER
from score_openrlhf.config.model_code import untrusted_code
from score_openrlhf.config.paths import contexts, paths
from score_openrlhf.config.policies import learning_specs, spec_of
from score_openrlhf.config.schema import Config
from score_openrlhf.config.sizes import sizes

__all__ = ["method_of", "validate", "warnings"]

CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    check_method,
    check_stages,
    check_objective,
    check_lists,
    check_host_settings,
    check_sequence_budget,
    check_placement,
    check_engines,
    check_batches,
)


def validate(cfg: Config, *, check_paths: bool = True) -> None:
    """Check every range and every rule across keys; this machine's files and packages only if `check_paths` says so.

    Raises ConfigError that names each offending value, its limit and the fix.
    """
    problems = list(ranges(cfg))
    if not problems:  # the rules across keys compute with values that the ranges keep sound
        problems.extend(problem for check in CHECKS for problem in check(cfg))
        problems.extend(contexts(cfg))
    if check_paths:
        problems.extend(missing_packages(cfg))
        problems.extend(paths(cfg))
        problems.extend(untrusted_code(cfg))
    if problems:
        raise ConfigError(problems)


def ranges(cfg: Config) -> Iterator[str]:
    """Values outside the range or the choices their field declares in the schema."""
    for key in keys().values():
        value = value_of(cfg, key.name)
        if value is None:
            continue
        limits = key.limits
        if "choices" in limits:
            if value not in limits["choices"]:
                yield f"{key.name} is {value!r}: choose one of {', '.join(map(str, limits['choices']))}"
            continue
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key.name} is {value}: give a finite number"
            continue
        failed = [
            f"{words} {limits[name]}"
            for name, words, holds in (
                ("ge", "at least", lambda limit, value=value: value >= limit),
                ("gt", "more than", lambda limit, value=value: value > limit),
                ("le", "at most", lambda limit, value=value: value <= limit),
                ("lt", "less than", lambda limit, value=value: value < limit),
            )
            if name in limits and not holds(limits[name])
        ]
        if failed:
            yield f"{key.name} is {value}: it must be {' and '.join(failed)}"


def warnings(cfg: Config) -> list[str]:
    """What a valid configuration may not mean as it stands, one sentence each."""
    found = []
    for key in ("baseline", "baseline_t2"):
        kind = getattr(cfg.solver, key)
        if cfg.rollout.n_samples_per_prompt == 1 and kind == "leave_one_out" and spec_of(cfg, SOLVER).trains:
            found.append(
                f"rollout.n_samples_per_prompt is 1: solver.{key} leave_one_out has no other attempt of the problem "
                "and falls back to the other problems of the batch; 2 or more attempts give a baseline per problem"
            )
        if cfg.critic.enable and kind != getattr(Config().solver, key):
            found.append(f"solver.{key} {kind} has no effect with a critic, whose values take its place")
    for stage, part in ((1, cfg.rollout.base_attempts_stage1), (2, cfg.rollout.base_attempts_stage2)):
        key = f"rollout.base_attempts_stage{stage} {part}"
        if part > 0 and round(part * cfg.rollout.batch_size) == 0:
            found.append(f"{key} of rollout.batch_size {cfg.rollout.batch_size} problems is none: raise one of them")
        if part == 1 and runs_stage(cfg, stage) and spec_of(cfg, SOLVER).trains:
            what = "nothing holds turn 1 to the reference" if stage == 1 else "turn 1 is not trained"
            found.append(f"{key} leaves no attempt of the solver's own in stage {'I' * stage}: {what}")
    if cfg.beta2_max is not None and not runs_stage(cfg, 1):
        found.append(f"beta2_max {cfg.beta2_max} has no effect: beta2 is stage I's, and the run has no step of it")
    if cfg.guidance_model_path and cfg.correction_model_path and cfg.guidance_model_path != cfg.correction_model_path:
        found.append(f"guidance_model_path {cfg.guidance_model_path} is used, correction_model_path is not")
    if not has_guidance(cfg) and (cfg.guidance_model_path or cfg.correction_model_path):
        found.append(f"method {method_of(cfg)} has no guidance model: {guidance_start(cfg)} is not loaded")
    for spec in learning_specs(cfg):
        if spec.trains:
            found.extend(_batch_warnings(cfg, spec.name))
    if cfg.actor.lr_warmup_ratio > 0 and cfg.actor.lr_scheduler == "constant":
        found.append("actor.lr_warmup_ratio has no effect with lr_scheduler constant: use constant_with_warmup")
    if cfg.ds.param_dtype == "fp16":
        found.append("ds.param_dtype fp16: DeepSpeed skips optimizer steps whose scaled loss overflows; prefer bf16")
    flash = "flash" in cfg.ds.attn_implementation
    if cfg.ds.param_dtype == "fp32" and flash:  # an error where torch is built for GPUs
        found.append("ds.attn_implementation flash_attention_2 has no fp32 kernels: use sdpa on a GPU")
    if (cfg.ds.packing_samples or cfg.train.dynamic_batch_enable) and not flash:
        found.append(
            f"ds.attn_implementation {cfg.ds.attn_implementation} with packed rows is slow and rounds differently: "
            "use flash_attention_2 on a GPU"
        )
    if cfg.rollout.schedule == "phased" and not cfg.vllm.enable_sleep:
        found.append("rollout.schedule phased saves memory only when engines sleep: set vllm.enable_sleep=true")
    if cfg.eval.temperature == 0 and cfg.eval.num_samples > 1:
        found.append(f"eval.temperature 0 is greedy: all eval.num_samples={cfg.eval.num_samples} samples are the same")
    return found


def _batch_warnings(cfg: Config, policy: str) -> Iterator[str]:
    size = sizes(cfg, policy)
    padding = size.padded_rows - size.trajectories_per_step
    if padding * 4 > size.trajectories_per_step:
        yield (
            f"{policy}: {size.trajectories_per_step} trajectories a step are padded with {padding} empty rows to "
            f"{size.padded_rows}, a multiple of train.batch_size {size.train_batch_size} and of {size.ranks} ranks x "
            f"rollout.micro_batch_size {cfg.rollout.micro_batch_size}: choose sizes that divide them"
        )
    if size.num_updates == 0:
        yield f"{policy}: no step of the run updates it (warm-up or update_every is longer than the run)"
