"""What a comparison says, and what it needs to know beside the two answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Verdict(NamedTuple):
    """Whether an answer is right, why, and what carried it: "tolerance", "unit", "several", "repeats"."""

    right: bool
    why: str
    notes: frozenset[str] = frozenset()


class Context(NamedTuple):
    """What a comparison needs to know beside the two answers; `compare` compares their parts."""

    compare: Callable[[Any, Any, Context], Verdict]
    problem: str = ""
    gold_text: str = ""
    unevaluated: str = "wrong"


YES = Verdict(True, "the same")
