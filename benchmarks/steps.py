"""Folders of runs in; where the seconds of their steps went, and what a step of them costs, out.

    python -m benchmarks.steps RUN [RUN ...] [--json]

`rollout` is sampling and grading, `logprob` the forward passes of policy and reference and the advantages, `*_train`
OpenRLHF's update with its rows on the way to it, `sync` the weights on their way to the engines. `other` is the rest
of the step: drawing problems, metrics, files. Policies with GPUs of their own work at the same time: their phases then
add up to more than the step, and `other` is below zero.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

PHASES = ("rollout", "logprob", "solver_train", "guidance_train", "sync")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    found = {str(run): of_run(run) for run in args.runs}
    if args.json:
        print(json.dumps(found))
        return 0
    for run, figures in found.items():
        table = Table(title=f"{run}: {figures['steps']} steps, the first left out")
        for column in ("", "seconds, median", "of all"):
            table.add_column(column, justify="left" if not column else "right")
        for phase, each in figures["phases"].items():
            table.add_row(phase, f"{each['median']:.3f}", f"{each['share']:.1%}")
        table.add_row("step", f"{figures['total']:.3f}", "")
        table.add_section()
        table.add_row("start-up", f"{figures['startup']:.1f}", "")
        Console().print(table)
    return 0


def of_run(folder: Path) -> dict[str, Any]:
    """Median seconds and share of each phase over a run's steps; the first step warms up and is left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]
    if not lines:
        raise ValueError(f"{folder.absolute()} has no second step to measure")
    seconds = {phase: [line.get(f"timing/{phase}") or 0.0 for line in lines] for phase in PHASES}
    totals = [line["timing/total"] for line in lines]
    seconds["other"] = [total - sum(of[i] for of in seconds.values()) for i, total in enumerate(totals)]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "steps": len(lines) + 1,
        "phases": {
            phase: {"median": median(of), "share": sum(of) / sum(totals)} for phase, of in seconds.items() if any(of)
        },
        "total": median(totals),
        "startup": summary["seconds_by_phase"]["startup"],
    }


if __name__ == "__main__":
    sys.exit(main())
