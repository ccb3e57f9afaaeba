r"""One spelled expression, LaTeX or plain, in; its tree as it is written, nothing worked out, out.

    3\sqrt{2} + 1/2  ->  add(mul(num 3, root(num 2, num 2)), div(num 1, num 2))

SymPy's readers work out much while they read (`\frac{36}{2}`, `\binom{12}{3}`, `2(3)` as a mixed number), so they
cannot tell an answer from the work that is left. This one keeps what was written; `value.py` gives its value.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any, NamedTuple

from score_openrlhf.tasks.answers.tokens import FUNCTIONS, GREEK, Unreadable, tokens_of

MAX_CHARS, MAX_DEPTH, MAX_DIGITS = 1000, 40, 400
BIG = ("sum", "prod", "int", "iint", "oint", "lim")
NO_FACTOR = {r"\pm", r"\mp", r"\le", r"\ge", r"\in", r"\cup", r"\rfloor", r"\rceil", r"\choose", r"\mod", r"\bmod"}


class Node(NamedTuple):
    """An operation on arguments. `op`: num sym const add neg mul div pow root fn fact binom mixed abs big."""

    op: str
    args: tuple[Any, ...]
    text: str = ""  # of num: as written; of sym, const, fn and big: the name


@functools.lru_cache(maxsize=4096)
def read_expression(text: str) -> Node:
    """The tree of `text`; `Unreadable` if it is none."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"{len(text)} characters")
    return _Reader(text).whole()


def num(value: Fraction | int, text: str = "") -> Node:
    return Node("num", (Fraction(value),), text or str(value))


class _Reader:
    def __init__(self, text: str) -> None:
        self.tokens = tokens_of(text)
        self.at = 0
        self.depth = 0
        self.bars = 0

    def whole(self) -> Node:
        if not self.tokens:
            raise Unreadable("nothing in it")
        node = self.sum()
        if self.at < len(self.tokens):
            raise Unreadable(f"at {self.tokens[self.at].text!r}")
        return node

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead].text if self.at + ahead < len(self.tokens) else ""

    def kind(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead].kind if self.at + ahead < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        if wanted and self.peek() not in wanted:
            raise Unreadable(f"{self.peek()!r} where {wanted[0]!r} should stand")
        if self.at >= len(self.tokens):
            raise Unreadable("it ends too early")
        self.at += 1
        return self.tokens[self.at - 1].text

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        terms = [self.signed()]
        while self.peek() in ("+", "-"):
            sign = self.take()
            term = self.product()
            terms.append(Node("neg", (term,)) if sign == "-" else term)
        if self.peek() in (r"\mod", r"\bmod"):
            raise Unreadable("mod")
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def signed(self) -> Node:
        signs = 0
        minus = 0
        while self.peek() in ("+", "-"):
            minus += self.take() == "-"
            signs += 1
            if signs > 3:
                raise Unreadable("a row of signs")
        node = self.product()
        for _ in range(minus):
            node = Node("neg", (node,))
        return node

    def product(self) -> Node:
        factors = [self.power()]
        while True:
            sign = self.peek()
            if sign == "*":
                self.take()
                factors.append(self.power_signed())
            elif sign == "/":
                self.take()
                over = factors[0] if len(factors) == 1 else Node("mul", tuple(factors))
                factors = [Node("div", (over, self.power_signed()))]
            elif self.starts_factor():
                factors.append(self.power())
            else:
                return factors[0] if len(factors) == 1 else Node("mul", tuple(factors))

    def starts_factor(self) -> bool:
        kind, sign = self.kind(), self.peek()
        if kind == "command":
            return sign not in NO_FACTOR
        if kind == "number":  # two numbers side by side are no product
            return self.at > 0 and self.tokens[self.at - 1].text in (")", "}") and not self.tokens[self.at].spaced
        return kind in ("word", "letter") or sign in ("(", "{", "[") or (sign == "|" and not self.bars)

    def power_signed(self) -> Node:
        if self.peek() in ("+", "-"):
            return Node("neg", (self.power_signed(),)) if self.take() == "-" else self.power_signed()
        return self.power()

    def power(self) -> Node:
        base = self.base()
        while True:
            if self.peek() == "^":
                self.take()
                base = Node("pow", (base, self.exponent()))
            elif self.peek() == "!":
                self.take()
                base = Node("fact", (base,))
            elif self.peek() == "%":
                self.take()
                base = Node("div", (base, num(100)), "%")
            elif self.peek() == "°":
                self.take()
                base = Node("mul", (base, Node("const", (), "deg")))
            else:
                return base

    def exponent(self) -> Node:
        if self.peek() == "{":
            return self.group()
        if self.peek() == "-":
            self.take()
            return Node("neg", (self.exponent(),))
        if self.peek() == "(":
            return self.base()
        if self.kind() in ("number", "letter") or self.peek() in (r"\pi", r"\infty", r"\frac", r"\theta", r"\alpha"):
            return self.base()
        raise Unreadable("an exponent is missing")

    def group(self, opening: str = "{", closing: str = "}") -> Node:
        self.take(opening)
        bars, self.bars = self.bars, 0
        node = self.sum()
        self.bars = bars
        self.take(closing)
        return node

    def argument(self) -> Node:
        """A LaTeX argument: a group, one digit, letter or command."""
        return self.group() if self.peek() == "{" else self.base()

    def base(self) -> Node:
        kind, token = self.kind(), self.peek()
        if kind == "number":
            return self.number()
        if kind == "letter":
            return self.symbol(self.take())
        if token in ("(", "{", "["):
            return self.group(token, {"(": ")", "{": "}", "[": "]"}[token])
        if token == "|":
            self.take()
            self.bars += 1
            node = self.sum()
            self.bars -= 1
            self.take("|")
            return Node("abs", (node,))
        if kind in ("command", "word"):
            return self.command(self.take())
        raise Unreadable(f"at {token!r}" if token else "it ends too early")

    def number(self) -> Node:
        text = self.take()
        if len(text) > MAX_DIGITS:
            raise Unreadable(f"a number of {len(text)} characters")
        value = Fraction(text.rstrip(".") if "e" not in text.lower() else text)
        node = num(value, text)
        if value.denominator == 1 and text.isdigit():
            fraction = self.mixed_part(value)
            if fraction is not None:
                return fraction
        return node

    def mixed_part(self, whole: Fraction) -> Node | None:
        r"""The mixed number that `whole` begins, `3\frac{1}{2}` or `3 1/2`: a proper fraction follows; else None."""
        start = self.at
        try:
            if self.peek() == r"\frac":
                self.take()
                parts = self.argument(), self.argument()
            elif self.kind() == "number" and self.tokens[self.at].spaced and self.peek(1) == "/":
                top = num(Fraction(self.take()))
                self.take("/")
                parts = top, num(Fraction(self.take()))
            else:
                return None
        except (Unreadable, ValueError):
            self.at = start
            return None
        if all(part.op == "num" and part.text.isdigit() for part in parts):
            top, bottom = (part.args[0] for part in parts)
            if 0 < top < bottom:
                return Node("mixed", (whole + top / bottom,), f"{whole} {top}/{bottom}")
        self.at = start
        return None

    def symbol(self, letter: str) -> Node:
        name = letter + self.subscript()
        if name == "e":
            return Node("const", (), "e")
        if name == "i":
            return Node("const", (), "i")
        if letter in "fghFGHPC" and self.peek() == "(" and not self.tokens[self.at].spaced:
            return Node("fn", self.call(), f"{name}()")
        return Node("sym", (), name)

    def subscript(self) -> str:
        if self.peek() != "_":
            return ""
        self.take()
        if self.peek() != "{":
            return "_" + self.take()
        self.take()
        parts = []
        while self.peek() != "}":
            parts.append(self.take())
        self.take("}")
        return "_" + "".join(parts)

    def call(self) -> tuple[Node, ...]:
        self.take("(")
        bars, self.bars = self.bars, 0
        arguments = [self.sum()]
        while self.peek() == ",":
            self.take()
            arguments.append(self.sum())
        self.bars = bars
        self.take(")")
        return tuple(arguments)

    def command(self, token: str) -> Node:
        name = token.lstrip("\\")
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return Node("div", (self.argument(), self.argument()))
        if name == "sqrt":
            return self.root()
        if name == "cbrt":
            return Node("root", (self.argument(), num(3)))
        if name == "abs":
            return Node("abs", (self.argument(),))
        if name == "pi":
            return Node("const", (), "pi")
        if name in ("infty", "inf", "infinity", "oo"):
            return Node("const", (), "oo")
        if name in ("binom", "dbinom", "tbinom"):
            return Node("binom", (self.argument(), self.argument()))
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self.take(rf"\r{name[1:]}")
            return Node("fn", (node,), name[1:])
        if name in FUNCTIONS:
            return self.function(name)
        if name in GREEK:
            return Node("sym", (), name + self.subscript())
        if name in BIG:  # the work left is not read further: it is no number to compare
            rest = " ".join(token.text for token in self.tokens[self.at :])
            self.at = len(self.tokens)
            return Node("big", (), f"{name} {rest}")
        if name in ("overline", "widehat", "vec", "hat", "bar", "overrightarrow", "overleftrightarrow", "angle"):
            if name == "angle":
                return Node("sym", (), "angle " + "".join(self.take() for _ in range(len(self.tokens) - self.at)))
            self.take("{")
            parts = []
            while self.peek() != "}":
                parts.append(self.take())
            self.take("}")
            return Node("sym", (), f"{name} {''.join(parts)}")
        if name == "operatorname":
            self.take("{")
            inner = "".join(self.take() for _ in range(max(self.closing() - self.at, 0)))
            self.take("}")
            if inner in FUNCTIONS:
                return self.function(inner)
        raise Unreadable(f"the command {token!r}")

    def closing(self) -> int:
        return next((i for i in range(self.at, len(self.tokens)) if self.tokens[i].text == "}"), self.at)

    def root(self) -> Node:
        degree = num(2)
        if self.peek() == "[":
            degree = self.group("[", "]")
        return Node("root", (self.argument(), degree))

    def function(self, name: str) -> Node:
        exponent = None
        base: tuple[Node, ...] = ()
        while self.peek() in ("^", "_"):
            if self.take() == "^":
                exponent = self.exponent()
            else:
                base = (self.argument(),)
        if self.peek() == "(":
            arguments = self.call()
        else:
            factors = [self.power_signed()]
            while self.starts_factor() and self.peek().lstrip("\\") not in FUNCTIONS and self.peek() != "(":
                factors.append(self.power())
            arguments = (factors[0] if len(factors) == 1 else Node("mul", tuple(factors)),)
        if name == "exp":
            node = Node("pow", (Node("const", (), "e"), arguments[0]))
        else:
            node = Node("fn", (*arguments, *base), name)
        return node if exponent is None else Node("pow", (node, exponent))
