"""A sum of two three-digit numbers in; a grade, and what a hint about it was worth, out.

The playground is a task small enough to see the method work on two CPU cores. A problem reads `3 4 7 + 5 2 1 =` and is
answered `8 6 8`; no column carries. The model that comes with it (`playground_model.py`) misremembers ten digit pairs,
so one column of its first answer is wrong on half of the problems. A hint names a column (`check the tens`, `redo the
tens`), approves (`looks right`) or is vague (`check again`); it has no need of a digit, so a digit in it is a leak.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import re
from pathlib import Path
from typing import Any

from score_openrlhf.errors import UserError
from score_openrlhf.tasks.base import NO_ERROR, Grade, Problem, Task, Templates

COLUMNS = ("hundreds", "tens", "ones")  # in the order in which a number is written
VERBS = ("check", "redo")
APPROVAL = "looks right"
VAGUE = "check again"
COLUMN_HINTS = tuple(f"{verb} the {column}" for column in COLUMNS for verb in VERBS)

# The digit pairs that the base model misremembers, and by how much: it holds 2 + 5 to be 8.
MISREMEMBERED = {
    (2, 3): 1, (2, 5): 1, (1, 6): -1, (3, 4): 1, (4, 5): -1, (2, 6): -1, (1, 3): 1, (4, 4): -1, (0, 7): -1, (1, 5): 1,
}  # fmt: skip

SPLITS = ("train", "test")
THREE_DIGITS = re.compile(r"\s*([0-9])\s*([0-9])\s*([0-9])\s*")
NAMED_COLUMN = re.compile(rf"(?:{'|'.join(VERBS)}) the ({'|'.join(COLUMNS)})")


class PlaygroundTask(Task):
    """Three-digit addition whose errors lie in one known column, so a hint can be judged apart from the revision."""

    name = "playground"
    templates = Templates(
        system=None,
        attempt="{problem}",
        revision="{guidance}",
        static_revision=VAGUE,
        guidance_system=None,
        guidance="hint for {problem} {attempt}",
    )

    def grade(self, text: str, answer: str) -> Grade:
        """Right if `text` is the three digits of `answer`; unparsable if it is anything but three digits.

        Raises UserError if the gold `answer` itself is not three digits.
        """
        gold = digits_of(answer)
        if gold is None:
            raise UserError(f"gold answer {answer!r} is not three digits; a playground answer reads '8 6 8'")
        given = digits_of(text)
        if given is None:
            return Grade("unparsable")
        return Grade("right" if given == gold else "wrong")

    def states_answer(self, guidance: str, problem: str, attempt: str, answer: str) -> bool:
        """Whether the guidance holds a digit: naming the column is enough, so any digit gives part of the sum away."""
        return re.search(r"[0-9]", guidance) is not None

    def error_of(self, problem: Problem, attempt: str) -> str | None:
        """The names of the wrong columns, NO_ERROR if there is none; None if the attempt is not three digits."""
        gold, given = digits_of(problem.answer), digits_of(attempt)
        if gold is None or given is None:
            return None
        return " ".join(name for name, a, b in zip(COLUMNS, gold, given) if a != b) or NO_ERROR

    def approves(self, guidance: str) -> bool:
        """Whether the hint is `looks right`."""
        return " ".join(guidance.split()) == APPROVAL

    def describe_guidance(self, problem: Problem, attempt: str, guidance: str) -> dict[str, float]:
        """`hint_accuracy`: the hint names a wrong column of a wrong attempt, or approves a right one (0 or 1).

        `right_column_rate` is the same of wrong attempts alone and absent otherwise; both are absent where the attempt
        is not three digits, because no column of it is the wrong one.
        """
        gold, given = digits_of(problem.answer), digits_of(attempt)
        if gold is None or given is None:
            return {}
        hint = " ".join(guidance.split())
        if given == gold:
            return {"hint_accuracy": float(hint == APPROVAL)}
        named = NAMED_COLUMN.fullmatch(hint)
        column = COLUMNS.index(named.group(1)) if named else None
        located = float(column is not None and given[column] != gold[column])
        return {"hint_accuracy": located, "right_column_rate": located}


def digits_of(text: str) -> tuple[int, int, int] | None:
    """The three digits that `text` consists of (hundreds, tens, ones), or None if it is of another form."""
    match = THREE_DIGITS.fullmatch(text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def spaced(number: int) -> str:
    """`868` as the models write it: `8 6 8`."""
    return " ".join(str(number))


def problem_text(a: int, b: int) -> str:
    """The problem of adding `a` and `b`, three digits each: `3 4 7 + 5 2 1 =`."""
    return f"{spaced(a)} + {spaced(b)} ="


def slip(x: int, y: int) -> int:
    """By how much the base model is off on the digits `x + y`: -1, 0 or 1."""
    return MISREMEMBERED.get((min(x, y), max(x, y)), 0)


def in_test(a: int, b: int) -> bool:
    """The split: about a tenth of all pairs of operands, chosen by a hash of both, is never trained on."""
    return (a * 7919 + b * 104729) % 97 < 10


@functools.cache
def operands(split: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """All `(a, b)` of a split that carry nowhere: those with exactly one misremembered column, and those with none.

    Raises UserError for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    pairs = [(x, y) for x in range(10) for y in range(10 - x)]
    leading = [(x, y) for x, y in pairs if x >= 1 and y >= 1]
    hard: list[Any] = []
    easy: list[Any] = []
    for (x2, y2), (x1, y1), (x0, y0) in itertools.product(leading, pairs, pairs):
        a, b = 100 * x2 + 10 * x1 + x0, 100 * y2 + 10 * y1 + y0
        num_traps = (slip(x2, y2) != 0) + (slip(x1, y1) != 0) + (slip(x0, y0) != 0)
        if num_traps <= 1 and in_test(a, b) == (split == "test"):
            (hard if num_traps else easy).append((a, b))
    return hard, easy


def write_problems(path: str | os.PathLike[str], seed: int, num: int, split: str) -> Path:
    """Writes `num` different problems of `split` as JSON lines, half of them hard, in an order drawn from `seed`.

    A row has `id`, `problem`, `answer` and `trap`, the misremembered column or null. Raises UserError if `num` is not
    positive or the split has not that many.
    """
    hard, easy = operands(split)
    num_hard = num // 2
    most = 2 * min(len(hard), len(easy))
    if not 1 <= num <= most:
        raise UserError(f"{num} problems asked for; the {split} split has 1 to {most}, half of them hard")
    rng = random.Random(seed)
    chosen = rng.sample(hard, num_hard) + rng.sample(easy, num - num_hard)
    rng.shuffle(chosen)
    path = Path(path)
    with path.open("w", encoding="utf-8") as file:
        for a, b in chosen:
            traps = [name for name, x, y in zip(COLUMNS, str(a), str(b), strict=True) if slip(int(x), int(y))]
            row = {
                "id": f"{split}-{a}+{b}",
                "problem": problem_text(a, b),
                "answer": spaced(a + b),
                "trap": traps[0] if traps else None,
            }
            file.write(json.dumps(row) + "\n")
    return path
