"""`score-openrlhf train CONFIG [key=value ...]`: the configuration is checked before anything heavy is imported."""

from __future__ import annotations

import argparse
import sys

from rich.markup import escape

from score_openrlhf import platform
from score_openrlhf.cli import plan
from score_openrlhf.config.compose import Resolved, load_config
from score_openrlhf.config.validate import validate, warnings
from score_openrlhf.trainer.stop import EXIT_STATUS, Stopped, stop_request


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("train", help="train a solver, and a guidance model with it")
    add_config_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what `plan` prints and start nothing")
    plan.add_cluster_arguments(parser.add_argument_group("with --dry-run"))
    parser.set_defaults(run=run)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG and key=value, and --json, shared by the commands that train."""
    parser.add_argument("config", help="a YAML file, e.g. configs/rl_guided_score_math.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. max_steps=2 actor.adam.lr=1e-6")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON and nothing else on stdout")


def run(args: argparse.Namespace) -> int:
    if args.dry_run:
        return plan.run(args)
    stop_request.listen()
    try:
        resolved = load_config(args.config, args.overrides)
        prepare_task(resolved)
        validate(resolved.cfg)
    except ValueError as error:  # ConfigError included: the user's to mend, so no traceback
        return complain(error)
    return train_and_show(resolved, as_json=args.json)


def prepare_task(resolved: Resolved) -> None:
    """Build what the task makes itself: the playground's model and problems."""
    if resolved.cfg.task.name == "playground":
        from score_openrlhf.cli.playground import build

        build(resolved.cfg)


def train_and_show(resolved: Resolved, *, as_json: bool) -> int:
    """Train, then print the table before and after and where things lie; returns the exit status."""
    import json

    platform.start_fork_server()  # it imports what the roles need while this process does
    from rich.console import Console

    from score_openrlhf.evaluation.results import within_training
    from score_openrlhf.policies.placement import PlacementError
    from score_openrlhf.report.summary import show_summary
    from score_openrlhf.rollout.generator import TooManyFailures
    from score_openrlhf.tasks import make_task
    from score_openrlhf.trainer.checkpoint import CheckpointError
    from score_openrlhf.trainer.run import prepare, train
    from score_openrlhf.trainer.score import NoUpdate
    from score_openrlhf.trainer.session import ClusterError

    console = Console(stderr=as_json)
    for line in warnings(resolved.cfg):
        console.print(f"[yellow]note:[/yellow] {escape(line)}")
    try:
        prepared = prepare(resolved, console)
    except (ValueError, CheckpointError) as error:
        return complain(error)
    cfg = resolved.cfg
    summarise = within_training(make_task(cfg.task.name), seed=cfg.eval.seed, greedy=cfg.eval.temperature == 0)
    try:
        summary = train(prepared, console, summarise)
    except Stopped as stopped:
        console.print(str(stopped), highlight=False)
        return EXIT_STATUS
    except (TooManyFailures, NoUpdate, CheckpointError, ClusterError, PlacementError) as error:  # each says what to do
        return complain(error, status=1)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the newest checkpoint", file=sys.stderr)
        return 130
    if as_json:
        print(json.dumps(summary))
    else:
        show_summary(console, resolved.cfg, summary)
    return 0


def complain(error: Exception, status: int = 2) -> int:
    """Print what a user can mend, without a traceback; returns the exit status."""
    print(f"score-openrlhf: {error}", file=sys.stderr)
    return status
