"""A gold answer in; why no answer can be graded against it, out."""

from __future__ import annotations

import re

from score_openrlhf.tasks.answers.reading import as_words, readings
from score_openrlhf.tasks.answers.spelling import spell

# What data sets write where a problem has no answer that can be compared (OpenR1-Math, NuminaMath, DeepScaleR, ...).
SENTINELS = frozenset(
    [
        "proof",
        "notfound",
        "not found",
        "none found",
        "n/a",
        "na",
        "nan",
        "null",
        "unknown",
        "undefined answer",
        "no answer",
        "unanswerable",
        "todo",
        "tbd",
        "see solution",
        "see the solution",
        "see proof",
        "see above",
        "answer",
        "omitted",
        "missing",
        "error",
        "problem not solved",
        "?",
    ]
)
PUNCTUATION = re.compile(r"[\s$.#{}()\[\]\\*_-]+")


def gold_fault(answer: str) -> str | None:
    """Why `answer` is no gold answer: nothing in it, or a word that stands for a missing one; None if it is one."""
    words = as_words(spell(answer)).strip(" .!:")
    if words in SENTINELS or answer.strip().lower().strip(" .$") in SENTINELS:
        return f"{answer!r} stands for a missing answer; nothing can be graded against it"
    if not readings(answer) or not PUNCTUATION.sub("", answer):
        return f"{answer!r} holds nothing to compare with"
    return None
