"""A stated answer, the gold answer and the problem in; right or wrong, why, and what made it so, out."""

from __future__ import annotations

from score_openrlhf.errors import UserError
from score_openrlhf.tasks.answers.choice import CHOSEN, LETTER, OPTION, choice_answer, unmarked
from score_openrlhf.tasks.answers.collection import (
    in_order,
    interval_answer,
    list_answer,
    matrix_answer,
    set_answer,
    tuple_answer,
)
from score_openrlhf.tasks.answers.equations import chain_answer, equation_answer, inequality_answer
from score_openrlhf.tasks.answers.fallback import by_math_verify
from score_openrlhf.tasks.answers.leaf import Answer, as_words
from score_openrlhf.tasks.answers.quantities import base_answer, colon_answer, value_answer
from score_openrlhf.tasks.answers.reading import readings
from score_openrlhf.tasks.answers.spelling import spell, squeezed
from score_openrlhf.tasks.answers.verdict import YES, Context, Verdict

MAX_STATED_DEPTH = 24
MAX_STATED_CHARS = 1500  # a longer statement is a text, not an answer


def judge(stated: str, gold: str, problem: str = "", unevaluated: str = "wrong") -> Verdict:
    """Whether the statement `stated` is the answer `gold` to `problem`; UserError for a gold with nothing in it.

    `unevaluated`: "wrong" refuses expressions that are left to be worked out, "right" goes by value alone.
    """
    golds = readings(gold)
    if not golds:
        raise UserError(f"gold answer {gold!r} holds nothing to compare with; correct the row or leave it out")
    excess = too_much(stated, gold)
    if excess:
        return Verdict(False, excess)
    spelled, spelled_gold = spell(stated), spell(gold)
    if squeezed(spelled) == squeezed(spelled_gold) and squeezed(spelled):
        return Verdict(True, "the same text")
    context = Context(compare, problem, spelled_gold, unevaluated)
    letter = LETTER.fullmatch(as_words(spelled_gold).upper()) if len(squeezed(spelled_gold)) <= 3 else None
    if letter and squeezed(spelled_gold).strip("()").isupper():
        return choice_answer(spelled, letter[1], context)
    option = CHOSEN.fullmatch(unmarked(spelled))
    if option and option[3] and OPTION.search(problem):  # "C. 42" where 42 is asked for: the letter must fit too
        verdict = choice_answer(spelled, (option[1] or option[2]).upper(), context)
        return judge(option[3], gold, problem, unevaluated) if verdict.right else verdict
    best: Verdict | None = None
    for answer in readings(stated):
        for one in golds:
            verdict = compare(one, answer, context)
            if verdict.right:
                return verdict
            best = best or verdict
    return best or Verdict(False, "nothing in it")


def too_much(stated: str, gold: str) -> str | None:
    """Why a statement is a text and no answer: far longer or deeper than any. Such ones are not read at all."""
    if len(stated) > max(MAX_STATED_CHARS, 2 * len(gold)):
        return f"{len(stated)} characters are no answer; at most {MAX_STATED_CHARS} count"
    depth = deepest = 0
    for char in stated:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return (
        f"brackets {deepest} deep are no answer; at most {MAX_STATED_DEPTH} count"
        if deepest > MAX_STATED_DEPTH
        else None
    )


def compare(gold: Answer, answer: Answer, context: Context) -> Verdict:
    """One reading of gold against one reading of the statement."""
    if answer.kind == "chain" and gold.kind != "chain":
        return chain_answer(gold, answer, context)
    if gold.kind == "chain":
        return equation_answer(gold, answer, context)
    if gold.kind == "other":
        return by_math_verify(gold.text, answer.text)
    if answer.kind == "other":
        return Verdict(False, f"cannot be read: {answer.why}")
    return COMPARERS[gold.kind](gold, answer, context)


def words_answer(gold: Answer, answer: Answer, context: Context) -> Verdict:
    if gold.parts:  # several numbers among words: the same words and numbers in the same order
        if answer.kind == "words" and len(answer.parts) == len(gold.parts):
            return in_order(gold.parts, answer.parts, context)
        return Verdict(False, "other words")
    if answer.kind == "set" and not answer.parts:
        return Verdict(False, "other words")
    if answer.kind != "words" or answer.parts:
        one = answer.text if answer.kind != "value" else ""
        return Verdict(bool(one) and as_words(one) == as_words(gold.text), "other words")
    return YES if answer.brackets == gold.brackets else Verdict(False, "other words")


COMPARERS = {
    "value": value_answer,
    "words": words_answer,
    "list": list_answer,
    "set": set_answer,
    "tuple": tuple_answer,
    "interval": interval_answer,
    "union": interval_answer,
    "matrix": matrix_answer,
    "colon": colon_answer,
    "base": base_answer,
    "inequality": inequality_answer,
}
