r"""An expression and the problem in; what it leaves to be worked out, by kind, out.

`18 - 13` is worth 5 and is no answer to "What is 18 - 13?". Fractions, radicals, multiples of pi, powers and
polynomials are answers. What is not is named here, unless the gold answer has the same kind of work in it.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

import mpmath

from score_openrlhf.tasks.answers.expression import Node
from score_openrlhf.tasks.answers.repeats import alike, has_power, power_stands, repeats
from score_openrlhf.tasks.answers.spelling import squeezed
from score_openrlhf.tasks.answers.trees import (
    fraction,
    integer,
    is_scientific,
    number_is,
    parts_of,
    product_of_sums,
    rational,
    reduced,
)
from score_openrlhf.tasks.answers.value import NoValue, symbols_of, value_of

NAMES = {
    "sum": "a sum of numbers",
    "product": "a product of numbers",
    "division": "a division",
    "power": "a power of the problem",
    "root": "a root that comes out even",
    "factorial": "a factorial",
    "binomial": "a binomial coefficient",
    "trivial": "a step that changes nothing",
    "absolute value": "an absolute value",
    "big": "a sum, integral or limit",
    "value": "an expression of a rational value",
    "repeats": "an expression of the problem",
    "expand": "factors where an expansion is asked for",
    "factor": "a sum where factors are asked for",
}


def unfinished(tree: Node, text: str, gold: Node | None, gold_text: str, problem: str) -> str | None:
    """What `tree`, written as `text`, leaves to be worked out, in words; None if it is an answer as it stands."""
    if squeezed(text) == squeezed(gold_text):
        return None
    kinds = work_in(tree)
    if gold is not None:
        kinds = kinds - work_in(gold)
    if tree.op != "num" and has_power(tree) and power_stands(tree, problem) and not (gold and has_power(gold)):
        kinds = kinds | {"power"}
    if repeats(tree, text, problem) and not alike(text, gold_text) and not (reduced(tree) and gold and fraction(gold)):
        kinds = kinds | {"repeats"}
    if gold is not None and symbols_of(gold):
        if re.search(r"\bexpand", problem, re.I) and product_of_sums(tree) and not product_of_sums(gold):
            kinds = kinds | {"expand"}
        if re.search(r"\bfactor", problem, re.I) and product_of_sums(gold) and tree.op == "add":
            kinds = kinds | {"factor"}
    if not kinds:
        return None
    return " and ".join(NAMES.get(kind, f"{kind} to be worked out") for kind in sorted(kinds))


def work_in(tree: Node) -> set[str]:
    """The kinds of work that `tree` leaves, such as {"sum", "factorial"}."""
    return _work(tree) | _whole(tree)


@functools.lru_cache(maxsize=4096)
def _work(tree: Node) -> set[str]:
    op, args = tree.op, tree.args
    kinds: set[str] = set()
    if is_scientific(tree):
        return kinds
    for part in args:
        if isinstance(part, Node):
            kinds |= _work(part)
    if op == "add":
        keys = [_key(term) for term in _terms(tree)]
        if len(set(keys)) < len(keys):
            kinds.add("sum")
        if any(number_is(term, 0) for term in args):
            kinds.add("trivial")
    elif op in ("mul", "div") and tree.text != "%":
        kinds |= _factors(tree)
    elif op == "neg" and args[0].op == "neg":
        kinds.add("trivial")
    elif op == "pow":
        if any(number_is(args[1], n) for n in (0, 1)):
            kinds.add("trivial")
        if args[0] == Node("const", (), "i"):
            kinds.add("power of i")
    elif op == "fact":
        kinds.add("factorial")
    elif op == "binom":
        kinds.add("binomial")
    elif op == "big":
        kinds.add("big")
    elif op == "abs" and not symbols_of(tree):
        kinds.add("absolute value")
    elif op == "fn" and not tree.text.endswith("()") and not symbols_of(tree):
        kinds.add(tree.text)
    return kinds


def _whole(tree: Node) -> set[str]:
    """Work that shows in the value: `\\sqrt{16}`, `(1+\\sqrt2)(1-\\sqrt2)` and `2\\pi/\\pi` are rational numbers."""
    if symbols_of(tree) or not _irrational_parts(tree):
        return {"root"} if any(_even_root(part) for part in parts_of(tree)) else set()
    if any(_even_root(part) for part in parts_of(tree)):
        return {"root"}
    try:
        value = value_of(tree)
    except NoValue:
        return set()
    if isinstance(value, Fraction):
        return {"value"}
    if isinstance(value, mpmath.mpc):
        if abs(value.imag) > mpmath.mpf(10) ** -40:
            return set()
        value = value.real
    if not mpmath.isfinite(value):
        return set()
    near = Fraction(int(mpmath.nint(value * 5040)), 5040) if abs(value) < 10**20 else None
    if (
        near is not None
        and abs(value - mpmath.mpf(near.numerator) / near.denominator) <= abs(value) * mpmath.mpf(10) ** -35
    ):
        return {"value"}
    return set()


def _irrational_parts(tree: Node) -> bool:
    return any(
        part.op in ("root", "fn")
        or (part.op == "const" and part.text not in ("i", "oo", "deg"))
        or (part.op == "pow" and part.args[1].op != "num" and not integer(part.args[1]))
        for part in parts_of(tree)
    )


def _even_root(tree: Node) -> bool:
    if tree.op not in ("root", "pow") or symbols_of(tree):
        return False
    if tree.op == "pow" and integer(tree.args[1]):
        return False
    try:
        value = value_of(tree)
        if tree.op == "pow":
            value = value if isinstance(value, Fraction) else Fraction(int(mpmath.nint(value.real)))
            return (
                value_of(tree.args[0]) == value ** (1 / value_of(tree.args[1])) if value and value < 10**6 else False
            )
    except (NoValue, ArithmeticError, AttributeError, TypeError, ValueError):
        return False
    return isinstance(value, Fraction)


def _terms(tree: Node) -> list[Node]:
    terms: list[Node] = []
    for term in tree.args:
        while term.op == "neg":
            term = term.args[0]
        terms.extend(_terms(term) if term.op == "add" else [term])
    return terms


def _key(term: Node) -> str:
    """What a term is a rational multiple of: "" for a number, the same text for `2\\pi` and `\\frac{\\pi}{3}`."""
    rest: list[str] = []
    for factor, power in _flat(term, 1):
        if not rational(factor):
            rest.append(f"{_plain(factor)}^{power}")
    return " ".join(sorted(rest))


def _flat(tree: Node, power: int):
    if tree.op == "neg":
        yield from _flat(tree.args[0], power)
    elif tree.op == "mul":
        for part in tree.args:
            yield from _flat(part, power)
    elif tree.op == "div":
        yield from _flat(tree.args[0], power)
        yield from _flat(tree.args[1], -power)
    elif tree.op == "pow" and tree.args[1].op == "num" and tree.args[1].args[0].denominator == 1:
        yield tree.args[0], power * int(tree.args[1].args[0])
    else:
        yield tree, power


def _plain(tree: Node) -> str:
    inner = " ".join(_plain(part) if isinstance(part, Node) else str(part) for part in tree.args)
    return f"({tree.op} {tree.text if tree.op in ('sym', 'const', 'fn') else ''} {inner})"


def _factors(tree: Node) -> set[str]:
    """The work in a product or quotient: several numbers above or below the line, or a division that comes out."""
    if is_scientific(tree):
        return set()
    above: list[Node] = []
    below: list[Node] = []
    pieces = [tree]
    above_line = {id(tree): True}
    while pieces:
        piece = pieces.pop()
        up = above_line[id(piece)]
        if piece.op == "neg" or piece.op == "mul":
            children = [(part, up) for part in piece.args]
        elif piece.op == "div":
            children = [(piece.args[0], up), (piece.args[1], not up)]
        else:
            if rational(piece):
                (above if up else below).append(piece)
            continue
        for child, side in children:
            above_line[id(child)] = side
            pieces.append(child)
    kinds: set[str] = set()
    if len(above) > 1 or len(below) > 1:
        kinds.add("product")
    if any(number_is(part, 1) for part in (*above, *below)) and (
        (tree.op == "mul" and len(tree.args) > 1 and any(number_is(part, 1) for part in tree.args))
        or any(number_is(part, 1) for part in below)
    ):
        kinds.add("trivial")
    if len(above) == 1 and len(below) == 1:
        if any(part.op != "num" or "." in part.text for part in (*above, *below)):
            if not all(part.op == "pow" or integer(part) for part in (*above, *below)):
                kinds.add("division")
        elif below[0].args[0] not in (0, 1) and above[0].args[0] % below[0].args[0] == 0:
            kinds.add("division")
    return kinds
