"""`score-openrlhf COMMAND ...`: each command lives in its own module, imported only when it is called.

Help answers at once: nothing here imports torch, ray or vllm.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
import warnings

from score_openrlhf import __version__, platform
from score_openrlhf.errors import EXIT_STATUSES, status_of

PROGRAM = "score-openrlhf"
# command -> (module, one line for the help)
COMMANDS = {
    "train": ("score_openrlhf.cli.train", "train a solver, and a guidance model with it"),
    "playground": ("score_openrlhf.cli.playground", "build the CPU-sized task and train both models on it in minutes"),
    "evaluate": (
        "score_openrlhf.cli.evaluate",
        "measure a solver, with and without a guidance model, and its controls",
    ),
    "solve": ("score_openrlhf.cli.solve", "attempt, hint and revision of one problem, on the terminal"),
    "report": ("score_openrlhf.cli.report", "write one HTML page about a run, or about several"),
    "plan": ("score_openrlhf.cli.plan", "show roles, memory and arguments of a run, and whether it fits"),
    "doctor": ("score_openrlhf.cli.doctor", "check this machine, and what a configuration needs on it"),
    "grade": ("score_openrlhf.cli.grade", "grade the answers of a file"),
}


def main(argv: list[str] | None = None) -> int:
    """The console command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    platform.shorten_tmpdir()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # the driver's; the engines log to files
    # torch says this wherever OpenRLHF's requirements are installed; a user can do nothing about it
    warnings.filterwarnings("ignore", message="The pynvml package is deprecated", category=FutureWarning)

    def run() -> int:
        args = parsed(argv)
        status: int = args.run(args)
        return status

    return status_of(run)


def parsed(argv: list[str]) -> argparse.Namespace:
    """The arguments of the command that `argv` names first, `run` among them; options and words may stand mixed.

    Exits as argparse does: status 0 after --help and --version, 2 where the words cannot be read.
    """
    if argv and argv[0] in COMMANDS:
        module, line = COMMANDS[argv[0]]
        parser = argparse.ArgumentParser(prog=f"{PROGRAM} {argv[0]}", description=line)
        importlib.import_module(module).add_arguments(parser)
        return parser.parse_intermixed_args(argv[1:])
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Two language models that train each other: a solver that revises, and a guide that helps it.",
        epilog="exit status:\n" + "\n".join(_described(*row) for row in EXIT_STATUSES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, line) in COMMANDS.items():
        subparsers.add_parser(name, help=line, add_help=False)
    parser.parse_args(argv)
    parser.error(f"COMMAND comes first, before {argv[0]}")


def _described(status: int, meaning: str) -> str:
    return textwrap.fill(f"{status:>5}  {meaning}", width=100, subsequent_indent=" " * 7)
