"""A .jsonl, .json or .parquet file or a hub dataset's name in; checked problems out.

source -> numbered rows -> each checked -> list[Problem], or one UserError that lists the bad rows
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from score_openrlhf.errors import UserError
from score_openrlhf.tasks.base import Problem
from score_openrlhf.tasks.columns import (
    BadRow,
    RowRules,
    alternatives,
    answer_of,
    problem_of,
    recognised,
    system_of,
    value_of,
)

__all__ = ["BadRow", "Problems", "checked_rows", "content_digest", "load_problems", "value_of"]

SUFFIXES = (".jsonl", ".json", ".parquet")
MAX_LISTED = 5  # bad rows named in an error; all are counted
Item = TypeVar("Item")


class Problems(list[Problem]):
    """Problems as they were loaded; `said`: what a user should know about their rows."""

    said: tuple[str, ...] = ()


def content_digest(problems: Sequence[Problem]) -> str:
    """16 hexadecimal digits of the texts and answers in their order: whether two runs have the same data."""
    content = hashlib.sha256()
    for problem in problems:
        content.update(json.dumps([problem.text, problem.answer]).encode())
    return content.hexdigest()[:16]


def load_problems(
    source: str,
    *,
    split: str,
    problem_key: str,
    answer_key: str,
    limit: int | None = None,
    rules: RowRules = RowRules(),
) -> Problems:
    """The problems of `source`, in its order, at most `limit`; rows after the first `limit` are not read.

    `source` is a file, or a hub dataset as `owner/name` or `owner/name:config`, of which `split` is taken. Numbers as
    answers become text; duplicates are kept. A problem's id is its row's `id` column if it has one that no earlier row
    has, else file name and line, as `train.jsonl:17` (of .json and .parquet: the row's number from 1).

    Raises UserError: no such file or dataset, no rows, rows that are malformed, lack a key or hold an empty value.
    """
    seen: set[str] = set()
    keys: list[tuple[str, str, str]] = []
    system_texts: list[str] = []

    def problem(row: Any, name: str, number: int) -> Problem:
        if not keys:
            keys.append(recognised(row, problem_key, answer_key, rules.format))
        of_problem, of_answer, _ = keys[0]
        text, answer = problem_of(row, of_problem), answer_of(row, of_answer, rules)
        if (system := system_of(row, of_problem)) is not None:
            system_texts.append(system)
        own_id = row.get("id")
        problem_id = f"{name}:{number}"
        if isinstance(own_id, str | int) and str(own_id).strip() and str(own_id) not in seen:
            problem_id = str(own_id)
        seen.add(problem_id)
        extra = {key: value for key, value in row.items() if key not in (of_problem, of_answer)}
        return Problem(id=problem_id, text=text, answer=answer, extra=extra)

    left_out: list[str] = []
    problems = Problems(
        checked_rows(
            source, problem, split=split, limit=limit, left_out=left_out if rules.on_bad_row == "skip" else None
        )
    )
    said = []
    if keys and keys[0][2]:
        of_problem, of_answer, name = keys[0]
        said.append(f"{source}: read as {name.split()[0]} rows, problem from {of_problem}, answer from {of_answer}")
    if system_texts:
        said.append(
            f"{source}: {len(system_texts)} rows have a system message, which is not used (the first: "
            f"{_short(system_texts[0])!r}); templates.system is what the solver is told"
        )
    if listed := sum(len(alternatives(one.answer)) > 1 for one in problems):
        said.append(f"{source}: {listed} rows have several answers, any of which is right (data.list_answers)")
    if left_out:
        said.append(f"{source}: {len(left_out)} rows left out (data.on_bad_row=skip):\n" + _listed(left_out))
    problems.said = tuple(said)
    return problems


def checked_rows(
    source: str,
    read: Callable[[Any, str, int], Item],
    *,
    split: str = "train",
    limit: int | None = None,
    left_out: list[str] | None = None,
) -> list[Item]:
    """`read(row, name, number)` of the rows of `source`, at most `limit`; `read` raises `BadRow` for a bad one.

    All bad rows are counted and the first few named in one UserError, or all put into `left_out` if it is given. A
    source without a row that can be used is a UserError too.
    """
    name, rows = _rows(source, split)
    items: list[Item] = []
    bad: list[str] = [] if left_out is None else left_out
    for number, row in itertools.islice(rows, limit):
        try:
            if isinstance(row, BadRow):
                raise row
            items.append(read(row, name, number))
        except BadRow as reason:
            bad.append(f"  {source}:{number}: {reason}")
    if bad and (left_out is None or not items):
        count = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
        raise UserError(f"{count} in {source}; correct or remove:\n{_listed(bad)}")
    if not items:
        raise UserError(f"{source} holds no rows")
    return items


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _listed(bad: list[str]) -> str:
    more = f"\n  and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
    return "\n".join(bad[:MAX_LISTED]) + more


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a .jsonl file with their line numbers from 1; a line that is no JSON gives a `BadRow`."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                yield number, BadRow(f"not JSON: {error.msg} at column {error.colno}")
            except UnicodeDecodeError as error:
                yield number, BadRow(f"not UTF-8 at byte {error.start + 1} of the line")


def _existing_file(source: str) -> Path:
    """The path of a file that exists; UserError with its absolute path and the near names in its folder if not."""
    path = Path(source).expanduser().absolute()
    if path.is_file():
        if not os.access(path, os.R_OK):
            raise UserError(f"data file {path} cannot be read: its permissions do not allow it to this user")
        return path
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3)
    if path.is_dir():
        hint = "it is a directory; name a file in it"
    elif not path.parent.is_dir():
        hint = f"there is no directory {path.parent}"
    else:
        hint = f"near names there: {', '.join(near)}" if near else "and no file there has a name like it"
    raise UserError(f"data file {path} does not exist; {hint}")


def _rows(source: str, split: str) -> tuple[str, Iterator[tuple[int, Any]]]:
    """The name that ids start with, and the numbered rows of `source`."""
    suffix = Path(source).suffix.lower()
    if suffix not in SUFFIXES and not (source.startswith(("/", ".", "~")) or Path(source).exists()):
        return source, enumerate(_hub_dataset(source, split), start=1)
    path = _existing_file(source)
    if suffix == ".jsonl":
        return path.name, _json_lines(path)
    if suffix == ".json":
        return path.name, enumerate(_json_list(path), start=1)
    if suffix == ".parquet":
        return path.name, enumerate(_parquet(path), start=1)
    raise UserError(f"{path} has the suffix {suffix!r}; data files are {', '.join(SUFFIXES)}")


def _json_list(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = "; a file with one object a line is a .jsonl file" if error.msg == "Extra data" else ""
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}{hint}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start + 1}") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} holds a {type(rows).__name__}; a .json data file is one list of objects")
    return rows


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow  # slow to import, and only for this form
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a parquet file that can be read: {error}") from error
    for batch in file.iter_batches():
        yield from batch.to_pylist()


def _hub_dataset(source: str, split: str) -> Iterator[dict[str, Any]]:
    import datasets  # slow to import, and only for this form

    name, _, config = source.partition(":")
    try:
        return iter(datasets.load_dataset(name, config or None, split=split))
    except (ValueError, OSError) as error:  # OSError: no such dataset, no connection
        raise UserError(
            f"cannot load {source!r}, split {split!r}, from the hub, nor is it a {', '.join(SUFFIXES)} file: {error}"
        ) from error
