"""A file of attempts with gold answers in; how they grade, and where that differs from a published verdict, out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from score_openrlhf.config.evaluation import digest, file_digest
from score_openrlhf.errors import printable
from score_openrlhf.evaluation.kept import grade_of
from score_openrlhf.journal import Journal
from score_openrlhf.tasks.base import GRADE_STATUSES, Grade
from score_openrlhf.tasks.columns import RowRules, answer_of
from score_openrlhf.tasks.loading import BadRow, checked_rows, value_of
from score_openrlhf.tasks.pool import GradingPool

KEPT_FROM_ROWS = 2000  # shorter files take seconds
SHOWN_CHARS = 60
SHOWN_DISAGREEMENTS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Grade each row's `attempt` against its `answer`; with `is_correct` in the rows, compare with it."
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
    parser.add_argument(
        "--unevaluated",
        choices=("wrong", "right"),
        default="wrong",
        help="an expression left to be worked out, such as 18 - 13 (default: %(default)s)",
    )
    parser.add_argument("--explain", action="store_true", help="print each attempt's grade and the reason for it")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Grades and prints; UserError for a bad file or option."""
    started = time.monotonic()
    rows = read_attempts(args.file)
    journal = _journal(args, rows)
    with GradingPool(
        args.task,
        processes=args.processes,
        timeout_seconds=args.timeout_seconds,
        max_answer_chars=args.max_answer_chars,
        unevaluated=args.unevaluated,
    ) as pool:
        grades = _grades(pool, rows, journal)
    summary = summarise(rows, grades) | {"wall_seconds": round(time.monotonic() - started, 3)}
    if args.explain:
        summary["grades"] = [
            {"line": row["line"], "status": grade.status, "detail": grade.detail, "notes": list(grade.notes)}
            for row, grade in zip(rows, grades, strict=True)
        ]
    if args.json:
        print(json.dumps(summary))
    else:
        if args.explain:
            _print_explanations(rows, grades)
        _print_tables(args.file, summary)
    return 0


def _journal(args: argparse.Namespace, rows: list[dict[str, Any]]) -> Journal | None:
    """Where the grades of a long file are kept until all are there; None for a file that takes seconds."""
    if len(rows) < KEPT_FROM_ROWS:
        return None
    settings = {
        "task": args.task,
        "code": file_digest(args.task.rpartition(":")[0]),
        "timeout_seconds": args.timeout_seconds,
        "max_answer_chars": args.max_answer_chars,
        "unevaluated": args.unevaluated,
        "rows": digest(rows),
    }
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "score_openrlhf")
    try:
        # the name is a digest of all settings: a journal of others has another
        journal = Journal.open(cache / f"grade-{digest(settings)}.jsonl", settings)
    except OSError as error:
        print(f"grades are not kept meanwhile, since {error}; set XDG_CACHE_HOME", file=sys.stderr)
        return None
    if journal.records:
        print(f"going on: {len(journal.records)} of {len(rows)} grades are in {journal.path}", file=sys.stderr)
    return journal


def _grades(pool: GradingPool, rows: list[dict[str, Any]], journal: Journal | None) -> list[Grade]:
    """The grade of each row; those in the journal are not made again."""
    kept = {record["row"]: grade_of(**record["grade"]) for record in journal.records} if journal else {}
    futures = {
        number: pool.grade(row["attempt"], row["answer"], problem=row["problem"])
        for number, row in enumerate(rows)
        if number not in kept
    }
    try:
        for number, future in futures.items():
            kept[number] = grade = future.result()
            # a deadline that was missed, a process that died: the next time it may be otherwise
            if journal and grade.status not in ("timeout", "error"):
                journal.add({"row": number, "grade": dataclasses.asdict(grade)})
    except KeyboardInterrupt:
        if journal is None:
            raise
        done = len(journal.records) + journal.num_added
        raise KeyboardInterrupt(
            f"{done} of {len(rows)} grades are kept in {journal.path}; the same command goes on from there"
        ) from None
    finally:
        if journal is not None:
            journal.close()
    if journal is not None:
        journal.remove()
    return [kept[number] for number in range(len(rows))]


def read_attempts(file: str) -> list[dict[str, Any]]:
    """The rows of a data file: `line`, `problem`, `attempt`, `answer` as text and `is_correct`, None where absent.

    An empty attempt is an attempt. Raises UserError for a missing file or bad rows, with their lines.
    """
    return checked_rows(file, _read_attempt)


def _read_attempt(row: Any, name: str, number: int) -> dict[str, Any]:
    answer = answer_of(row, "answer", RowRules())
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


def _print_explanations(rows: list[dict[str, Any]], grades: list[Grade]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("line", "grade", "gold", "end of the attempt", "why"):
        table.add_column(column, overflow="fold")
    for row, grade in zip(rows, grades, strict=True):
        why = grade.detail + (f" ({', '.join(grade.notes)})" if grade.notes else "")
        end = " ".join(row["attempt"].split())[-SHOWN_CHARS:]
        table.add_row(str(row["line"]), grade.status, _cell(row["answer"]), _cell(end), _cell(why))
    Console().print(table)


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
            table.add_row(str(row["line"]), row["status"], published, _cell(row["answer"]), _cell(end))
        console.print(table)
        if len(different) > SHOWN_DISAGREEMENTS:
            console.print(f"and {len(different) - SHOWN_DISAGREEMENTS} more; --json lists all")


def _cell(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))
