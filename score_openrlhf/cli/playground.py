"""`score-openrlhf playground`: build the CPU-sized task, train both models on it, show what changed."""

from __future__ import annotations

import argparse

from score_openrlhf import platform
from score_openrlhf.cli.train import add_config_arguments, train_and_show
from score_openrlhf.config.compose import load_config
from score_openrlhf.config.schema import Config
from score_openrlhf.config.validate import validate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    resolved = load_config(args.config, args.overrides)
    build(resolved.cfg)
    validate(resolved.cfg)
    return train_and_show(resolved, as_json=args.json, finished_aside=True)


def build(cfg: Config) -> None:
    """Make the base model and the problems, or find them from an earlier call."""
    platform.start_fork_server()
    from rich.console import Console
    from transformers.utils import logging as transformers_logging

    from score_openrlhf.tasks.playground_model import build_playground

    transformers_logging.disable_progress_bar()
    console = Console(stderr=True)
    said: set[str] = set()
    trained = 0  # steps of the warm start
    with console.status("playground") as status:

        def progress(phase: str, done: int, total: int) -> None:
            nonlocal trained
            trained = done if phase == "warm start" else trained
            if console.is_terminal:
                status.update(f"playground: {phase} {done}/{total}")
            elif phase not in said:
                said.add(phase)
                console.print(f"playground: {phase}", highlight=False)

        try:
            paths = build_playground(
                cfg.playground.path,
                warm_start_seed=cfg.playground.warm_start_seed,
                warm_start_steps=cfg.playground.warm_start_steps,
                num_train=cfg.playground.num_train,
                num_eval=cfg.playground.num_eval,
                progress=progress,
            )
        except KeyboardInterrupt:
            status.stop()
            kept = f"step {trained} of the warm start is kept and" if trained else "nothing is lost:"
            raise KeyboardInterrupt(f"{kept} the same command goes on from there") from None
    console.print(f"playground: base model in {paths['model']}", highlight=False, soft_wrap=True)
