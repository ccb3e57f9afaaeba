"""A solution in words and LaTeX in; the answer it states, compared with gold by math-verify, out.

text -> stated_answer (the final-answer form) -> readings (SymPy expressions) -> verify against the readings of gold
"""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Basic, MatrixBase

from score_openrlhf.tasks.base import Grade, Task, Templates
from score_openrlhf.tasks.latex import brace_fractions, last_boxed

# math-verify's own timeouts are signals, which only a main thread can take; the grading pool kills slow calls instead.
# Its two warnings about that are for those who have no pool.
for module in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(module).setLevel(logging.ERROR)

FINAL_FORM = 'write it in the form "Final Answer: The final answer is $answer$. I hope it is correct."'

# The forms an answer is stated in, in the order in which they count. Within one form the last in the text counts.
CLOSING = re.compile(r"final answer is((?:(?!final answer is).)*?)I hope it['’]?s?(?: is)? correct", re.I | re.S)
HASHES = re.compile(r"####(.*)$", re.M)
PHRASE = re.compile(r"(?:(?i:\banswer\b[^.\n]{0,60}?(?:\bis\b|[:=]))|(?i:\bfinal answer)[*_ ]*$|^\s*A:)[*_:\s]*", re.M)
# What follows such a phrase: math in delimiters, with any newlines and full stops in it, then to the sentence's end.
SENTENCE = re.compile(r"(\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)|\$[^$]*\$)?(?:(?![.!?](?:\s|\*|$)|\n).)*", re.S)

DELIMITED = re.compile(r"\$.+?\$|\\\(.+?\\\)|\\\[.+?\\\]", re.S)
CURRENCY = re.compile(r"\\?\$(?=\d[\d,]*(?:\.\d+)?\s+[A-Za-z]{2,})")
THOUSANDS = re.compile(r"(?<=\d)(?:,\\!|\\!,|\{,\})(?=\d{3})")
PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*%?\s*percent\s*\}|percent\b)$")
# A number with words around it and nothing else: "18 dollars per day", "about 3/4 cups".
WORDS = r"(?:[A-Za-z'’-]{3,}[,:~≈]?)"
NUMBER_IN_WORDS = re.compile(
    rf"(?:{WORDS}\s+)*\\?\$?(?P<number>-?(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?(?:/\d+)?)(?:\s+{WORDS})*"
)
FUNCTIONS = re.compile(r"\b(?:sqrt|log|sin|cos|tan|cot|sec|csc|exp|arcsin|arccos|arctan|mod|not)\b", re.I)
IN_BASE = re.compile(r"[\dA-Fa-f]+_\{?(\d+)\}?")

LATEX = [LatexExtractionConfig()]
PLAIN = [ExprExtractionConfig()]
Reading = Any  # a SymPy expression, or the text itself where SymPy cannot read it


class MathTask(Task):
    """Mathematics with a final answer, graded by math-verify; prompts and final-answer form as in SCoRe.

    Kumar et al. 2024, arXiv 2409.12917, appendix: the zero-shot MATH prompt and the self-correction instruction.
    """

    name = "math"
    templates = Templates(
        system=None,
        attempt="You are a math expert. When you respond, respond only with the Solution of the final Problem, "
        f"thinking step by step. At the end of the Solution, when you give your final answer, {FINAL_FORM}"
        "\n\nProblem: {problem}",
        revision="A tutor has read the solution above and gives you this instruction:\n\n{guidance}\n\n"
        "There might be an error in the solution above. Follow the instruction where it helps, correct the error, if "
        "any, and rewrite the solution. Only output the final solution! At the end of the Solution, when you give "
        f"your final answer, {FINAL_FORM}",
        static_revision="There might be an error in the solution above because of lack of understanding of the "
        "question. Please correct the error, if any, and rewrite the solution. Only output the final solution! At the "
        f"end of the Solution, when you give your final answer, {FINAL_FORM}",
        guidance_system=None,
        guidance="You are a math tutor. A student has written a solution to a problem. Find where it first goes "
        "wrong, or what is most worth checking if nothing does.\n\nProblem: {problem}\n\n"
        "The student's solution: {attempt}\n\n"
        "Write one specific instruction to the student, in one or two sentences, about where in the solution to look "
        "and what to check or redo there. Do not solve the problem, do not state the answer or any corrected value, "
        "and do not write a solution.",
    )

    def stated_answer(self, text: str) -> str:
        """The content of the last final-answer form of `text`, or the whole text where it has none."""
        stated = stated_answer(text)
        return " ".join((text if stated is None else stated).split())

    def grade(self, text: str, answer: str) -> Grade:
        """The verdict on the answer that `text` states; `unparsable` if it states none that can be read.

        A text that uses none of the final-answer forms is read by math-verify's own rules, the last expression in it.
        A form with nothing in it (`The final answer is . I hope it is correct.`) states no answer: nothing else in the
        text is read in its place.
        """
        stated = stated_answer(text)
        if stated is None:
            predictions = parse(brace_fractions(text), parsing_timeout=None)
        else:
            predictions = readings(stated)
        if not predictions:
            return Grade("unparsable", "no answer in the text" if stated is None else "the final-answer form is empty")
        if stated is not None and _tidy(stated) == _tidy(_gold_text(answer)):
            return Grade("right")
        if _same(answer, stated, predictions):
            return Grade("right")
        if not any(isinstance(prediction, Basic | MatrixBase) for prediction in predictions):
            return Grade("unparsable", f"cannot be read as mathematics: {str(predictions[0])[:200]!r}")
        return Grade("wrong")

    def equals(self, expression: str, answer: str) -> bool:
        return _same(answer, expression, readings(expression))


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
        return _strip(SENTENCE.match(text, phrases[-1].end()).group())
    return None


def readings(answer: str) -> list[Reading]:
    """What `answer`, the content of a final-answer form, can be read as; [] if it is empty."""
    answer = _tidy(answer)
    if not answer:
        return []
    if DELIMITED.search(answer):
        # math-verify takes the math that follows these words, and joins "$3$ and $5$" to a set.
        return parse(f"The answer is {answer}", LATEX, parsing_timeout=None)
    percent = PERCENT.search(answer)
    latex = f"${answer[: percent.start()]}$%" if percent and percent.start() > 0 else f"${answer}$"
    found = parse(latex, LATEX, parsing_timeout=None)
    number = NUMBER_IN_WORDS.fullmatch(answer)
    if number and not FUNCTIONS.search(answer):
        found = parse(number["number"], PLAIN, parsing_timeout=None) + found
    return found


def _strip(content: str) -> str:
    """The content of a form without the spaces, emphasis and full stop around it; "" if only delimiters are left."""
    content = content.strip().strip("*").strip().removesuffix(".").strip()
    return "" if not content.strip("$ \\()[]{}.") else content


def _tidy(answer: str) -> str:
    """One spelling of an answer: no currency signs, thin spaces or outer delimiters, and braced fractions."""
    answer = THOUSANDS.sub("", CURRENCY.sub("", " ".join(answer.split()))).replace("\\!", "")
    answer = brace_fractions(answer)
    if answer.replace("\\$", "").count("$") % 2:
        answer = answer.replace("\\$", "").replace("$", "")
    whole = re.fullmatch(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\(([^$]+?)\\\)|\\\[([^$]+?)\\\]", answer)
    return (whole[whole.lastindex] if whole else answer).strip().removesuffix(".").strip()


def _gold_text(answer: str) -> str:
    """The gold answer itself: data sets store it bare or as a whole solution that ends in a final-answer form."""
    stated = stated_answer(answer)
    return answer if stated is None else stated


@functools.lru_cache(maxsize=4096)
def _gold_readings(answer: str) -> tuple[Reading, ...]:
    gold = tuple(readings(_gold_text(answer)))
    if not gold:
        raise ValueError(f"gold answer {answer!r} holds nothing to compare with; correct the row or leave it out")
    return gold


def _same(answer: str, stated: str | None, predictions: list[Reading]) -> bool:
    if stated is not None and _other_base(stated, _gold_text(answer)):
        return False
    return verify(list(_gold_readings(answer)), predictions, timeout_seconds=None)


def _other_base(stated: str, gold: str) -> bool:
    """Whether both name a number base and it is not the same one; math-verify drops the subscript of `2516_8`."""
    bases = [IN_BASE.fullmatch(_tidy(text)) for text in (stated, gold)]
    return all(bases) and bases[0].group(1) != bases[1].group(1)
