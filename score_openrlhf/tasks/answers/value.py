"""A tree in; its value out: exact where it is rational, else to 60 digits.

Nothing large is ever computed: what goes beyond a limit has no value, and is no answer.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import Any, TypeAlias

import mpmath

from score_openrlhf.tasks.answers.expression import Node

DIGITS = 60
MAX_BITS = 1 << 14  # of an exact value
MAX_EXPONENT = 10**7  # of the magnitude of any value, as a power of two
MAX_ARGUMENT = 10**6  # of a factorial or binomial
Value: TypeAlias = Any  # Fraction, mpmath.mpf or mpmath.mpc, whose classes mpmath makes while it is imported


class NoValue(Exception):
    """The expression has no value: undefined, too large, or an operation that is not worked out here."""


def value_of(tree: Node, symbols: dict[str, Fraction] | None = None) -> Value:
    """The value of `tree` with `symbols` at the given points; `NoValue` if it has none."""
    with mpmath.workdps(DIGITS):
        try:
            return _value(tree, symbols or {})
        except (ArithmeticError, ValueError, TypeError, mpmath.libmp.NoConvergence) as error:
            raise NoValue(str(error)) from error


def symbols_of(tree: Node) -> set[str]:
    """The names of the symbols in `tree`."""
    if tree.op == "sym":
        return {tree.text}
    return {name for part in tree.args if isinstance(part, Node) for name in symbols_of(part)}


def has_unknown(tree: Node) -> bool:
    """Whether a function known by its name alone, `f(2)`, is in `tree`."""
    return (tree.op == "fn" and tree.text.endswith("()")) or any(
        has_unknown(p) for p in tree.args if isinstance(p, Node)
    )


def is_power_of_ten(tree: Node) -> bool:
    return tree.op == "pow" and tree.args[0].op == "num" and tree.args[0].text == "10" and not symbols_of(tree)


def as_float(value: Value) -> mpmath.mpf | mpmath.mpc:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            return as_float(value)
        return value
    if isinstance(value, int):
        return Fraction(value)
    if mpmath.isnan(value):
        raise NoValue("undefined")
    return value


def _value(tree: Node, symbols: dict[str, Fraction]) -> Value:
    op, args = tree.op, tree.args
    if op in ("num", "mixed"):
        return args[0]
    if op == "sym":
        return symbols[tree.text]
    if op == "const":
        if tree.text == "oo":
            return mpmath.inf
        return {"pi": mpmath.pi, "e": mpmath.e, "i": mpmath.mpc(0, 1), "deg": mpmath.pi / 180}[tree.text] * mpmath.mpf(
            1
        )
    if op == "big":
        raise NoValue("left to be worked out")
    if op == "fn" and tree.text.endswith("()"):
        return _unknown(tree, symbols)
    values = [_value(part, symbols) for part in args]
    return _bounded(_operation(op, tree.text, values))


def _operation(op: str, name: str, values: list[Value]) -> Value:
    exact = all(isinstance(value, Fraction) for value in values)
    if not exact:
        values = [as_float(value) for value in values]
    if op == "add":
        return sum(values[1:], values[0])
    if op == "neg":
        return -values[0]
    if op == "mul":
        product = values[0]
        for value in values[1:]:
            product = product * value
        return product
    if op == "div":
        return values[0] / values[1]
    if op == "pow":
        return _power(*values)
    if op == "root":
        return _root(*values)
    if op == "abs":
        return abs(values[0])
    if op in ("fact", "binom"):
        if not all(isinstance(v, Fraction) and v.denominator == 1 and abs(v) <= MAX_ARGUMENT for v in values):
            raise NoValue(f"{op} of what is no whole number up to {MAX_ARGUMENT}")
        return mpmath.factorial(int(values[0])) if op == "fact" else mpmath.binomial(*(int(v) for v in values))
    return _function(name, values)


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent.numerator)
        if bits <= MAX_BITS:
            return base ** int(exponent)
        if bits > MAX_EXPONENT:
            raise NoValue("too large")
        return as_float(base) ** int(exponent)
    base, exponent = as_float(base), as_float(exponent)
    if mpmath.isinf(base) or mpmath.isinf(exponent):
        raise NoValue("a power of infinity")
    if base != 0 and abs(exponent) * (abs(mpmath.log(abs(base), 2)) + 1) > MAX_EXPONENT:
        raise NoValue("too large")
    return base**exponent


def _root(radicand: Value, degree: Value) -> Value:
    if not isinstance(degree, Fraction):
        if degree != int(degree.real):
            raise NoValue("a root of this degree")
        degree = Fraction(int(degree.real))
    if degree.denominator != 1 or not 1 < degree <= 1000:
        raise NoValue("a root of this degree")
    n = int(degree)
    if isinstance(radicand, Fraction):
        negative = radicand < 0
        if not negative or n % 2:
            parts = [_whole_root(abs(part), n) for part in (radicand.numerator, radicand.denominator)]
            top, bottom = parts
            if top is not None and bottom is not None:
                return Fraction(-top if negative else top, bottom)
        radicand = as_float(radicand)
        if negative and n % 2:
            return -mpmath.root(-radicand, n)
    if n % 2 and not isinstance(radicand, mpmath.mpc) and radicand < 0:
        return -mpmath.root(-radicand, n)
    return mpmath.root(radicand, n)


def _whole_root(value: int, n: int) -> int | None:
    root = int(mpmath.nint(mpmath.root(value, n))) if value.bit_length() < 180 else None
    return root if root is not None and root**n == value else None


def _function(name: str, values: list[Value]) -> Value:
    exact = values
    values = [as_float(value) for value in values]
    if any(mpmath.isinf(value) for value in values):
        raise NoValue("a function of infinity")
    if name in ("floor", "ceil"):
        return Fraction(int(getattr(mpmath, name)(values[0])))
    if name in ("gcd", "lcm", "max", "min", "mod") and all(isinstance(v, Fraction) for v in exact) and len(exact) > 1:
        if name in ("max", "min"):
            return {"max": max, "min": min}[name](exact)
        if name == "mod":
            return exact[0] % exact[1]
        if all(v.denominator == 1 for v in exact):
            return Fraction(getattr(math, name)(*(int(v) for v in exact)))
    if name in ("log", "ln", "lg"):
        if len(values) == 2:
            return mpmath.log(values[0]) / mpmath.log(values[1])
        return mpmath.log(values[0])
    known = {
        "arcsin": mpmath.asin,
        "arccos": mpmath.acos,
        "arctan": mpmath.atan,
        "Re": mpmath.re,
        "Im": mpmath.im,
        "arg": mpmath.arg,
    }
    trigonometric = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
    function = known.get(name) or (getattr(mpmath, name) if name in trigonometric else None)
    if function is None or len(values) != 1 or abs(values[0]) > 10**12:
        raise NoValue(f"{name} of this")
    return function(values[0])


def _unknown(tree: Node, symbols: dict[str, Fraction]) -> Value:
    """A function known by its name alone: some fixed smooth function, another one for another name."""
    seed = int.from_bytes(hashlib.sha256(tree.text.encode()).digest()[:4], "big")
    total = mpmath.mpf(seed % 997) / 991
    for place, part in enumerate(tree.args):
        total += mpmath.sin(as_float(_value(part, symbols)) * (1 + place) + seed % 89)
    return total
