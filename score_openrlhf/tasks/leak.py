"""A text and a gold answer in; the spans of the text that state the answer out, and whether a guidance leaks it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

from score_openrlhf.tasks.latex import read_argument

# Delimited math, the content in one of the groups: $$..$$, $..$, \(..\), \[..\].
MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# What separates one expression from the next inside math: a relation, a list, a connecting word.
SEPARATOR = re.compile(r"(?<![<>!\\])=|\\approx|\\equiv|[,;](?!\d{3}(?!\d))|\b(?:and|or)\b|\\text\{[^{}]*\}")
# 18, -3.5, 1,234, 3/4, 40%; not the 2 of x2, 2x or 1.2.3.
NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?(?!\w|[.,/]\d)")
COMMAND = re.compile(r"\\boxed|\\[dt]?frac|\\sqrt")
OPTIONAL_ARGUMENT = re.compile(r"\s*(?:\[[^\[\]]*\])?")
MIN_LITERAL_CHARS = 3  # a shorter gold text, `x` or `A`, is in almost any sentence and means nothing there

Span = tuple[int, int]


def states_answer(
    guidance: str,
    problem: str,
    attempt: str,
    answer: str,
    is_answer: Callable[[str], bool],
    is_stated: Callable[[str], bool] | None = None,
) -> bool:
    """Whether some expression in `guidance` is the answer and none in `problem` or `attempt` states it.

    `is_stated` is the stricter test for problem and attempt: the `18 - 13` of "What is $18 - 13$?" is worth the answer
    and does not state it. For the same reason an expression that the guidance copies from there is none of its own.
    """
    known = _compact(problem) + " " + _compact(attempt)
    own = _Own(is_answer, is_stated or is_answer, known)
    if not any(answer_spans(guidance, answer, own)):
        return False
    is_stated = is_stated or is_answer
    return not any(answer_spans(problem, answer, is_stated)) and not any(answer_spans(attempt, answer, is_stated))


class _Own:
    """Whether an expression is the answer, and if it has to be worked out, is not copied from what is known."""

    def __init__(self, is_answer: Callable[[str], bool], is_stated: Callable[[str], bool], known: str) -> None:
        self.is_answer, self.is_stated, self.known = is_answer, is_stated, known

    def __call__(self, expression: str) -> bool:
        return self.is_answer(expression) and (_compact(expression) not in self.known or self.is_stated(expression))


def _compact(text: str) -> str:
    return re.sub(r"[\s$]", "", text)


def answer_spans(text: str, answer: str, is_answer: Callable[[str], bool]) -> Iterator[Span]:
    """The spans `(start, end)` of `text` whose expression `is_answer`, and where `answer` itself stands as words.

    Each distinct expression is asked about once. Spans may overlap: `$x = 18$` has one for `18`; `\\boxed{18}` one for
    the box and its content.
    """
    verdicts: dict[str, bool] = {}
    for start, end, expression in expressions(text):
        if expression not in verdicts:
            verdicts[expression] = is_answer(expression)
        if verdicts[expression]:
            yield start, end
    literal = re.sub(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}", r"\1", answer).strip(" $.")
    if len(literal) >= MIN_LITERAL_CHARS:
        words = r"\s*".join(re.escape(word) for word in literal.split())
        for match in re.finditer(rf"(?<![\w.]){words}(?![\w]|\.\d)", text, re.IGNORECASE):
            yield match.span()


def expressions(text: str) -> Iterator[tuple[int, int, str]]:
    """The expressions of `text` as `(start, end, expression)`.

    They are: what stands in math delimiters, whole and split at relations and commas; LaTeX boxes, fractions and
    roots; and numbers and fractions of the prose between. A number inside a larger expression, the 18 of `$18x$`, is
    none.
    """
    end_of_math = 0
    for match in MATH.finditer(text):
        yield from _in_prose(text, end_of_math, match.start())
        group = match.lastindex or 0
        yield from _in_math(text, *match.span(group))
        end_of_math = match.end()
    yield from _in_prose(text, end_of_math, len(text))


def _in_math(text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    yield from _stripped(text, start, end)
    cuts = [match.span() for match in SEPARATOR.finditer(text, start, end)]
    for (_, piece_start), (piece_end, _) in itertools.pairwise([(start, start), *cuts, (end, end)] if cuts else []):
        yield from _stripped(text, piece_start, piece_end)


def _in_prose(text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    while start < end:
        command = COMMAND.search(text, start, end)
        for match in NUMBER.finditer(text, start, command.start() if command else end):
            yield match.start(), match.end(), match.group()
        if command is None:
            return
        start = command.end()
        for _ in range(2 if command.group().endswith("frac") else 1):
            optional = OPTIONAL_ARGUMENT.match(text, start)
            assert optional is not None  # it may be empty
            argument = read_argument(text, optional.end(), end)
            if argument is None:
                break
            content, start = argument
        else:
            yield command.start(), start, content if command.group() == "\\boxed" else text[command.start() : start]


def _stripped(text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    expression = text[start:end].strip(" \t\n.,;:")
    if expression:
        start = text.index(expression, start)
        yield start, start + len(expression), expression
