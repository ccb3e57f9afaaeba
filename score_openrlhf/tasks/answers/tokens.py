"""A spelled expression in; its tokens, with known words and products of symbols told apart, out."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

_FUNCTIONS = """
    arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log ln lg exp gcd lcm max min floor
    ceil det mod Re Im arg
"""
_GREEK = """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon
    phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar
"""
FUNCTIONS = _FUNCTIONS.split()
GREEK = _GREEK.split()
PLAIN_WORDS = {"pi", "sqrt", "inf", "infinity", "oo", "theta", "alpha", "beta", "lambda", "abs", "cbrt", *FUNCTIONS}
TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,4}(?![\dA-Za-z.]))?)"
    r"|(?P<command>\\[A-Za-z]+)|(?P<word>[A-Za-z]+)|(?P<sign>[-+*/^_!%(){}\[\]|,°]))"
)
REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}")


class Unreadable(Exception):
    """The text is no expression of the language here; words, an unknown command, or too long."""


class Token(NamedTuple):
    """A sign, number, command, known word or letter; `spaced`: a space stands before it."""

    kind: str
    text: str
    spaced: bool


def tokens_of(text: str) -> list[Token]:
    """The tokens of `text`; `Unreadable` at the first that is none, such as a word."""
    text = REPEATING.sub(_repeating, text).rstrip()
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"at {text[position : position + 20]!r}")
        kind = match.lastgroup or ""
        token = Token(kind, match[kind], match[0][:1].isspace())
        if kind == "word" and token.text not in PLAIN_WORDS:
            tokens.extend(_letters(token.text, token.spaced))
        else:
            tokens.append(token)
        position = match.end()
    return tokens


def _letters(word: str, spaced: bool) -> list[Token]:
    """A run of letters is a product of up to three symbols, with known words at its end: `2pi`, `xpi`, `ab`."""
    for known in ("pi", "sqrt"):
        if word.endswith(known) and 1 <= len(word) - len(known) <= 2:
            return [*_letters(word[: -len(known)], spaced), Token("word", known, False)]
    if len(word) > 3:
        raise Unreadable(f"the word {word!r}")
    return [Token("letter", letter, spaced and number == 0) for number, letter in enumerate(word)]


def _repeating(match: re.Match) -> str:
    r"""`0.1\overline{6}` as the fraction it is."""
    whole, fixed, period = match[1] or "0", match[2], match[3]
    value = Fraction(int(whole + fixed + period) - int(whole + fixed), 10 ** len(fixed) * (10 ** len(period) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
