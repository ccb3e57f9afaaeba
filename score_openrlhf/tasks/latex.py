"""LaTeX text in; its arguments, its boxes and its fractions in one spelling out. String work only, no parser."""

from __future__ import annotations

import re

TOKEN = re.compile(r"\\[A-Za-z]+|[A-Za-z0-9]")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
FRACTION = re.compile(r"\\[dtc]?frac(?![A-Za-z])")
BOX = re.compile(r"\\f?boxed(?![A-Za-z])|\\fbox(?![A-Za-z])")
BETWEEN_BOXES = re.compile(r"[\s$,;]*(?:and|or|\\text\{\s*(?:and|or)\s*\})?[\s$,;]*")


def read_argument(text: str, position: int, end: int | None = None) -> tuple[str, int] | None:
    """The LaTeX argument at `position` and the position after it; None if none starts there or it has no end.

    An argument is a brace group (given without its braces), a command such as `\\pi`, or one letter or digit.
    """
    end = len(text) if end is None else end
    while position < end and text[position].isspace():
        position += 1
    if position >= end:
        return None
    if text[position] != "{":
        token = TOKEN.match(text, position, end)
        return (token.group(), token.end()) if token else None
    depth = 0
    for brace in BRACE.finditer(text, position, end):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[position + 1 : brace.start()], brace.end()
    return None


def brace_fractions(text: str) -> str:
    """`text` with every fraction as `\\frac{a}{b}`; `\\frac12`, `\\dfrac1{72}`, `\\frac \\pi4` as TeX reads them."""
    for fraction in reversed(list(FRACTION.finditer(text))):  # inner ones first, so that they are done when copied
        numerator = read_argument(text, fraction.end())
        denominator = read_argument(text, numerator[1]) if numerator else None
        if numerator and denominator:
            braced = rf"\frac{{{numerator[0]}}}{{{denominator[0]}}}"
            text = text[: fraction.start()] + braced + text[denominator[1] :]
    return text


def last_boxed(text: str) -> str | None:
    """What stands in the last box of `text`; None without a box, "" for one that is empty or not closed.

    Boxes that only commas, dollars or "and" part (`\\boxed{1}$ and $\\boxed{2}`) are one answer: `1, 2`.
    """
    contents: list[str] = []
    next_start = -1
    for box in reversed(list(BOX.finditer(text))):
        argument = read_argument(text, box.end())
        if not contents:
            if argument is None or not argument[0].strip():
                return ""
        elif argument is None or not BETWEEN_BOXES.fullmatch(text, argument[1], next_start):
            break
        contents.insert(0, argument[0].strip())
        next_start = box.start()
    return ", ".join(contents) if contents else None
