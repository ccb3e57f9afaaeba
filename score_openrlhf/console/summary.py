"""A run's summary in; one table (before, after), a few trajectories and where everything lies, on the terminal."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from score_openrlhf.config.compose import load_config
from score_openrlhf.config.schema import Config
from score_openrlhf.console.progress import clock
from score_openrlhf.errors import printable
from score_openrlhf.rollout.metric_table import METRICS

SHOWN = (
    "acc_t1",
    "acc_t2",
    "delta",
    "i2c",
    "c2i",
    "guidance/hint_accuracy",
    "guidance/right_column_rate",
    "guidance/leak",
    "num_failed",
)
COUNTS = {"num_failed"}


def show_summary(console: Console, cfg: Config, summary: dict[str, Any]) -> None:
    """Print what a user wants to know when a run ends."""
    before, after = summary["before"], summary["after"]
    output_dir = Path(cfg.output_dir)
    if before and after:
        folder = output_dir / "trajectories"
        show_examples(console, folder / "eval_before.jsonl", folder / "eval_after.jsonl", cfg.logger.num_shown)
        title = f"{summary['method']}: {after['num_problems']:.0f} held-out problems, {summary['steps']} steps"
        table = Table(title=title, box=box.ROUNDED)
        for column in ("metric", "before", "after", "change"):
            table.add_column(column, justify="left" if column == "metric" else "right")
        table.add_column("meaning", style="dim")
        for key in SHOWN:
            if key in after:
                meaning = METRICS[key].meaning
                table.add_row(
                    key,
                    _figure(key, before.get(key)),
                    _figure(key, after[key]),
                    _change(key, before.get(key), after[key]),
                    meaning,
                )
        console.print(table)
    if summary["best"]:
        step, checkpoint = summary["best"]["step"], summary["best"].get("checkpoint")
        pair = f"the pair after step {step}" if step else "the pair that training started from"
        where = f", {os.path.relpath(checkpoint)}" if checkpoint else ""
        console.print(
            f"best held-out acc_t2 {summary['best']['acc_t2']:.3f}: {pair}{where}", highlight=False, soft_wrap=True
        )
    seconds = sorted(summary["seconds_by_phase"].items(), key=lambda item: -item[1])
    console.print(
        f"wall time {clock(summary['wall_seconds'])}, peak memory {summary['peak_memory_gib']:.1f} GiB; "
        + ", ".join(f"{phase} {clock(value)}" for phase, value in seconds if value >= 1),
        highlight=False,
    )
    for label, path in (
        ("solver", summary["solver_path"]),
        ("guidance model", summary["guidance_path"]),
        ("metrics", output_dir / "metrics.jsonl"),
        ("trajectories", output_dir / "trajectories"),
        ("summary", output_dir / "summary.json"),
    ):
        if path:
            console.print(f"  {label:<15} {os.path.relpath(path)}", highlight=False, soft_wrap=True)


def show_examples(console: Console, before: Path, after: Path, count: int) -> None:
    """Print `count` problems whose first attempt was wrong before and after training, with both hints and revisions.

    Half of them were fixed only after training, the others are the first that were not: successes alone would flatter.
    """
    if count == 0 or not before.is_file() or not after.is_file():
        return
    first, last = _wrong_attempts(before), _wrong_attempts(after)
    both = [group for group in first if group in last]
    gained = [group for group in both if not _fixed(first[group]) and _fixed(last[group])]
    missed = [group for group in both if not _fixed(last[group])]
    num_missed = min(len(missed), count // 2)
    shown = gained[: count - num_missed] + missed[:num_missed]
    title = f"wrong first attempts that were fixed: {_fixed_part(first)} before, {_fixed_part(last)} after training"
    table = Table(title=title, box=box.ROUNDED)
    for column in ("problem", "attempt", "hint before", "revision", "attempt", "hint after", "revision", "answer"):
        table.add_column(column, overflow="fold")
    for group in shown:
        cells = [_short(first[group]["problem"])]
        for row in (first[group], last[group]):
            mark = "green" if _fixed(row) else "red"
            hint = _short(row["guidance"]["text"]) if row["guidance"] else "(fixed text)"
            cells += [f"[red]{_short(row['attempt']['text'])}[/red]", hint]
            cells.append(f"[{mark}]{_short(row['revision']['text'])}[/{mark}]")
        table.add_row(*cells, _short(first[group]["answer"]))
    if shown:
        console.print(table)


def _wrong_attempts(path: Path) -> dict[int, dict[str, Any]]:
    """The first trajectory of each problem whose first answer was wrong, by the problem's place in the file."""
    rows: dict[int, dict[str, Any]] = {}
    with path.open() as file:
        for row in map(json.loads, file):
            if row["revision"] and row["grade_t1"] != "right":
                rows.setdefault(row["group"], row)
    return rows


def _fixed(row: dict[str, Any]) -> bool:
    return row["grade_t2"] == "right"


def _fixed_part(rows: dict[int, dict[str, Any]]) -> str:
    return f"{sum(map(_fixed, rows.values()))} of {len(rows)}"


def main() -> None:
    """`python -m score_openrlhf.console.summary RUN FILE.svg`: what a run printed at its end, as a picture."""
    run, target = Path(sys.argv[1]), sys.argv[2]
    cfg = load_config(str(run / "config.yaml"), []).cfg
    console = Console(record=True, width=118, file=io.StringIO(), force_terminal=True)
    show_summary(console, cfg, json.loads((run / "summary.json").read_text()))
    svg = console.export_svg(title="make quickstart")
    # rich names web fonts and its own page; a picture must not fetch anything
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    Path(target).write_text(re.sub(r"<!-- Generated with Rich .*?-->\s*", "", svg))


def _short(text: str, limit: int = 400) -> str:
    text = printable(text)
    return escape(text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}")


def _figure(key: str, value: float | None, sign: str = "") -> str:
    return "-" if value is None else format(value, f"{sign}.0f" if key in COUNTS else f"{sign}.3f")


def _change(key: str, before: float | None, after: float) -> str:
    return "-" if before is None else _figure(key, after - before, "+")


if __name__ == "__main__":
    main()
