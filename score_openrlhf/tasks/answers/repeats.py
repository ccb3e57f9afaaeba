"""An expression and a problem in; whether it is the problem's own, in this order or another, out."""

from __future__ import annotations

import functools
import re

from score_openrlhf.tasks.answers.expression import Node
from score_openrlhf.tasks.answers.spelling import spell, squeezed
from score_openrlhf.tasks.answers.trees import is_scientific, parts_of, rational
from score_openrlhf.tasks.answers.value import is_power_of_ten

POWER_WORDS = re.compile(r"power|raised|expon|square|cube|\^|\*\*|to the \d", re.I)
MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
# A run of signs, digits, brackets and commands in the prose of a problem: the 18 - 13 of "What is 18 - 13?".
PROSE_RUN = re.compile(
    r"(?:[\d.,+\-*/^()\[\]{}=!%×÷·−√π]|\\[A-Za-z]+|\b[A-Za-z]\b|(?<=\d)[a-z]\b|\bsqrt\b|\s(?![A-Za-z]{2}))+"
)
CUT = re.compile(r"(?<![<>!\\])=|\\(?:le|ge|lt|gt|ne|approx|equiv|to|quad)(?![A-Za-z])|[<>,;?]")


def repeats(tree: Node, text: str, problem: str) -> bool:
    """Whether the expression stands in the problem, if in another order, and is more than a number or a symbol."""
    if _atomic(tree):
        return False
    key = _letters(text)
    return len(key) >= 3 and key in _snippets(problem)


def _atomic(tree: Node) -> bool:
    while tree.op == "neg":
        tree = tree.args[0]
    return (
        tree.op in ("num", "mixed", "sym", "const") or is_scientific(tree) or is_power_of_ten(tree) or tree.text == "%"
    )


def _letters(text: str) -> str:
    """The signs of an expression, sorted: the same for `(x+1)(x+2)` and `(x+2)(x+1)`."""
    text = squeezed(text).replace("\\frac", "/").replace("\\", "").replace("*", "")
    return "".join(sorted(re.sub(r"[(){}\[\]]", "", text)))


def alike(text: str, gold_text: str) -> bool:
    return _letters(text) == _letters(gold_text)


@functools.lru_cache(maxsize=512)
def _snippets(problem: str) -> frozenset[str]:
    """The expressions of a problem, as `_letters`: whole formulas, their sides, and runs of signs in the prose."""
    found: set[str] = set()
    pieces = [match[match.lastindex or 0] for match in MATH.finditer(problem)]
    pieces += PROSE_RUN.findall(MATH.sub(" ; ", problem))
    for piece in pieces:
        spelled = spell(piece)
        for part in (spelled, *CUT.split(spelled)):
            found.add(_letters(part.strip(" .?!:")))
    return frozenset(found)


def has_power(tree: Node) -> bool:
    return any(
        (part.op == "pow" and rational(part) and not is_power_of_ten(part)) or is_power_of_ten(part)
        for part in parts_of(tree)
        if part.op == "pow" and rational(part)
    )


def power_stands(tree: Node, problem: str) -> bool:
    """Whether a power of two numbers is the problem's own: both stand in it, and so do words or a sign for a power."""
    if not POWER_WORDS.search(problem):
        return False
    if is_scientific(tree):
        return False
    numbers = set(re.findall(r"\d+(?:\.\d+)?", problem))
    squares = {"2"} if re.search("squar", problem, re.I) else set()
    squares |= {"3"} if re.search(r"\bcub", problem, re.I) else set()
    for part in parts_of(tree):
        if part.op == "pow" and rational(part):
            base, exponent = part.args[0], part.args[1]
            while exponent.op == "neg":
                exponent = exponent.args[0]
            if (
                base.op == "num"
                and exponent.op == "num"
                and base.text in numbers
                and exponent.text in numbers | squares
            ):
                return True
    return False
