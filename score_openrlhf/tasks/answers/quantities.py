"""A number or expression with what stands beside it, against a gold one; right or wrong out."""

from __future__ import annotations

import re
from fractions import Fraction

from score_openrlhf.tasks.answers.agreement import same
from score_openrlhf.tasks.answers.beside import asked_units
from score_openrlhf.tasks.answers.expression import Node, num
from score_openrlhf.tasks.answers.leaf import Answer
from score_openrlhf.tasks.answers.spelling import squeezed, without_thousands
from score_openrlhf.tasks.answers.units import UNITS, conversion, same_units
from score_openrlhf.tasks.answers.value import NoValue, value_of
from score_openrlhf.tasks.answers.verdict import YES, Context, Verdict
from score_openrlhf.tasks.answers.workings import unfinished

_DIRECTIONS = """
    north south east west northeast northwest southeast southwest left right up down clockwise
    counterclockwise forward backward even odd
"""
DIRECTIONS = frozenset(_DIRECTIONS.split())
PERCENT = re.compile(r"%|percent", re.I)
BASES = re.compile(r"\bbase\b|_\{?\d", re.I)


def value_answer(gold: Answer, answer: Answer, context: Context) -> Verdict:
    if answer.kind == "set" and len(answer.parts) == 1:
        return value_answer(gold, answer.parts[0], context)
    if answer.kind in ("list", "tuple", "set"):
        verdicts = [context.compare(gold, part, context) for part in answer.parts]
        grouped = without_thousands(answer.text) != answer.text  # 111,111 is a number, not 111 twice
        if answer.kind == "list" and not grouped and verdicts and all(verdict.right for verdict in verdicts):
            return Verdict(True, "the same answer several times", frozenset({"several"}))
        return Verdict(False, f"{len(answer.parts)} answers where there is one")
    if answer.kind == "base" and BASES.search(context.problem):
        digits = answer.brackets.split()[0]
        return YES if digits == squeezed(gold.text) else Verdict(False, "another number")
    if answer.kind == "colon" and gold.beside.meridiem:
        return colon_answer(_as_clock(gold), answer, context)
    if answer.kind != "value":
        return Verdict(False, f"{answer.kind} where a value is the answer")
    beside, factor, notes = _surroundings(gold, answer, context)
    if beside:
        return Verdict(False, beside)
    assert answer.tree is not None and gold.tree is not None  # both are values
    if context.unevaluated == "wrong":
        left = unfinished(answer.tree, _core(answer), gold.tree, _core(gold), context.problem)
        if left:
            return Verdict(False, f"left to be worked out: {left}")
    for multiple in factor:
        tree = answer.tree if multiple == 1 else Node("mul", (answer.tree, num(multiple)))
        try:
            agreement = same(gold.tree, tree)
        except NoValue as error:
            return Verdict(False, f"has no value to compare: {error}")
        if agreement != "no":
            if agreement == "tolerance":
                notes |= {"tolerance"}
            if multiple != 1:
                notes |= {"unit"}
            return Verdict(True, "the same value", frozenset(notes))
    return Verdict(False, "another value")


def _core(answer: Answer) -> str:
    return (
        answer.text
        if answer.beside.empty and not answer.beside.label
        else re.sub(r"[^\d\s+\-*/^().{}\\a-z]", "", answer.text)
    )


def _surroundings(gold: Answer, answer: Answer, context: Context) -> tuple[str, list[Fraction], set[str]]:
    """What is wrong beside the numbers ("" if nothing), what the answer may be multiplied by, and notes."""
    g, a = gold.beside, answer.beside
    own, other = g.label | g.words, a.label | a.words
    if g.meridiem != a.meridiem and g.meridiem:
        return f"{a.meridiem or 'no'} m. where it is {g.meridiem}.m.", [], set()
    if g.label - other:
        return f"{', '.join(sorted(g.label - other))} is missing beside the number", [], set()
    if (own & DIRECTIONS) != (other & DIRECTIONS) and (own & DIRECTIONS or own or g.units):
        return "another direction or parity", [], set()
    if own and other and not (own <= other or other <= own):
        return f"{', '.join(sorted(other))} where it is {', '.join(sorted(own))}", [], set()
    if g.units and a.units:
        if same_units(g.units, a.units):
            return "", [Fraction(1)], set()
        if any(same_units(a.units, asked) for asked in asked_units(context.problem)):
            size = conversion(a.units, g.units)
            if size is not None:
                return "", [size], {"unit"}
        return f"{_unit_text(a)} where it is {_unit_text(g)}", [], set()
    if g.units:
        if other - own and not a.vague:
            return f"{', '.join(sorted(other))} where it is {_unit_text(g)}", [], set()
        percent = same_units(g.units, ((UNITS["percent"], 1),))
        return "", [Fraction(1), Fraction(100)] if percent else [Fraction(1)], set()
    if a.units:
        if own:
            return f"{_unit_text(a)} where it is {', '.join(sorted(own))}", [], set()
        if same_units(a.units, ((UNITS["percent"], 1),)):
            return "", [Fraction(1, 100)] + ([Fraction(1)] if PERCENT.search(context.problem) else []), set()
        for asked in asked_units(context.problem):
            if (
                not same_units(asked, a.units)
                and conversion(asked, a.units) is not None
                and not any(same_units(a.units, one) for one in asked_units(context.problem))
            ):
                return f"{_unit_text(a)} where another unit is asked for", [], set()
    return "", [Fraction(1)], set()


def _unit_text(answer_beside) -> str:
    return " ".join(unit.name if power == 1 else f"{unit.name}^{power}" for unit, power in answer_beside.units)


def _as_clock(answer: Answer) -> Answer:
    zero = Answer("value", "0", tree=num(0))
    return Answer("colon", answer.text, (answer._replace(beside=zero.beside), zero), brackets=answer.beside.meridiem)


def colon_answer(gold: Answer, answer: Answer, context: Context) -> Verdict:
    if answer.kind == "value" and answer.beside.meridiem:
        answer = _as_clock(answer)
    if answer.kind != "colon":
        return Verdict(False, f"{answer.kind} where a ratio or a time is the answer")
    if gold.brackets != answer.brackets and gold.brackets:
        return Verdict(False, f"{answer.brackets or 'no'} m. where it is {gold.brackets}.m.")
    numbers = [[int(value_of(part.tree)) for part in one.parts if part.tree] for one in (gold, answer)]
    return YES if numbers[0] == numbers[1] else Verdict(False, "another ratio or time")


def base_answer(gold: Answer, answer: Answer, context: Context) -> Verdict:
    digits = gold.brackets.split()[0]
    if answer.kind == "base":
        return YES if answer.brackets == gold.brackets else Verdict(False, "another number or base")
    if answer.kind == "value" and not answer.beside.units and squeezed(answer.text).upper() == digits:
        return YES
    return Verdict(False, "another number")
