"""`score-openrlhf COMMAND ...`: each command lives in its own module, imported only when it is called.

Help answers at once: nothing here imports torch, ray or vllm.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import warnings

from score_openrlhf import __version__

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
    "grade": ("score_openrlhf.cli.grade", "grade the answers of a file"),
}


def main(argv: list[str] | None = None) -> int:
    """The console command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # the driver's; the engines log to files
    # torch says this wherever OpenRLHF's requirements are installed; a user can do nothing about it
    warnings.filterwarnings("ignore", message="The pynvml package is deprecated", category=FutureWarning)
    parser = argparse.ArgumentParser(
        prog="score-openrlhf",
        description="Two language models that train each other: a solver that revises, and a guide that helps it.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, line) in COMMANDS.items():
        if name == chosen:
            importlib.import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=line, add_help=False)
    args = parser.parse_args(overrides_after_config(argv))
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def overrides_after_config(argv: list[str]) -> list[str]:
    """`argv` with every `key=value` straight after the configuration: argparse wants positionals in one piece.

    The configuration is a YAML file or a run's folder; a folder straight after an option is taken for its value.
    """
    places = [
        place
        for place, word in enumerate(argv)
        if (word.endswith((".yaml", ".yml")) and not word.startswith("-"))
        or (os.path.isfile(os.path.join(word, "config.yaml")) and not (place and argv[place - 1].startswith("--")))
    ]
    if not places:
        return argv
    before, config, after = argv[: places[0]], argv[places[0]], argv[places[0] + 1 :]

    def is_override(word: str) -> bool:
        return re.match(r"[+~]?[A-Za-z_][\w.]*=", word) is not None

    overrides = [word for word in (*before, *after) if is_override(word)]
    rest = [[word for word in words if not is_override(word)] for words in (before, after)]
    return [*rest[0], config, *overrides, *rest[1]]
