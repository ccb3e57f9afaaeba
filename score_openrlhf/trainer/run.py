"""A validated configuration in; a trained pair of models, their files and a summary out."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf.utils.utils import get_tokenizer
from rich.console import Console

from score_openrlhf.config.compose import Resolved, load_config, save
from score_openrlhf.config.derive import differences, method_of
from score_openrlhf.config.schema import Config
from score_openrlhf.config.stages import num_steps
from score_openrlhf.policies.build import build
from score_openrlhf.policies.placement import guidance_path, place
from score_openrlhf.report.progress import Progress
from score_openrlhf.rollout.prompts import GuidancePrompts, SolverPrompts
from score_openrlhf.tasks import make_task
from score_openrlhf.tasks.base import Problem, Task, Templates
from score_openrlhf.trainer import checkpoint
from score_openrlhf.trainer.memory import MemoryWatch
from score_openrlhf.trainer.rl_guided import RLGuidedSCoReTrainer
from score_openrlhf.trainer.runlog import RunLog, set_aside, write_atomically
from score_openrlhf.trainer.score import SCoReTrainer, Summarise
from score_openrlhf.trainer.session import ray_session

SUMMARY = "summary.json"
BEFORE, AFTER = "eval_before", "eval_after"


@dataclass
class Prepared:
    """A run that has been checked as far as it can be without starting anything."""

    resolved: Resolved
    output_dir: Path
    checkpoint_root: Path
    templates: Templates
    train_problems: list[Problem]
    eval_problems: list[Problem]
    saved: checkpoint.Checkpoint | None  # where it goes on from
    finished: dict[str, Any] | None  # the summary of a run that has nothing left to do


def prepare(resolved: Resolved, console: Console) -> Prepared:
    """Load and check what the run needs; raises ValueError for what a user can mend. Starts nothing."""
    cfg = resolved.cfg
    output_dir = Path(cfg.output_dir).absolute()
    task = make_task(cfg.task.name)
    templates = templates_of(cfg, task)
    train_problems = load_problems(task, cfg, "train")
    eval_problems = load_problems(task, cfg, "eval") if cfg.data.eval else []
    check_prompts(cfg, templates)
    root = Path(cfg.checkpoint_path).absolute() if cfg.checkpoint_path else output_dir / "checkpoints"
    names = ["solver"] + (["guidance"] if method_of(cfg) == "rl_guided_score" else [])
    if not cfg.resume and (output_dir / "metrics.jsonl").is_file():
        console.print(f"the earlier run is kept as {set_aside(output_dir)}", highlight=False, soft_wrap=True)
    if cfg.resume:
        _check_same_run(resolved, output_dir / "config.yaml", console)
    saved = checkpoint.newest(root, names) if cfg.resume else None
    finished = None
    if saved and saved.step >= num_steps(cfg) and (output_dir / SUMMARY).is_file():
        finished = json.loads((output_dir / SUMMARY).read_text())
    return Prepared(resolved, output_dir, root, templates, train_problems, eval_problems, saved, finished)


def train(prepared: Prepared, console: Console, summarise: Summarise | None = None) -> dict[str, Any]:
    """Train; returns what summary.json holds. Starts Ray and ends it.

    `summarise` makes the intervals and hint quality of an evaluation; it is passed in since evaluation/ imports this.
    """
    cfg, output_dir, saved = prepared.resolved.cfg, prepared.output_dir, prepared.saved
    started = time.perf_counter()
    if prepared.finished:
        console.print(
            f"finished already at step {prepared.finished['steps']}; raise max_steps or stage2_steps to go on"
        )
        return prepared.finished
    output_dir.mkdir(parents=True, exist_ok=True)
    save(prepared.resolved, str(output_dir / "config.yaml"))
    run_log = RunLog(cfg, output_dir, first_step=saved.step + 1 if saved else 0)
    if saved:
        console.print(f"going on from {saved.path} (step {saved.step} of {num_steps(cfg)})", highlight=False)

    progress = Progress(num_steps(cfg), saved.step if saved else 0, console)
    session = ray_session(cfg, place(cfg).num_gpus, output_dir, console, where=progress.where)
    with closing(progress), session, MemoryWatch() as memory:
        console.print("starting engines, policies and references", highlight=False)
        start = time.perf_counter()
        roles = build(cfg, prepared.templates, resume_from=str(saved.path) if saved else None)
        startup = time.perf_counter() - start
        trainer_class = RLGuidedSCoReTrainer if roles.guidance else SCoReTrainer
        trainer = trainer_class(
            cfg,
            roles,
            prepared.train_problems,
            prepared.eval_problems,
            run_log,
            progress,
            prepared.checkpoint_root,
            summarise,
        )
        try:
            if saved:
                trainer.resume(saved)
            trainer.clock.total["startup"] = trainer.clock.total.get("startup", 0.0) + startup
            before = _evaluate_once(trainer, output_dir, BEFORE)
            trainer.fit()
            after = _evaluate_once(trainer, output_dir, AFTER)
            if after:
                trainer.note_best(after)
            paths = _export(trainer, output_dir)
        finally:
            run_log.close()
        memory.sample()
    summary = {
        "method": method_of(cfg),
        "steps": trainer.step,
        "before": before,
        "after": after,
        "best": trainer.best,
        "wall_seconds": trainer.seconds_before + time.perf_counter() - started,
        "seconds_to_first_update": trainer.first_update - started if trainer.first_update else None,
        "seconds_by_phase": trainer.clock.total,
        "peak_memory_gib": memory.peak_bytes / 2**30,
        "peak_memory_gib_by_process": {k: v / 2**30 for k, v in sorted(memory.peak_by_process.items())},
        **paths,
    }
    write_atomically(output_dir / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


# What a run that goes on must share with the one it goes on from: its files would be of two runs otherwise.
IDENTITY = ("method", "model_path", "guidance_model_path", "correction_model_path", "data.train", "seed", "task.name")


def _check_same_run(resolved: Resolved, kept: Path, console: Console) -> None:
    """Raises ValueError if the run in the folder is another one; says which other settings differ from its own."""
    if not kept.is_file():
        return
    changed = differences(load_config(str(kept), []).cfg, resolved.cfg)
    other = {key: pair for key, pair in changed.items() if key in IDENTITY}
    if other:
        raise ValueError(
            f"{kept.parent} holds a run with "
            + ", ".join(f"{key}={old} (now {new})" for key, (old, new) in other.items())
            + "; use another output_dir, or resume=false to keep that run aside and start anew"
        )
    for key, (old, new) in changed.items():
        console.print(f"  {key} was {old} and is {new} from here on", highlight=False)


def _evaluate_once(trainer: SCoReTrainer, output_dir: Path, name: str) -> dict[str, float]:
    """Evaluate, or read what an interrupted run had evaluated already."""
    if not trainer.eval_problems or not trainer.cfg.eval.before_and_after:
        return {}
    path = output_dir / f"{name}.json"
    wanted = {"step": trainer.step, "num_problems": len(trainer.eval_problems)}
    if path.is_file():
        kept = json.loads(path.read_text())
        if name == BEFORE or kept["step"] == wanted["step"]:
            return kept["metrics"]
    metrics = trainer.evaluate(name)
    write_atomically(path, json.dumps({**wanted, "metrics": metrics}, indent=1) + "\n")
    return metrics


def _export(trainer: SCoReTrainer, output_dir: Path) -> dict[str, str | None]:
    """Write the models in Hugging Face form; returns where they lie."""
    paths: dict[str, str | None] = {"solver_path": None, "guidance_path": None}
    if trainer.cfg.ckpt.save_hf:
        start = time.perf_counter()
        for policy in trainer.roles.policies:
            policy.export(str(output_dir / policy.name))
            paths[f"{policy.name}_path"] = str(output_dir / policy.name)
        trainer.clock.add("export", start)
    return paths


def load_problems(task: Task, cfg: Config, part: str) -> list[Problem]:
    """The training or held-out problems of the configuration."""
    training = part == "train"
    source = cfg.data.train if training else cfg.data.eval
    if source is None:
        raise ValueError(f"data.{part} is not set; name a .jsonl, .json or .parquet file or a hub dataset")
    return task.load(
        source,
        split=cfg.data.train_split if training else cfg.data.eval_split,
        problem_key=cfg.data.problem_key,
        answer_key=cfg.data.answer_key,
        limit=cfg.data.max_train_problems if training else cfg.data.max_eval_problems,
    )


def templates_of(cfg: Config, task: Task) -> Templates:
    """The task's templates with what the configuration replaces."""
    import dataclasses

    own = {key: value for key, value in dataclasses.asdict(cfg.templates).items() if value is not None}
    return dataclasses.replace(task.templates, **own)


def check_prompts(cfg: Config, templates: Templates) -> None:
    """Raises ChatTemplateError before anything is started if a chat template cannot carry the dialogue."""
    SolverPrompts(get_tokenizer(cfg.model_path, None, "left"), templates)
    hints = guidance_path(cfg)
    if hints is not None:
        GuidancePrompts(get_tokenizer(hints, None, "left"), templates)
