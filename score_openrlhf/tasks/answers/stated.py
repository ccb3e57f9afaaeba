"""A solution in words and LaTeX in; the answer it states, by its final-answer form or as its last expression, out."""

from __future__ import annotations

import re

from score_openrlhf.tasks.latex import BOX, last_boxed, read_argument

# The forms an answer is stated in, in the order in which they count. Within one form the last in the text counts.
CLOSING = re.compile(r"final answer is((?:(?!final answer is).)*?)I hope it['’]?s?(?: is)? correct", re.I | re.S)
HASHES = re.compile(r"####(.*)$", re.M)
PHRASE = re.compile(r"(?:(?i:\banswer\b[^.\n]{0,60}?(?:\bis\b|[:=]))|(?i:\bfinal answer)[*_ ]*$|^\s*A:)[*_:\s]*", re.M)
# What follows such a phrase: math in delimiters, with any newlines and full stops in it, then to the sentence's end.
SENTENCE = re.compile(
    r"(\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)|\$[^$]*\$)?(?:(?!(?<![\s.][ap])(?<![ap]\.m)[.!?](?:\s|\*|$)|\n).)*", re.S
)
MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
# A run of numbers, signs and commands in prose, with the words and signs of equality that end it.
RUN = re.compile(
    r"(?:\\[A-Za-z]+\s*|[\d+\-*/^(){}\[\]=!%×÷·−√π$]|\d[.,]|[.,](?=\d)"
    r"|(?<![A-Za-z])[a-zA-Z](?![A-Za-z'’])|\bsqrt\b|(?<=\S) (?=\S))+"
)


def stated_answer(text: str) -> str | None:
    """The answer in the last final-answer form of `text`; None if it has no such form, "" if the form is empty.

    Forms, in this order: "The final answer is ... I hope it is correct" (Minerva's and SCoRe's), `\\boxed{...}`,
    `#### ...` (GSM8K's), and "the answer is ...", "Answer: ...", "A: ..." up to the end of the sentence.
    """
    closing = CLOSING.findall(text)
    if closing:
        content = closing[-1].strip().removeprefix(":").strip()
        boxed = last_boxed(content)
        return _strip(content if boxed is None else boxed)
    boxed = last_boxed(text)
    if boxed is not None:
        return _strip(boxed)
    hashes = HASHES.findall(text)
    if hashes:
        return _strip(hashes[-1])
    phrases = list(PHRASE.finditer(text))
    if phrases:
        sentence = SENTENCE.match(text, phrases[-1].end())
        assert sentence is not None  # it may be empty
        return _strip(sentence.group())
    return None


def last_expression(text: str) -> str | None:
    """The last expression of a text without a final-answer form: its last formula, or its last run of numbers.

    A text that is one line without a sentence, `3/4 cup` or `18 - 13`, is the answer itself; None where nothing is.
    """
    text = text.strip()
    math = list(MATH.finditer(text))
    runs = [
        match for match in RUN.finditer(text, math[-1].end() if math else 0) if re.search(r"\d|\\[A-Za-z]", match[0])
    ]
    if runs:
        run = runs[-1]
        after = text[run.end() :]
        expression = run[0].strip(" ,.")
        if expression.endswith("=") and re.match(r"\s*\S", after):
            return f"{expression} {after.strip()[:80]}"  # an equation whose other side is words
        return re.sub(r"^[\s(=]*(?=[^()]*$)", "", expression)
    return math[-1][math[-1].lastindex or 0] if math else None


def several_stated(text: str) -> bool:
    """Whether the text states more than one thing in the form that counts: two boxes or closings that differ."""
    for found in (
        CLOSING.findall(text),
        [argument[0] for box in BOX.finditer(text) if (argument := read_argument(text, box.end()))],
        HASHES.findall(text),
    ):
        if found:
            return len({"".join(one.split()).strip("$.*") for one in found}) > 1
    return False


def _strip(content: str) -> str:
    """The content of a form without the spaces, emphasis and full stop around it; "" if only delimiters are left."""
    content = content.strip().strip("*").strip()
    if not re.search(r"[ap]\.\s?m\.$", content):
        content = content.removesuffix(".").strip()
    return "" if not content.strip("$ \\()[]{}.") else content
