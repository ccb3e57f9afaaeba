"""Two answers that `reading.py` does not read, such as a derivative or a congruence; math-verify's verdict out.

math-verify is imported only here: it brings SymPy and takes half a second, and few gold answers need it.
"""

from __future__ import annotations

import functools
import re

from score_openrlhf.tasks.answers.spelling import DROW, WORD, squeezed
from score_openrlhf.tasks.answers.verdict import YES, Verdict

MAX_CHARS = 300
# What SymPy would compute for ever, or for longer than a deadline: towers of powers, large exponents and factorials.
LARGE = re.compile(r"\^\s*\{?[^{}]*\^|\^\s*\{?\s*-?\d{4,}|\d{4,}\s*!|!\s*!|\d{60,}")


def by_math_verify(gold: str, answer: str) -> Verdict:
    """The same text, or the same to math-verify; expressions beyond what SymPy can be asked for are not."""
    if squeezed(gold) == squeezed(answer):
        return YES
    if len(answer) > MAX_CHARS or LARGE.search(answer) or LARGE.search(gold):
        return Verdict(False, "not the gold text")
    parsed = [_parsed(text) for text in (gold, answer)]
    if not all(parsed):
        return Verdict(False, "cannot be read")
    from math_verify import verify

    return Verdict(verify(*parsed, timeout_seconds=None), "as math-verify compares them")


@functools.lru_cache(maxsize=512)
def _parsed(text: str) -> list:
    import logging

    from math_verify import LatexExtractionConfig, parse

    # Its own timeouts are signals, which only a main thread takes; the grading pool's deadline ends slow calls.
    for module in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(module).setLevel(logging.ERROR)
    latex = text.replace(WORD, r"\text{").replace(DROW, "}").replace("*", r"\cdot ")
    return [
        one for one in parse(f"${latex}$", [LatexExtractionConfig()], parsing_timeout=None) if not isinstance(one, str)
    ]
