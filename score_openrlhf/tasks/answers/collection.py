"""Lists, sets, tuples, vectors, matrices and intervals against gold ones, by their kind; right or wrong out."""

from __future__ import annotations

import re

from score_openrlhf.tasks.answers.leaf import Answer
from score_openrlhf.tasks.answers.spelling import squeezed
from score_openrlhf.tasks.answers.verdict import Context, Verdict

ORDER = re.compile(
    r"\b(?:order(?:ed)?|increasing|decreasing|ascending|descending|respectively|least to greatest|greatest to least|"
    r"smallest to largest|largest to smallest)\b",
    re.I,
)
POINT = re.compile(
    r"\b(?:points?|coordinates?|ordered (?:pair|triple)s?|vectors?|vertex|midpoint|intersect\w*)\b", re.I
)


def in_order(golds: tuple[Answer, ...], answers: tuple[Answer, ...], context: Context) -> Verdict:
    notes: set[str] = set()
    if len(golds) != len(answers):
        return Verdict(False, f"{len(answers)} parts where there are {len(golds)}")
    for gold, answer in zip(golds, answers, strict=True):
        verdict = context.compare(gold, answer, context)
        if not verdict.right:
            return Verdict(False, f"{answer.text}: {verdict.why}")
        notes |= verdict.notes
    return Verdict(True, "the same parts", frozenset(notes))


def _any_order(golds: tuple[Answer, ...], answers: tuple[Answer, ...], context: Context) -> Verdict:
    left = list(answers)
    notes: set[str] = set()
    if len(golds) != len(answers):
        return Verdict(False, f"{len(answers)} answers where there are {len(golds)}")
    for gold in golds:
        for answer in left:
            verdict = context.compare(gold, answer, context)
            if verdict.right:
                left.remove(answer)
                notes |= verdict.notes
                break
        else:
            return Verdict(False, f"{gold.text} is not among the answers")
    return Verdict(True, "the same answers", frozenset(notes))


def _distinct(answers: tuple[Answer, ...], context: Context) -> tuple[Answer, ...]:
    kept: list[Answer] = []
    for answer in answers:
        if not any(
            context.compare(one, answer, context._replace(unevaluated="right", gold_text="")).right for one in kept
        ):
            kept.append(answer)
    return tuple(kept)


def list_answer(gold: Answer, answer: Answer, context: Context) -> Verdict:
    golds = gold.parts
    if answer.kind == "union":
        return interval_answer(gold, answer, context)
    if answer.kind == "matrix":
        return Verdict(False, "a matrix where a list is the answer")
    if answer.kind not in ("list", "set", "tuple"):
        return Verdict(False, f"one answer where there are {len(golds)}")
    if (
        "or" in answer.brackets.split()
        and "or" not in gold.brackets.split()
        and not re.search(r"\b(?:solve|roots?|solutions?|values?|zeros|all)\b|^\w?$", context.problem, re.I)
    ):
        return Verdict(False, "a choice left open")
    if answer.kind == "tuple" or (ORDER.search(context.problem) and answer.kind == "list"):
        return in_order(golds, answer.parts, context)
    return _any_order(golds, answer.parts, context)


def set_answer(gold: Answer, answer: Answer, context: Context) -> Verdict:
    if answer.kind == "tuple" or answer.kind == "interval":
        return Verdict(False, "a tuple or interval where a set is the answer")
    if answer.kind == "value" and len(gold.parts) == 1:
        return context.compare(gold.parts[0], answer, context)
    if answer.kind not in ("set", "list"):
        return Verdict(False, f"{answer.kind} where a set is the answer")
    return _any_order(_distinct(gold.parts, context), _distinct(answer.parts, context), context)


def tuple_answer(gold: Answer, answer: Answer, context: Context) -> Verdict:
    if (gold.brackets == "[]" and len(gold.parts) == 2) or answer.kind in ("interval", "union"):
        return interval_answer(gold, answer, context)
    if answer.kind == "matrix":
        rows, columns = answer.brackets.rstrip("|").split("x")
        return in_order(gold.parts, answer.parts, context) if "1" in (rows, columns) else Verdict(False, "a matrix")
    if answer.kind == "list" or (answer.kind == "tuple" and answer.brackets == gold.brackets):
        return in_order(gold.parts, answer.parts, context)
    return Verdict(False, f"{answer.kind} where a tuple is the answer")


def matrix_answer(gold: Answer, answer: Answer, context: Context) -> Verdict:
    rows, columns = gold.brackets.rstrip("|").split("x")
    if answer.kind == "matrix":
        if answer.brackets != gold.brackets:
            return Verdict(False, f"{answer.brackets} where it is {gold.brackets}")
        return in_order(gold.parts, answer.parts, context)
    if answer.kind == "tuple" and "1" in (rows, columns):
        return in_order(gold.parts, answer.parts, context)
    return Verdict(False, f"{answer.kind} where a matrix is the answer")


def _spans(answer: Answer) -> list[tuple[Answer, str, Answer, str]] | None:
    """The intervals of a reading, each `(low, "(" or "[", high, ")" or "]")`; None if it is none of intervals."""
    if answer.kind == "value" and squeezed(answer.text) in (r"\mathbb{R}",):
        return None
    if answer.kind in ("interval", "tuple") and len(answer.parts) == 2 and answer.brackets[:1] in ("(", "["):
        return [(answer.parts[0], answer.brackets[0], answer.parts[1], answer.brackets[1])]
    if answer.kind == "set":
        return [(part, "[", part, "]") for part in answer.parts]
    if answer.kind == "union" or (answer.kind == "list" and answer.parts):
        spans = []
        for part in answer.parts:
            inner = _spans(part)
            if inner is None:
                return None
            spans.extend(inner)
        return spans
    return None


def interval_answer(gold: Answer, answer: Answer, context: Context) -> Verdict:
    if gold.kind == "tuple" and answer.why == "inequality" and POINT.search(context.problem):
        return Verdict(False, "an inequality where a point is the answer")
    if answer.kind == "list" and gold.kind != "union":
        return Verdict(False, "several answers where an interval is the answer")
    golds, spans = _spans(gold), _spans(answer)
    if golds is None or spans is None:
        return Verdict(False, f"{answer.kind} where an interval is the answer")
    if len(golds) != len(spans):
        return Verdict(False, f"{len(spans)} intervals where there are {len(golds)}")
    left = list(spans)
    for low, opening, high, closing in golds:
        for span in left:
            if (
                (opening, closing) == (span[1], span[3])
                and context.compare(low, span[0], context).right
                and context.compare(high, span[2], context).right
            ):
                left.remove(span)
                break
        else:
            return Verdict(False, f"{opening}{low.text}, {high.text}{closing} is not among the intervals")
    return Verdict(True, "the same intervals")
