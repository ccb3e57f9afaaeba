"""A run's trajectory files in; a bounded, compact table of them for the page out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from score_openrlhf.errors import UserError

MAX_TEXT_CHARS = 8000  # of one text in the page; the middle of a longer one is left out, and the text says so


@dataclass(frozen=True)
class TrajectoryFile:
    """One file of trajectories/: an evaluation, or what one training step sampled."""

    path: Path
    label: str  # as people read it
    held_out: bool


def trajectory_files(folder: Path) -> list[TrajectoryFile]:
    """The trajectory files of the run in `folder`: evaluations in their order, then training steps."""
    found = []
    for path in (folder / "trajectories").glob("*.jsonl"):
        kind, _, rest = path.stem.rpartition("_")
        if path.stem == "eval_before":
            found.append(((0, 0), TrajectoryFile(path, "before training", True)))
        elif kind == "eval_step" and rest.isdigit():
            found.append(((1, int(rest)), TrajectoryFile(path, f"after step {int(rest)}", True)))
        elif path.stem == "eval_after":
            found.append(((2, 0), TrajectoryFile(path, "after training", True)))
        elif kind == "step" and rest.isdigit():
            found.append(((3, int(rest)), TrajectoryFile(path, f"step {int(rest)}", False)))
    return [file for _, file in sorted(found, key=lambda item: item[0])]


def read_rows(path: Path, chosen: set[int] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a trajectories file, or those whose index is in `chosen`; raises UserError for a broken line."""
    with path.open("rb") as file:
        for index, line in enumerate(file):
            if chosen is None or index in chosen:
                try:
                    yield json.loads(line)
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    raise UserError(
                        f"{path}:{index + 1} is not JSON ({error}); remove the line or the file"
                    ) from error


def embed(folder: Path, budget: int) -> dict[str, Any]:
    """At most `budget` trajectories of the run as columns for the page: `files`, `texts`, `rows` and `total`.

    Evaluations take up to half of the budget, training steps the rest, each file an equal share; the rows of a file
    that has more are drawn at random with a fixed seed. Texts are stored once: a row holds their indices.
    """
    files = trajectory_files(folder)
    counts = [_count_lines(file.path) for file in files]
    held_out = [count for count, file in zip(counts, files, strict=True) if file.held_out]
    training = [count for count, file in zip(counts, files, strict=True) if not file.held_out]
    for_held_out = min(sum(held_out), max(budget // 2, budget - sum(training)))
    shares = [*equal_shares(held_out, for_held_out), *equal_shares(training, budget - for_held_out)]
    texts: dict[str, int] = {}
    rows = []
    for index, (file, count, share) in enumerate(zip(files, counts, shares, strict=True)):
        chosen = set(random.Random(file.path.stem).sample(range(count), share))
        rows += [_row(index, row, texts) for row in read_rows(file.path, chosen)]
    return {
        "files": [{"label": file.label, "held_out": file.held_out} for file in files],
        "texts": list(texts),
        "rows": rows,
        "total": sum(counts),
    }


def equal_shares(counts: Sequence[int], budget: int) -> list[int]:
    """How many of each count to keep: equal shares of `budget`; what a small one leaves goes to the others."""
    shares = [0] * len(counts)
    left = max(budget, 0)
    for position, index in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
        shares[index] = min(counts[index], left // (len(counts) - position))
        left -= shares[index]
    return shares


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def _row(file: int, row: dict[str, Any], texts: dict[str, int]) -> list[Any]:
    """One trajectory as the page's script reads it (`assets/browser.js`, `unpack`); -1 is a text that is not there."""

    def text(value: str | None) -> int:
        return -1 if value is None else texts.setdefault(_shorten(value), len(texts))

    def sample(value: dict[str, Any] | None) -> list[Any] | None:
        if value is None:
            return None
        return [
            text(value["text"]),
            len(value["token_ids"]),
            round(value["log_prob_sum"], 2),
            int(value["truncated"]),
            value["policy_version"],
        ]

    return [
        file,
        text(str(row["problem_id"])),
        text(row["problem"]),
        text(row["answer"]),
        sample(row["attempt"]),
        sample(row["guidance"]),
        sample(row["revision"]),
        text(row["grade_t1"]),
        text(row["grade_t2"]),
        int(row["leak"] > 0),
        text(row["failure"]),
        text(row["masked"]),
        [row["attempt_index"], row["guidance_index"]],
        row["hint_metrics"],
    ]


def _shorten(text: str) -> str:
    if len(text) <= MAX_TEXT_CHARS:
        return text
    head, tail = MAX_TEXT_CHARS * 3 // 4, MAX_TEXT_CHARS // 4
    return f"{text[:head]}\n[... {len(text) - head - tail:,} characters left out here ...]\n{text[-tail:]}"
