"""A validated configuration in; a trained pair of models, their files and a summary out."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from score_openrlhf.cluster.placement import place
from score_openrlhf.cluster.session import ray_session
from score_openrlhf.config.compose import Resolved, load_config, save
from score_openrlhf.config.derive import differences, guidance_start, method, method_of
from score_openrlhf.config.evaluation import changes, evaluation_settings
from score_openrlhf.config.policies import learning_specs
from score_openrlhf.config.schema import Config
from score_openrlhf.console.progress import Progress
from score_openrlhf.errors import UserError, faults_logged, finish, printable
from score_openrlhf.evaluation.results import within_training
from score_openrlhf.files import write_atomically
from score_openrlhf.policies.build import build
from score_openrlhf.preflight.ask import ask
from score_openrlhf.preflight.hub import offline_without_a_hub
from score_openrlhf.preflight.inputs import load_problems, templates_of
from score_openrlhf.rollout.chat import Prompting
from score_openrlhf.tasks import make_task
from score_openrlhf.tasks.base import Problem
from score_openrlhf.tasks.loading import content_digest
from score_openrlhf.trainer import checkpoint
from score_openrlhf.trainer.memory_watch import MemoryWatch
from score_openrlhf.trainer.runlog import RunLog, set_aside
from score_openrlhf.trainer.score import SCoReTrainer
from score_openrlhf.trainer.stages import Stages

SUMMARY = "summary.json"
BEFORE, AFTER = "eval_before", "eval_after"


@dataclass
class Prepared:
    """A run that has been checked as far as it can be without starting anything."""

    resolved: Resolved
    output_dir: Path
    checkpoint_root: Path
    templates: Prompting
    train_problems: list[Problem]
    eval_problems: list[Problem]
    evaluation_settings: dict[str, Any]  # what its evaluations measure
    saved: checkpoint.Checkpoint | None  # where it goes on from
    num_steps: int  # of the whole run, as far as is known before it goes on
    finished: dict[str, Any] | None  # the summary of a run that has nothing left to do


def prepare(resolved: Resolved, console: Console, *, starts: bool = True) -> Prepared:
    """Load and check what the run needs; raises UserError for what a user can mend. Starts nothing.

    `starts`: the run follows, so an earlier one that it does not go on from is put aside; else nothing is written.
    """
    cfg = resolved.cfg
    output_dir = Path(cfg.output_dir).absolute()
    task = make_task(cfg.task.name)
    templates = templates_of(cfg, task)
    if said := offline_without_a_hub(cfg.model_path, guidance_start(cfg), cfg.data.train, cfg.data.eval):
        console.print(f"note: {said}", highlight=False, markup=False, soft_wrap=True)
    problems: dict[str, list[Problem]] = {}
    faults: list[str] = []
    for part in ("train", "eval") if cfg.data.eval else ("train",):
        try:
            problems[f"data.{part}"] = load_problems(task, cfg, part)
            for line in getattr(problems[f"data.{part}"], "said", ()):
                console.print(f"data.{part}: {printable(line)}", highlight=False, soft_wrap=True, markup=False)
        except UserError as error:
            faults.append(str(error))
    root = Path(cfg.checkpoint_path).absolute() if cfg.checkpoint_path else output_dir / "checkpoints"
    names = [spec.name for spec in learning_specs(cfg)]
    if starts and not cfg.resume and (output_dir / "metrics.jsonl").is_file():
        console.print(f"the earlier run is kept as {set_aside(output_dir)}", highlight=False, soft_wrap=True)
    if cfg.resume:
        _check_same_run(resolved, output_dir / "config.yaml", console)
    saved = _newest(cfg, root, names, console) if cfg.resume else None
    usable = ask(
        cfg, templates, problems, console, checkpoint=(saved.path, saved.state) if saved else None, faults=faults
    )
    train_problems, eval_problems = usable["data.train"], usable.get("data.eval", [])
    if saved:
        _check_same_data(train_problems, output_dir / DATA)
    stages = Stages(cfg)
    if saved:
        stages.restore(saved.state["stages"], saved.step)  # stage I may have ended early
    settings = evaluation_settings(cfg, eval_problems, templates)
    finished = _finished(output_dir, saved, stages.num_steps)
    if finished and eval_problems and cfg.eval.before_and_after:
        changed = [line for name in (BEFORE, AFTER) for line in _measured_otherwise(output_dir, name, settings)]
        if changed:
            console.print(f"finished already at step {finished['steps']}", highlight=False)
            finished = None  # nothing is left to train; before and after are
    return Prepared(
        resolved=resolved,
        output_dir=output_dir,
        checkpoint_root=root,
        templates=templates,
        train_problems=train_problems,
        eval_problems=eval_problems,
        evaluation_settings=settings,
        saved=saved,
        num_steps=stages.num_steps,
        finished=finished,
    )


def _newest(cfg: Config, root: Path, names: list[str], console: Console) -> checkpoint.Checkpoint | None:
    def say(line: str) -> None:
        console.print(f"[yellow]note:[/yellow] {escape(line)}", highlight=False, soft_wrap=True)

    with console.status(f"checking the checkpoints under {escape(str(root))}"):
        return checkpoint.newest(root, names, full=cfg.ckpt.verify == "full", say=say)


def trainer_class(cfg: Config) -> type[SCoReTrainer]:
    """The trainer that the configured method names."""
    module, _, name = method(cfg).trainer.partition(":")
    return getattr(importlib.import_module(module), name)


def _finished(output_dir: Path, saved: checkpoint.Checkpoint | None, num_steps: int) -> dict[str, Any] | None:
    """The summary of a run that has made all its steps; one of fewer steps is of the run before it was made longer."""
    if saved is None or saved.step < num_steps or not (output_dir / SUMMARY).is_file():
        return None
    summary = json.loads((output_dir / SUMMARY).read_text())
    return summary if summary["steps"] == saved.step else None


def _measured_otherwise(output_dir: Path, name: str, settings: dict[str, Any]) -> list[str]:
    """What differs in the settings of a kept evaluation, in words; empty where nothing does, or none is kept."""
    path = output_dir / f"{name}.json"
    if not path.is_file():
        return []
    kept = json.loads(path.read_text()).get("settings")
    return ["it does not say what it measured"] if kept is None else changes(kept, settings)


def train(prepared: Prepared, console: Console) -> dict[str, Any]:
    """Train; returns what summary.json holds. Starts Ray and ends it."""
    if prepared.finished:
        console.print(
            f"finished already at step {prepared.finished['steps']}; raise max_steps or stage2_steps to go on"
        )
        return prepared.finished
    progress = Progress(prepared.num_steps, prepared.saved.step if prepared.saved else 0, console)
    with faults_logged(prepared.output_dir / "logs", progress.where):
        try:
            return _train(prepared, console, progress)
        finally:
            finish("closing the progress bar", progress.close)


def _train(prepared: Prepared, console: Console, progress: Progress) -> dict[str, Any]:
    cfg, output_dir, saved = prepared.resolved.cfg, prepared.output_dir, prepared.saved
    started = time.perf_counter()
    output_dir.mkdir(parents=True, exist_ok=True)
    save(prepared.resolved, str(output_dir / "config.yaml"))
    digests = {
        "data.train": content_digest(prepared.train_problems),
        "data.eval": content_digest(prepared.eval_problems),
    }
    write_atomically(output_dir / DATA, json.dumps(digests) + "\n")
    run_log = RunLog(cfg, output_dir, first_step=saved.step + 1 if saved else 0)
    if saved:
        console.print(
            f"going on from {saved.path} (step {saved.step} of {prepared.num_steps})", highlight=False, soft_wrap=True
        )

    session = ray_session(cfg, place(cfg).num_gpus, output_dir, console, where=progress.where)
    with session, MemoryWatch() as memory:
        console.print("starting engines, policies and references", highlight=False)
        start = time.perf_counter()
        roles = build(cfg, prepared.templates, resume_from=str(saved.path) if saved else None)
        startup = time.perf_counter() - start
        trainer = trainer_class(cfg)(
            cfg,
            roles,
            prepared.train_problems,
            prepared.eval_problems,
            run_log,
            progress,
            prepared.checkpoint_root,
            within_training(cfg),
            prepared.evaluation_settings,
        )
        try:
            trainer.clock.total["startup"] = startup
            # Engines hold the models that training starts from until a checkpoint's are sent to them.
            before = _evaluate_once(trainer, output_dir, BEFORE)
            if saved:
                trainer.resume(saved)
            else:
                trainer.prepare_base_attempts()
            if before:
                trainer.note_best(before, step=0)
            trainer.fit()
            after = _evaluate_once(trainer, output_dir, AFTER)
            if after and trainer.note_best(after):
                trainer.keep_best()
            paths = _export(trainer, output_dir)
        finally:
            finish("closing the run's trackers", run_log.close)
        memory.sample()
    summary = {
        "method": method_of(cfg),
        "steps": trainer.step,
        "before": before,
        "after": after,
        "best": _where(trainer),
        "evaluation_settings": prepared.evaluation_settings if after else None,
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


DATA = "data.json"  # a digest of the content of the problems beside config.yaml, which names their files


def _check_same_data(problems: Sequence[Problem], kept: Path) -> None:
    """Raises UserError if the run in the folder was trained on other rows under the same name."""
    if not kept.is_file():
        return
    before, now = json.loads(kept.read_text())["data.train"], content_digest(problems)
    if before != now:
        raise UserError(
            f"{kept.parent} holds a run on other training rows than data.train has now (content {before}, now {now}); "
            "restore the file, use another output_dir, or resume=false to keep that run aside and start anew"
        )


def _check_same_run(resolved: Resolved, kept: Path, console: Console) -> None:
    """Raises UserError if the run in the folder is another one; says which other settings differ from its own."""
    if not kept.is_file():
        return
    changed = differences(load_config(str(kept), []).cfg, resolved.cfg)
    other = {key: pair for key, pair in changed.items() if key in IDENTITY}
    if other:
        raise UserError(
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
    settings = trainer.evaluation_settings
    wanted = {"step": trainer.step, "num_problems": len(trainer.eval_problems), "settings": settings}
    if path.is_file():
        kept = json.loads(path.read_text())
        changed = _measured_otherwise(output_dir, name, settings)
        if not changed and kept["step"] == trainer.step:
            return kept["metrics"]
        if changed:
            trainer.progress.note(f"{name} is made anew: {'; '.join(changed)}")
    metrics = trainer.evaluate(name)
    write_atomically(path, json.dumps({**wanted, "metrics": metrics}, indent=1) + "\n")
    return metrics


def _where(trainer: SCoReTrainer) -> dict[str, Any] | None:
    """The best evaluated pair, with the folder of its checkpoint; none is needed of the start, step 0."""
    if trainer.best is None:
        return None
    folder = trainer.checkpoint_root / f"step_{trainer.best['step']}"
    return {**trainer.best, "checkpoint": str(folder) if folder.is_dir() else None}


def _export(trainer: SCoReTrainer, output_dir: Path) -> dict[str, str | None]:
    """Write the models in Hugging Face form; returns where they lie."""
    paths: dict[str, str | None] = {"solver_path": None, "guidance_path": None}
    if trainer.cfg.ckpt.save_hf:
        start = time.perf_counter()
        trainer.progress.current = "the export"
        for policy in trainer.roles.policies:
            policy.export(str(output_dir / policy.name))
            paths[f"{policy.name}_path"] = str(output_dir / policy.name)
        trainer.clock.add("export", start)
    return paths
