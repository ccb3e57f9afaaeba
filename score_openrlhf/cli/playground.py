"""`score-openrlhf playground`: build the CPU-sized task, train both models on it, show what changed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from score_openrlhf import platform
from score_openrlhf.cli.train import add_config_arguments, complain, train_and_show
from score_openrlhf.config.compose import load_config
from score_openrlhf.config.schema import Config
from score_openrlhf.config.validate import validate


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "playground", help="build the CPU-sized task and train both models on it in minutes"
    )
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        resolved = load_config(args.config, args.overrides)
        build(resolved.cfg)
        validate(resolved.cfg)
    except ValueError as error:
        return complain(error)
    set_finished_run_aside(Path(resolved.cfg.output_dir))
    return train_and_show(resolved, as_json=args.json)


def build(cfg: Config) -> None:
    """Make the base model and the problems, or find them from an earlier call."""
    platform.start_fork_server()
    from rich.console import Console
    from transformers.utils import logging as transformers_logging

    from score_openrlhf.tasks.playground_model import build_playground

    transformers_logging.disable_progress_bar()
    console = Console(stderr=True)
    said: set[str] = set()
    with console.status("playground") as status:

        def progress(phase: str, done: int, total: int) -> None:
            if console.is_terminal:
                status.update(f"playground: {phase} {done}/{total}")
            elif phase not in said:
                said.add(phase)
                console.print(f"playground: {phase}", highlight=False)

        paths = build_playground(
            cfg.playground.path,
            warm_start_seed=cfg.playground.warm_start_seed,
            warm_start_steps=cfg.playground.warm_start_steps,
            num_train=cfg.playground.num_train,
            num_eval=cfg.playground.num_eval,
            progress=progress,
        )
    console.print(f"playground: base model in {paths['model']}", highlight=False, soft_wrap=True)


def set_finished_run_aside(output_dir: Path) -> None:
    """Rename the folder of a run that came to its end, so that this one starts anew and nothing is lost."""
    if not (output_dir / "summary.json").is_file():
        return  # nothing there, or an interrupted run that goes on
    from score_openrlhf.trainer.runlog import set_aside

    print(f"the finished run in {output_dir} is kept as {set_aside(output_dir)}", file=sys.stderr)
