"""`score-openrlhf train CONFIG [key=value ...]`: the configuration is checked before anything heavy is imported."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.markup import escape

from score_openrlhf import platform
from score_openrlhf.cli import plan
from score_openrlhf.cli.words import add_config
from score_openrlhf.cluster.stop import stop_request
from score_openrlhf.config.compose import Resolved, load_config
from score_openrlhf.config.keys import value_of
from score_openrlhf.config.paths import looks_like_path, paths
from score_openrlhf.config.validate import validate, warnings
from score_openrlhf.errors import faults_logged
from score_openrlhf.files import claimed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what `plan` prints and start nothing")
    plan.add_cluster_arguments(parser.add_argument_group("with --dry-run"))
    parser.set_defaults(run=run)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG and key=value, and --json, shared by the commands that train."""
    add_config(parser, "max_steps=2 actor.adam.lr=1e-6")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON and nothing else on stdout")


def run(args: argparse.Namespace) -> int:
    if args.dry_run:
        return dry_run(args)
    stop_request.listen()
    resolved = load_config(args.config, args.overrides)
    prepare_task(resolved)
    validate(resolved.cfg)
    return train_and_show(resolved, as_json=args.json)


def dry_run(args: argparse.Namespace) -> int:
    """What `plan` prints, then every question asked before a start, where all it is about lies on this machine."""
    status = plan.run(args)
    resolved = load_config(args.config, args.overrides)
    cfg = resolved.cfg
    if any(paths(cfg)):
        return status  # the plan names what is not here
    from rich.console import Console

    keys = ("model_path", "guidance_model_path", "correction_model_path", "data.train", "data.eval")
    on_hub = [key for key in keys if (name := value_of(cfg, key)) and not looks_like_path(name)]
    if on_hub:  # not downloaded to be asked
        Console(stderr=True).print(
            f"note: models, rows and prompts are not asked here, for {', '.join(on_hub)} would have to be downloaded; "
            "train asks them before it starts anything",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
        return status
    from score_openrlhf.trainer.run import prepare

    prepare(resolved, Console(stderr=True), starts=False)
    return status


def prepare_task(resolved: Resolved) -> None:
    """Build what the task makes itself: the playground's model and problems."""
    if resolved.cfg.task.name == "playground":
        from score_openrlhf.cli.playground import build

        build(resolved.cfg)


def train_and_show(resolved: Resolved, *, as_json: bool, finished_aside: bool = False) -> int:
    """Train, then print the table before and after and where things lie; returns the exit status.

    With `finished_aside` a run that came to its end is kept under another name, and this one starts anew.
    """
    output_dir = Path(resolved.cfg.output_dir)
    with claimed(output_dir, "output_dir"):
        if finished_aside and (output_dir / "summary.json").is_file():
            from score_openrlhf.trainer.runlog import set_aside

            print(f"the finished run in {output_dir} is kept as {set_aside(output_dir)}", file=sys.stderr)
        return _train_and_show(resolved, as_json=as_json)


def _train_and_show(resolved: Resolved, *, as_json: bool) -> int:
    import json

    platform.start_fork_server()  # it imports what the roles need while this process does
    from rich.console import Console

    from score_openrlhf.console.summary import show_summary
    from score_openrlhf.trainer.checkpoint import whole_checkpoints
    from score_openrlhf.trainer.run import prepare, train

    console = Console(stderr=as_json)
    for line in warnings(resolved.cfg):
        console.print(f"[yellow]note:[/yellow] {escape(line)}")
    with faults_logged(Path(resolved.cfg.output_dir, "logs"), lambda: "the checks before the start"):
        prepared = prepare(resolved, console)
    try:
        summary = train(prepared, console)
    except KeyboardInterrupt:
        saved = whole_checkpoints(prepared.checkpoint_root)
        if saved:
            raise KeyboardInterrupt(f"the same command goes on from the checkpoint of step {saved[-1].step}") from None
        every = resolved.cfg.ckpt.save_steps
        raise KeyboardInterrupt(
            f"there is no checkpoint yet (ckpt.save_steps is {every}); the same command starts at step 1 again"
        ) from None
    if as_json:
        print(json.dumps(summary))
    else:
        show_summary(console, resolved.cfg, summary)
    return 0
