"""A tree in; what shape it has, by what is written and not by value, out."""

from __future__ import annotations

import math
from collections.abc import Iterator

from score_openrlhf.tasks.answers.expression import Node
from score_openrlhf.tasks.answers.value import is_power_of_ten, symbols_of


def parts_of(tree: Node) -> Iterator[Node]:
    yield tree
    for part in tree.args:
        if isinstance(part, Node):
            yield from parts_of(part)


def integer(tree: Node) -> bool:
    while tree.op == "neg":
        tree = tree.args[0]
    return tree.op == "num" and tree.args[0].denominator == 1


def rational(tree: Node) -> bool:
    return not symbols_of(tree) and all(
        part.op in ("num", "mixed", "add", "neg", "mul", "div") or (part.op == "pow" and integer(part.args[1]))
        for part in parts_of(tree)
    )


def is_scientific(tree: Node) -> bool:
    """Whether `tree` is a number in scientific form, `6.63 * 10^{-34}`."""
    return tree.op == "mul" and len(tree.args) == 2 and tree.args[0].op == "num" and is_power_of_ten(tree.args[1])


def number_is(tree: Node, value: int) -> bool:
    return tree.op == "num" and tree.args[0] == value


def fraction(tree: Node) -> bool:
    while tree.op == "neg":
        tree = tree.args[0]
    return (tree.op == "div" and all(integer(part) for part in tree.args)) or tree.op == "mixed"


def reduced(tree: Node) -> bool:
    while tree.op == "neg":
        tree = tree.args[0]
    if tree.op != "div" or not all(part.op == "num" for part in tree.args):
        return tree.op == "mixed"
    return math.gcd(*(int(part.args[0]) for part in tree.args)) == 1


def product_of_sums(tree: Node) -> bool:
    return any(
        (part.op == "mul" and any(f.op == "add" or (f.op == "pow" and f.args[0].op == "add") for f in part.args))
        or (part.op == "pow" and part.args[0].op == "add")
        for part in parts_of(tree)
    )
