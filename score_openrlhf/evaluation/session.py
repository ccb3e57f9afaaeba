"""A configuration in; both models' engines, running for the length of a block, out. Nothing here trains."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from openrlhf.utils.utils import get_tokenizer
from rich.console import Console

from score_openrlhf import platform
from score_openrlhf.cluster.session import ray_session
from score_openrlhf.config.compose import Resolved
from score_openrlhf.config.derive import guidance_start, has_guidance
from score_openrlhf.config.errors import ConfigError
from score_openrlhf.config.methods import GUIDANCE, SOLVER
from score_openrlhf.config.model_code import untrusted_code
from score_openrlhf.config.paths import paths
from score_openrlhf.config.schema import Config
from score_openrlhf.config.validate import ranges
from score_openrlhf.errors import faults_logged
from score_openrlhf.evaluation.runner import EvaluationRunner, make_runner
from score_openrlhf.policies.build import shared_group, start_engines
from score_openrlhf.preflight.ask import ask
from score_openrlhf.preflight.hub import offline_without_a_hub
from score_openrlhf.preflight.inputs import load_problems, templates_of
from score_openrlhf.rollout import executor
from score_openrlhf.tasks import make_task
from score_openrlhf.tasks.base import Problem, Task
from score_openrlhf.tasks.pool import GradingPool

MEMORY_FOR_TWO = 0.45  # of a GPU, for each of two engines on it


def sampling_config(resolved: Resolved, *, need_problems: bool) -> Config:
    """The configuration as sampling alone needs it: no policy is trained and no engine sleeps.

    Raises ConfigError with every value that sampling cannot work with.
    """
    cfg = copy.deepcopy(resolved.cfg)
    cfg.guidance_model_path = guidance_start(cfg) if has_guidance(cfg) else None
    cfg.method = "smart_score" if has_guidance(cfg) else "score"
    cfg.use_smart_corrections = cfg.train_guidance_model = False
    cfg.correction_model_path = None
    cfg.vllm.enable_sleep = False
    problems = list(ranges(cfg))
    if need_problems and not cfg.data.eval:
        problems.append("data.eval is not set: give the problems, --problems FILE or data.eval=FILE")
    for name, limit in (("attempt", cfg.rollout.attempt_max_tokens), ("revision", cfg.rollout.revision_max_tokens)):
        if limit >= cfg.data.max_len:
            problems.append(
                f"rollout.{name}_max_tokens {limit} leaves no room for the prompt in data.max_len {cfg.data.max_len}"
            )
    named = copy.deepcopy(cfg)
    named.data.eval = cfg.data.eval if need_problems else None
    named.data.train = named.data.eval or "none"  # there is no training: the same file, or no path at all
    problems += [problem for problem in paths(named) if not problem.startswith("data.train")]
    problems += untrusted_code(cfg)
    if problems:
        raise ConfigError(problems)
    return cfg


def problems_of(cfg: Config) -> list[Problem]:
    """The problems to evaluate; UserError names whatever of rows and models stops them."""
    console = Console(stderr=True)
    if said := offline_without_a_hub(cfg.model_path, cfg.guidance_model_path, cfg.data.eval):
        console.print(f"note: {said}", highlight=False, markup=False, soft_wrap=True)
    task = make_task(cfg.task.name)
    problems = {"data.eval": load_problems(task, cfg, "eval")}
    return ask(cfg, templates_of(cfg, task), problems, console)["data.eval"]


@contextmanager
def running_models(cfg: Config, output_dir: Path, console: Console) -> Iterator[EvaluationRunner]:
    """Start the engines (`cfg` from `sampling_config`) and end them with the block, whatever ends it.

    One group of engines serves both roles where they are the same model; on a machine with fewer GPUs than engines the
    two models share them.
    """
    task: Task = make_task(cfg.task.name)
    templates = templates_of(cfg, task)
    ask(cfg, templates, {}, console)
    guidance_path = cfg.guidance_model_path
    start = copy.deepcopy(cfg)
    if guidance_path == cfg.model_path:
        start.method = "score"  # nothing but the solver's engines
    # a line for each failed trajectory, with sampled text in it: here the causes are counted and shown at the end
    logging.getLogger(executor.__name__).setLevel(logging.ERROR)
    num_gpus, sharing = _gpus(start)
    doing = "the start-up"
    with faults_logged(output_dir / "logs", lambda: doing), ray_session(cfg, num_gpus, output_dir, console):
        if sharing:
            for section in (start.vllm, start.guidance_vllm):
                section.gpu_memory_utilization = min(start.vllm.gpu_memory_utilization, MEMORY_FOR_TWO)
            engines = start_engines(start, pg=shared_group(num_gpus), gpus_per_engine=MEMORY_FOR_TWO)
        else:
            engines = start_engines(start)
        solver, guidance = engines[SOLVER], engines.get(GUIDANCE)
        if guidance_path is not None and guidance is None:
            guidance = solver
        with GradingPool(
            cfg.task.name,
            processes=cfg.task.grader_processes,
            timeout_seconds=cfg.task.grade_timeout_seconds,
            max_answer_chars=cfg.task.max_answer_chars,
            reward_func=cfg.task.reward_func,
            reward_range=cfg.task.reward_range,
            unevaluated=cfg.task.unevaluated,
        ) as pool:
            handles = solver.handles + (guidance.handles if guidance and guidance is not solver else [])
            ray.get([handle.__ray_ready__.remote() for handle in handles])
            doing = "sampling"
            yield make_runner(
                task,
                templates,
                pool,
                (get_tokenizer(solver.model_path, None, "left"), solver.handles),
                (get_tokenizer(guidance.model_path, None, "left"), guidance.handles) if guidance else None,
            )


def _gpus(cfg: Config) -> tuple[int, bool]:
    """How many GPUs the engines take, and whether the two models share them."""
    solver = cfg.vllm.num_engines * cfg.vllm.tensor_parallel_size
    if not has_guidance(cfg):
        return solver, False
    engines = cfg.guidance_vllm.num_engines or cfg.vllm.num_engines
    guidance = engines * (cfg.guidance_vllm.tensor_parallel_size or cfg.vllm.tensor_parallel_size)
    if platform.is_cpu() or cfg.ray.address is not None:
        return solver + guidance, False
    import torch

    sharing = torch.cuda.device_count() < solver + guidance
    return (max(solver, guidance), True) if sharing else (solver + guidance, False)
