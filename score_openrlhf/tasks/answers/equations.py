"""Chains of equalities, equations and inequalities against a gold answer; right or wrong out."""

from __future__ import annotations

import re
from fractions import Fraction

from score_openrlhf.tasks.answers.agreement import POINTS, same_value
from score_openrlhf.tasks.answers.collection import in_order
from score_openrlhf.tasks.answers.expression import Node
from score_openrlhf.tasks.answers.leaf import Answer
from score_openrlhf.tasks.answers.repeats import repeats
from score_openrlhf.tasks.answers.spelling import spell, squeezed
from score_openrlhf.tasks.answers.value import NoValue, Value, has_unknown, symbols_of, value_of
from score_openrlhf.tasks.answers.verdict import YES, Context, Verdict


def chain_answer(gold: Answer, chain: Answer, context: Context) -> Verdict:
    """`a = b = c`: the last member counts, and members that have values must all have the same."""
    members = list(chain.parts)
    if members[-1].kind == "other":
        return Verdict(False, f"the end of the chain cannot be read: {members[-1].why}")
    if len(members) == 2 and _symbolic(members[1]) and _constant(members[0]) is not None and _is(members[1], "sym"):
        members.reverse()  # 5 = x
    values = [(member, _constant(member)) for member in members]
    known = [value for _, value in values if value is not None]
    if any(
        same_value(known[0], value, 9, None) == "no" and same_value(known[0], value, None, 9) == "no"
        for value in known[1:]
    ):
        return Verdict(False, "the chain is false: its members differ")
    last = members[-1]
    if repeats_text(chain.text, context):
        return Verdict(False, "the equation stands in the problem")
    if len(members) > 1 and members[0].kind == "words" and last.kind == "value" and not members[0].parts:
        label = frozenset(members[0].brackets.split()) - {"number"}
        last = last._replace(beside=last.beside._replace(label=last.beside.label | label))
    verdict = context.compare(gold, last, context)
    if (
        verdict.right
        and len(known) > 1
        and any(m.tree is not None and repeats(m.tree, m.text, context.problem) for m in members[:-1])
    ):
        verdict = verdict._replace(notes=verdict.notes | {"repeats"})
    return verdict


def repeats_text(text: str, context: Context) -> bool:
    """Whether an equation stands in the problem as it is; one that defines the asked value in it does not count."""
    pressed = squeezed(text)
    return (
        len(pressed) > 4
        and not re.fullmatch(r"[A-Za-z](?:_\{?\w+\}?)?=-?[\d./]+", pressed)
        and pressed in squeezed(spell(context.problem))
    )


def _constant(answer: Answer) -> Value | None:
    if (
        answer.kind != "value"
        or answer.tree is None
        or symbols_of(answer.tree)
        or answer.beside.units
        or has_unknown(answer.tree)
    ):
        return None
    try:
        return value_of(answer.tree)
    except NoValue:
        return None


def _symbolic(answer: Answer) -> bool:
    return answer.kind == "value" and answer.tree is not None and bool(symbols_of(answer.tree))


def equation_answer(gold: Answer, answer: Answer, context: Context) -> Verdict:
    """A gold equation: an assignment `x = 5` may be answered by its right side, others by an equation like it."""
    left, right = gold.parts[0], gold.parts[-1]
    assigns = (
        (left.kind == "value" and _is(left, "sym"))
        or left.kind == "words"
        or (left.kind == "value" and _is(left, "fn"))
    )
    if answer.kind != "chain":
        if assigns:
            return context.compare(right, answer, context)
        return Verdict(False, f"{answer.kind} where an equation is the answer")
    if repeats_text(answer.text, context) and _symbolic(right):
        return Verdict(False, "the equation stands in the problem")
    if len(answer.parts) == 2 and len(gold.parts) == 2:
        sides = [*gold.parts, *answer.parts]
        if all(side.kind == "value" and not side.beside.units for side in sides):
            try:
                return YES if _proportional(gold, answer) else Verdict(False, "another equation")
            except NoValue:
                pass
    own = answer.parts[0]
    if assigns and left.kind == own.kind and squeezed(left.text) != squeezed(own.text) and own.kind != "words":
        return Verdict(False, f"{own.text} where {left.text} is asked for")
    return context.compare(right, answer.parts[-1], context) if assigns else Verdict(False, "another equation")


def _proportional(gold: Answer, answer: Answer) -> bool:
    """Whether two equations are multiples of one another: `2x - y + 3 = 0` and `y = 2x + 3`."""
    one, two = (Node("add", (side.parts[0].tree, Node("neg", (side.parts[1].tree,)))) for side in (gold, answer))
    if symbols_of(one) != symbols_of(two):
        return False
    ratio = Node("div", (one, two))
    names = sorted(symbols_of(one))
    first = value_of(ratio, {n: POINTS[0][i % 4] + Fraction(i // 4, 7) for i, n in enumerate(names)})
    for point in POINTS[1:]:
        here = value_of(ratio, {n: point[i % 4] + Fraction(i // 4, 7) for i, n in enumerate(names)})
        if same_value(first, here, None, None) == "no":
            return False
    return first != 0


def inequality_answer(gold: Answer, answer: Answer, context: Context) -> Verdict:
    if answer.kind != "inequality" or len(answer.parts) != len(gold.parts):
        return Verdict(False, "another inequality")
    flipped = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
    signs = answer.brackets.split()
    for parts, own in ((answer.parts, signs), (answer.parts[::-1], [flipped[sign] for sign in signs[::-1]])):
        if own == gold.brackets.split() and in_order(gold.parts, parts, context._replace(unevaluated="right")).right:
            return YES
    return Verdict(False, "another inequality")


def _is(answer: Answer, op: str) -> bool:
    return answer.tree is not None and answer.tree.op == op
