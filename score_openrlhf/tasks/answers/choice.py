"""A gold letter and what was chosen; right or wrong out."""

from __future__ import annotations

import re

from score_openrlhf.tasks.answers.reading import readings
from score_openrlhf.tasks.answers.spelling import DROW, WORD, spell, squeezed
from score_openrlhf.tasks.answers.verdict import YES, Context, Verdict

LETTER = re.compile(r"\(?\s*([A-Z])\s*\)?")
CHOSEN = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)\s*(?:is)?\s*:?\s*)?"
    r"(?:[(\[]\s*([A-Za-z])\s*[)\]]|([A-Z]))(?:\s*[.):,=]|(?=\s)|$)\s*(.*)",
    re.S | re.I,
)
OPTION = re.compile(
    r"(?:[(\[]\s*([A-H])\s*[)\]]|(?<![A-Za-z])([A-H])[.):])\s*(.*?)"
    r"(?=\s*(?:[(\[]\s*[A-H]\s*[)\]]|(?<![A-Za-z(])[A-H][.):])|$)",
    re.S,
)


def unmarked(spelled: str) -> str:
    return " ".join(re.sub(f"[{WORD}{DROW}]", " ", spelled).split())


def choice_answer(spelled: str, letter: str, context: Context) -> Verdict:
    """A gold letter: `C`, `(C)`, `C. 42`, `option C`; what follows must be that option's own text."""
    text = unmarked(spelled)
    match = CHOSEN.fullmatch(text)
    if not match:
        return Verdict(False, "no choice of one letter")
    chosen, rest = match[1] or match[2], match[3].strip(" .")
    if chosen.upper() != letter:
        return Verdict(False, f"{chosen} where it is {letter}")
    if not match[1] and chosen.islower() and len(text) > 1:
        return Verdict(False, "no choice of one letter")
    if not rest:
        return YES
    options = {m[1] or m[2]: m[3].strip(" .,;") for m in OPTION.finditer(context.problem)}
    if letter in options:
        own = readings(options[letter])
        verdicts = [
            context.compare(o, r, context._replace(gold_text=spell(options[letter]), unevaluated="right"))
            for o in own
            for r in readings(rest)
        ]
        same_text = squeezed(spell(options[letter])) == squeezed(spell(rest))
        return (
            Verdict(True, "the letter and its option")
            if same_text or any(v.right for v in verdicts)
            else Verdict(False, f"{letter} with another option's text")
        )
    if re.search(r"(?<![A-Za-z])[A-Z](?![A-Za-z])|\b(?:or|and|not)\b", rest):
        return Verdict(False, "several choices")
    return Verdict(True, "the letter")
