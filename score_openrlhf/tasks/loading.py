"""A .jsonl, .json or .parquet file or a hub dataset's name in; checked problems out.

source -> numbered rows -> each checked -> list[Problem], or one ValueError that lists the bad rows
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from score_openrlhf.tasks.base import Problem

SUFFIXES = (".jsonl", ".json", ".parquet")
MAX_LISTED = 5  # bad rows named in an error; all are counted
Item = TypeVar("Item")


class BadRow(Exception):
    """A row that is no problem, and why."""


def load_problems(
    source: str, *, split: str, problem_key: str, answer_key: str, limit: int | None = None
) -> list[Problem]:
    """The problems of `source`, in its order, at most `limit`; rows after the first `limit` are not read.

    `source` is a file, or a hub dataset as `owner/name` or `owner/name:config`, of which `split` is taken. Numbers as
    answers become text; duplicates are kept. A problem's id is its row's `id` column if it has one that no earlier row
    has, else file name and line, as `train.jsonl:17` (of .json and .parquet: the row's number from 1).

    Raises ValueError: no such file or dataset, no rows, rows that are malformed, lack a key or hold an empty value.
    """
    seen: set[str] = set()

    def problem_of(row: Any, name: str, number: int) -> Problem:
        text, answer = value_of(row, problem_key), value_of(row, answer_key)
        own_id = row.get("id")
        problem_id = f"{name}:{number}"
        if isinstance(own_id, str | int) and str(own_id).strip() and str(own_id) not in seen:
            problem_id = str(own_id)
        seen.add(problem_id)
        extra = {key: value for key, value in row.items() if key not in (problem_key, answer_key)}
        return Problem(id=problem_id, text=text, answer=answer, extra=extra)

    return checked_rows(source, problem_of, split=split, limit=limit)


def checked_rows(
    source: str, read: Callable[[Any, str, int], Item], *, split: str = "train", limit: int | None = None
) -> list[Item]:
    """`read(row, name, number)` of the rows of `source`, at most `limit`; `read` raises `BadRow` for a bad one.

    All bad rows are counted and the first few named in one ValueError; a source without rows is a ValueError too.
    """
    name, rows = _rows(source, split)
    items: list[Item] = []
    bad: list[str] = []
    for number, row in itertools.islice(rows, limit):
        try:
            if isinstance(row, BadRow):
                raise row
            items.append(read(row, name, number))
        except BadRow as reason:
            bad.append(f"  {source}:{number}: {reason}")
    if bad:
        listed = "\n".join(bad[:MAX_LISTED])
        more = f"\n  and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        count = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
        raise ValueError(f"{count} in {source}; correct or remove:\n{listed}{more}")
    if not items:
        raise ValueError(f"{source} holds no rows")
    return items


def value_of(row: Any, key: str) -> str:
    """The text or number at `key` of a row, as text; BadRow if it is missing, empty or of another type."""
    if not isinstance(row, dict):
        raise BadRow(f"a {type(row).__name__}, not an object with the key {key!r}")
    if key not in row:
        raise BadRow(f"no key {key!r}; the row has {', '.join(map(repr, row)) or 'none'}")
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise BadRow(f"{key!r} is {kind}; it must be text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow(f"{key!r} is {value}; it must be text or a finite number")
    if not str(value).strip():
        raise BadRow(f"{key!r} is empty")
    return str(value)


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
    """The path of a file that exists; ValueError with its absolute path and the near names in its folder if not."""
    path = Path(source).expanduser().absolute()
    if path.is_file():
        return path
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3)
    if path.is_dir():
        hint = "it is a directory; name a file in it"
    elif not path.parent.is_dir():
        hint = f"there is no directory {path.parent}"
    else:
        hint = f"near names there: {', '.join(near)}" if near else "and no file there has a name like it"
    raise ValueError(f"data file {path} does not exist; {hint}")


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
    raise ValueError(f"{path} has the suffix {suffix!r}; data files are {', '.join(SUFFIXES)}")


def _json_list(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = "; a file with one object a line is a .jsonl file" if error.msg == "Extra data" else ""
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}{hint}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start + 1}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a {type(rows).__name__}; a .json data file is one list of objects")
    return rows


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow  # slow to import, and only for this form
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    for batch in file.iter_batches():
        yield from batch.to_pylist()


def _hub_dataset(source: str, split: str) -> Iterator[dict[str, Any]]:
    import datasets  # slow to import, and only for this form

    name, _, config = source.partition(":")
    try:
        return iter(datasets.load_dataset(name, config or None, split=split))
    except (ValueError, OSError) as error:  # OSError: no such dataset, no connection
        raise ValueError(
            f"cannot load {source!r}, split {split!r}, from the hub, nor is it a {', '.join(SUFFIXES)} file: {error}"
        ) from error
