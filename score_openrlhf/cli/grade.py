"""A file of attempts with gold answers in; how they grade, and where that differs from a published verdict, out."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from score_openrlhf.tasks.base import GRADE_STATUSES, Grade
from score_openrlhf.tasks.loading import BadRow, checked_rows, value_of
from score_openrlhf.tasks.pool import GradingPool, GradingUnavailable

SHOWN_CHARS = 60
SHOWN_DISAGREEMENTS = 10


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds `grade` to the command's parser."""
    parser = subparsers.add_parser(
        "grade",
        help="grade a file of attempts",
        description="Grade each row's `attempt` against its `answer`; with `is_correct` in the rows, compare with it.",
    )
    parser.add_argument(
        "file", metavar="FILE", help="data file with the columns attempt, answer and, if known, is_correct"
    )
    parser.add_argument(
        "--task", default="math", help="math, playground or path/to/file.py:Class (default: %(default)s)"
    )
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="grading processes (default: one a core)"
    )
    parser.add_argument(
        "--timeout-seconds", type=float, default=5.0, help="deadline of one call (default: %(default)s)"
    )
    parser.add_argument(
        "--max-answer-chars", type=int, default=20000, help="longer attempts lose their start (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Grades and prints; 0, or 2 with the cause on standard error for a bad file or option."""
    started = time.monotonic()
    try:
        rows = read_attempts(args.file)
        with GradingPool(
            args.task,
            processes=args.processes,
            timeout_seconds=args.timeout_seconds,
            max_answer_chars=args.max_answer_chars,
        ) as pool:
            futures = [pool.grade(row["attempt"], row["answer"], problem=row["problem"]) for row in rows]
            grades = [future.result() for future in futures]
    except (ValueError, GradingUnavailable) as error:
        print(f"score-openrlhf: {error}", file=sys.stderr)
        return 2
    summary = summarise(rows, grades) | {"wall_seconds": round(time.monotonic() - started, 3)}
    if args.json:
        print(json.dumps(summary))
    else:
        _print_tables(args.file, summary)
    return 0


def read_attempts(file: str) -> list[dict[str, Any]]:
    """The rows of a data file: `line`, `problem`, `attempt`, `answer` as text and `is_correct`, None where absent.

    An empty attempt is an attempt. Raises ValueError for a missing file or bad rows, with their lines.
    """
    return checked_rows(file, _read_attempt)


def _read_attempt(row: Any, name: str, number: int) -> dict[str, Any]:
    answer = value_of(row, "answer")
    attempt = row["attempt"] if row.get("attempt") == "" else value_of(row, "attempt")
    verdict = row.get("is_correct")
    if not isinstance(verdict, bool | None):
        raise BadRow(f"'is_correct' is {verdict!r}; it must be true or false, or be left out")
    return {
        "line": number,
        "problem": str(row.get("problem", "")),
        "attempt": attempt,
        "answer": answer,
        "is_correct": verdict,
    }


def summarise(rows: list[dict[str, Any]], grades: list[Grade]) -> dict[str, Any]:
    """Counts by status, and `agreement` with the published verdicts as a fraction (None where none is published)."""
    counts = Counter(grade.status for grade in grades)
    published = [(row, grade) for row, grade in zip(rows, grades, strict=True) if row["is_correct"] is not None]
    disagreements = [
        {
            "line": row["line"],
            "attempt": row["attempt"],
            "answer": row["answer"],
            "is_correct": row["is_correct"],
            "status": grade.status,
            "detail": grade.detail,
        }
        for row, grade in published
        if grade.correct != row["is_correct"]
    ]
    return {
        "count": len(rows),
        **{status: counts[status] for status in GRADE_STATUSES},
        "accuracy": counts["right"] / len(rows),
        "published": len(published),
        "agreement": 1 - len(disagreements) / len(published) if published else None,
        "disagreements": disagreements,
    }


def _print_tables(file: str, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title=f"{escape(Path(file).name)}: {summary['count']} attempts, {summary['wall_seconds']:.1f} s")
    table.add_column("grade")
    table.add_column("count", justify="right")
    table.add_column("fraction", justify="right")
    for status in GRADE_STATUSES:
        table.add_row(status, str(summary[status]), f"{summary[status] / summary['count']:.3f}")
    console.print(table)
    if summary["agreement"] is None:
        return
    different = summary["disagreements"]
    console.print(
        f"agrees with the published verdict on {summary['published'] - len(different)} of {summary['published']}"
    )
    if different:
        table = Table(title="disagreements")
        for column in ("line", "grade", "published", "answer", "end of the attempt"):
            table.add_column(column)
        for row in different[:SHOWN_DISAGREEMENTS]:
            published = "right" if row["is_correct"] else "wrong"
            end = " ".join(row["attempt"].split())[-SHOWN_CHARS:]
            table.add_row(str(row["line"]), row["status"], published, escape(row["answer"]), escape(end))
        console.print(table)
        if len(different) > SHOWN_DISAGREEMENTS:
            console.print(f"and {len(different) - SHOWN_DISAGREEMENTS} more; --json lists all")
