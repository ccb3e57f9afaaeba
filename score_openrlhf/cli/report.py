"""`score-openrlhf report RUN [RUN ...]`: the folders of runs in; one HTML page about them out."""

from __future__ import annotations

import argparse
from pathlib import Path

from score_openrlhf.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Curves of both policies, figures before and after, hints, time and a browser of trajectories, "
        "in one HTML file that needs no network. Works on a run that is still going on. Several runs are compared."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output_dir of a run")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="where the page is written (default: RUN/report.html; for several runs report.html in this folder)",
    )
    parser.add_argument(
        "--max-trajectories",
        type=int,
        default=20000,
        metavar="N",
        help="most trajectories in the page, an even share of each run and step (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page; UserError for a folder that is no run or a bad option."""
    from score_openrlhf.report.page import render
    from score_openrlhf.report.run_data import read_runs

    if args.max_trajectories < 0:
        raise UserError(f"--max-trajectories {args.max_trajectories} is negative; 0 leaves them out")
    runs = read_runs(args.runs)
    default = runs[0].folder / "report.html" if len(runs) == 1 else Path("report.html")
    output = Path(args.output or default).absolute()
    if not output.parent.is_dir():
        raise UserError(f"{output.parent} is not a folder; make it first or choose another --output")
    page = render(runs, max_trajectories=args.max_trajectories)
    output.write_text(page, encoding="utf-8")
    print(f"{output} ({len(page.encode()) / 1e6:.1f} MB)")
    return 0
