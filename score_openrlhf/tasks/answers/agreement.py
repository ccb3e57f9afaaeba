"""Two trees or values in; whether they are the same, exactly or as a rounded decimal, out."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import mpmath

from score_openrlhf.tasks.answers.expression import Node
from score_openrlhf.tasks.answers.value import DIGITS, NoValue, Value, as_float, is_power_of_ten, symbols_of, value_of

SAME = mpmath.mpf(10) ** -40  # two values that agree this well, relatively, are the same number
POINTS = (  # neither integers nor related to one another; both signs, for |x| is not x
    (Fraction(137, 100), Fraction(-261, 100), Fraction(73, 100), Fraction(191, 100)),
    (Fraction(-83, 100), Fraction(311, 100), Fraction(-57, 100), Fraction(229, 100)),
    (Fraction(269, 100), Fraction(43, 100), Fraction(173, 100), Fraction(-97, 100)),
)
# A decimal for a value that has no finite decimal: this many right decimals, or this relative closeness.
DECIMALS, RELATIVE = 6, Fraction(1, 10**6)
SMALL = Fraction(1, 100)  # below it only relative closeness counts
NOISE_DIGITS, NOISE = 15, Fraction(1, 10**12)  # what binary floats leave in the last digits
Same = Literal["exact", "tolerance", "no"]


def same(gold: Node, answer: Node) -> Same:
    """Whether two expressions are the same: at all points where they have symbols, else by value."""
    names = sorted(symbols_of(gold) | symbols_of(answer))
    if not names:
        return same_value(value_of(gold), value_of(answer), decimals_of(gold), decimals_of(answer))
    agreed = 0
    for point in POINTS:
        symbols = {name: point[i % 4] + Fraction(i // 4, 7) for i, name in enumerate(names)}
        pair = []
        for tree in (gold, answer):
            try:
                pair.append(value_of(tree, symbols))
            except NoValue:
                pair.append(None)
        if pair[0] is None and pair[1] is None:
            continue
        if pair[0] is None or pair[1] is None or not _close(*pair):
            return "no"
        agreed += 1
    if not agreed:
        raise NoValue("at no point")
    return "exact"


def same_value(gold: Value, answer: Value, gold_decimals: int | None, answer_decimals: int | None) -> Same:
    """Whether two values are the same; `*_decimals`: how many decimals each was written with, None if not as one."""
    if isinstance(gold, Fraction) and isinstance(answer, Fraction):
        if gold == answer:
            return "exact"
        if gold == 0 or answer == 0:
            return "no"
    elif _close(gold, answer):
        return "exact"
    if gold_decimals is None and answer_decimals is None:
        return "no"
    if gold_decimals is not None and answer_decimals is not None:
        long = max(_significant(gold, gold_decimals), _significant(answer, answer_decimals)) >= NOISE_DIGITS
        return "tolerance" if long and abs(gold - answer) <= NOISE * abs(gold) else "no"
    decimal, decimals, other = (
        (answer, answer_decimals, gold) if answer_decimals is not None else (gold, gold_decimals, answer)
    )
    assert decimals is not None  # one of the two has some
    return "tolerance" if _rounds_to(other, decimal, decimals) else "no"


def decimals_of(tree: Node) -> int | None:
    """How many decimals `tree`, a decimal number with or without sign, is written with; None for all others.

    A number times a power of ten counts as one. Integers are exact and give None.
    """
    if tree.op == "neg":
        return decimals_of(tree.args[0])
    if tree.op == "mul" and len(tree.args) == 2 and is_power_of_ten(tree.args[1]):
        decimals = decimals_of(tree.args[0])
        try:
            return None if decimals is None else decimals - int(value_of(tree.args[1].args[1]))
        except NoValue:
            return None
    if tree.op != "num" or ("." not in tree.text and "e" not in tree.text.lower()):
        return None
    mantissa, _, exponent = tree.text.lower().partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0)


def _significant(value: Value, decimals: int) -> int:
    return len(str(abs(int(value * 10**decimals)))) if abs(decimals) < 400 else 0


def _rounds_to(exact: Value, decimal: Fraction, decimals: int) -> bool:
    """Whether `decimal` is `exact` rounded or cut at its last decimal, and close enough to count as the number."""
    if isinstance(exact, Fraction) and _finite_decimal(exact):
        # A finite decimal is written as such or not at all; only the noise of a float is forgiven.
        return _significant(decimal, decimals) >= NOISE_DIGITS and abs(exact - decimal) <= NOISE * abs(exact)
    if isinstance(exact, mpmath.mpc):
        return False
    if not isinstance(exact, Fraction):
        exact = Fraction(*_as_ratio(exact))
    apart = abs(exact - decimal)
    if _significant(decimal, decimals) >= NOISE_DIGITS and apart <= NOISE * abs(exact):
        return True
    if apart >= Fraction(1, 10) ** decimals if decimals >= 0 else True:
        return False
    cut = apart == 0 or (abs(decimal) <= abs(exact))
    if not cut and apart > Fraction(1, 10) ** decimals / 2:
        return False
    return apart <= RELATIVE * abs(exact) or (decimals >= DECIMALS and abs(exact) >= SMALL)


def _finite_decimal(value: Fraction) -> bool:
    bottom = value.denominator
    for prime in (2, 5):
        while bottom % prime == 0:
            bottom //= prime
    return bottom == 1


def _as_ratio(value: mpmath.mpf) -> tuple[int, int]:
    sign, mantissa, exponent, _ = value._mpf_
    mantissa = -mantissa if sign else mantissa
    return (int(mantissa) << exponent, 1) if exponent >= 0 else (int(mantissa), 1 << -exponent)


def _close(a: Value, b: Value) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    with mpmath.workdps(DIGITS):
        a, b = as_float(a), as_float(b)
        if mpmath.isinf(a) or mpmath.isinf(b):
            return bool(a == b)
        larger = max(abs(a), abs(b))
        return bool(abs(a - b) <= SAME * larger) or (larger < SAME and (a == 0 or b == 0))
