"""A spelled answer in; what kind of answer it is, with its parts, out.

"(3, \\frac{\\pi}{2})" -> a tuple of two values; "2 \\le x < 5" -> an interval; "65 tickets" -> a value with words
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from score_openrlhf.tasks.answers.expression import Node, num
from score_openrlhf.tasks.answers.leaf import Answer, as_words, leaf
from score_openrlhf.tasks.answers.spelling import DROW, NEW_ROW, WORD, spell, without_thousands

MAX_PARTS = 64
RELATION = re.compile(r"(?<![<>!\\:])=|:=|\\approx(?![A-Za-z])|\\equiv(?![A-Za-z])|\\to(?![A-Za-z])")
COMPARISON = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>|\\ne(?![A-Za-z])")
UNION = re.compile(r"\\cup(?![A-Za-z])|(?<=[\])}])\s*U\s*(?=[\[({\\])")
LIST = re.compile(
    rf"[,;]\s*(?:{WORD}?\s*(?:and|or)\b\s*{DROW}?)?|{WORD}\s*(?:and|or|,)\s*{DROW}"
    rf"|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|{NEW_ROW}|&"
)
JOINED_WORD = re.compile(rf"{WORD}([^{DROW}]*?)\s*\b(and|or)\b\s*([^{DROW}]*){DROW}")
BRACKETS = {"(": ")", "[": "]", r"\{": r"\}", r"\langle": r"\rangle"}
MATRIX = re.compile(r"\\begin\{([pbvB]?(?:small)?matrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{\1\}", re.S)
COLON = re.compile(rf"(\d{{1,6}})((?:\s*:\s*\d{{1,6}})+)\s*(?:{WORD}?\s*([ap])\.?\s*m\.?\s*{DROW}?)?", re.I)
BASE = re.compile(
    rf"(-?[0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)(?:_\{{?(\d+)\}}?|\s*{WORD}?\s*\(?(?:in )?base[- ]?(\d+)\)?\s*{DROW}?)"
)
NOTHING = {
    "none",
    "nosolution",
    "nosolutions",
    "norealsolution",
    "norealsolutions",
    "emptyset",
    "theemptyset",
    "nonexistent",
}


@functools.lru_cache(maxsize=8192)
def readings(text: str) -> tuple[Answer, ...]:
    """What an answer, as it is stated, can be read as, the likeliest first; () for one with nothing in it.

    Two readings only where a comma may be one of thousands or one of a list: `70,110`.
    """
    spelled = spell(text)
    if not spelled.strip(" .$\\(){}[]" + WORD + DROW):
        return ()
    return tuple(dict.fromkeys(read(form) for form in dict.fromkeys((without_thousands(spelled), spelled))))


def read(text: str) -> Answer:
    """The kind and parts of one spelled answer."""
    text = text.strip().rstrip(".").strip()
    for reader in (_nothing, _relation, _union, _list, _bracketed, _matrix, _colon, _base):
        answer = reader(text)
        if answer is not None:
            return answer
    return leaf(text)


def split_top(text: str, separator: re.Pattern) -> list[tuple[str, str]]:
    """The parts of `text` between separators outside all brackets, each with the separator before it."""
    parts: list[tuple[str, str]] = []
    depth, start, sign, position = 0, 0, "", 0
    inside_mark = False
    while position < len(text):
        char = text[position]
        if text.startswith((r"\langle", r"\rangle"), position):
            depth += 1 if text.startswith(r"\langle", position) else -1
            position += 7
            continue
        if text.startswith((r"\begin", r"\end"), position):
            depth += 1 if text.startswith(r"\begin", position) else -1
        if not depth and not inside_mark:
            match = separator.match(text, position)
            if match and match.end() > position:
                parts.append((sign, text[start:position].strip()))
                sign, start, position = match[0], match.end(), match.end()
                continue
        inside_mark = (inside_mark or char == WORD) and char != DROW
        depth += (char in "([{") - (char in ")]}")
        position += 1
    parts.append((sign, text[start:].strip()))
    return parts


def _nothing(text: str) -> Answer | None:
    key = re.sub(r"[^a-z]", "", text.lower())
    return (
        Answer("set", text, brackets="{}")
        if (key in NOTHING and not re.search(r"\d", text)) or text == r"\{ \}"
        else None
    )


def _relation(text: str) -> Answer | None:
    inside = re.match(r"[A-Za-z](?:_\{?\w+\}?)?\s*\\in\s+(.+)$", text)
    if inside:
        return read(inside[1])
    parts = split_top(text, LIST)
    if len([part for _, part in parts if RELATION.search(part) or COMPARISON.search(part)]) > 1:
        return None  # a list of relations
    relation = split_top(text, RELATION)
    if len(relation) > 1:
        return Answer(
            "chain",
            text,
            tuple(
                read(part) if part else Answer("other", "", why="nothing beside a sign of equality")
                for _, part in relation[:MAX_PARTS]
            ),
            brackets=" ".join("=" for _ in relation[1:]),
        )
    comparison = split_top(text, COMPARISON)
    if len(comparison) > 1 and len(parts) == 1:
        members = tuple(read(part) if part else Answer("other", "") for _, part in comparison[:MAX_PARTS])
        return _interval_of(text, members, [sign for sign, _ in comparison[1:]])
    return None


def _interval_of(text: str, members: tuple[Answer, ...], signs: list[str]) -> Answer:
    """An inequality that bounds one symbol by constants is an interval; others stay what they are."""
    symbols = [i for i, m in enumerate(members) if m.kind == "value" and m.tree is not None and m.tree.op == "sym"]
    up, down = {"<", r"\le"}, {">", r"\ge"}
    if len(symbols) == 1 and len(members) in (2, 3) and (set(signs) <= up or set(signs) <= down):
        at = symbols[0]
        if set(signs) <= down:
            members, signs, at = members[::-1], signs[::-1], len(members) - 1 - at
        low = members[at - 1] if at > 0 else Answer("value", r"-\infty", tree=Node("neg", (Node("const", (), "oo"),)))
        high = members[at + 1] if at + 1 < len(members) else Answer("value", r"\infty", tree=Node("const", (), "oo"))
        left = "(" if at == 0 or signs[at - 1] in ("<", ">") else "["
        right = ")" if at + 1 >= len(members) or signs[at] in ("<", ">") else "]"
        if at in (0, 1) and not (len(members) == 3 and at != 1):
            return Answer("interval", text, (low, high), brackets=left + right, why="inequality")
    return Answer("inequality", text, members, brackets=" ".join(signs))


def _union(text: str) -> Answer | None:
    parts = split_top(text, UNION)
    return Answer("union", text, tuple(read(part) for _, part in parts[:MAX_PARTS])) if len(parts) > 1 else None


def _list(text: str) -> Answer | None:
    if MATRIX.fullmatch(text.strip()):
        return None
    text = JOINED_WORD.sub(rf" {WORD}\1{DROW} {WORD}\2{DROW} {WORD}\3{DROW} ", text)
    text = re.sub(rf"{WORD}\s*{DROW}", " ", text)
    if WORD in text and "," in text:  # commas among marked words part them: \text{A,D}
        text = re.sub(rf"{WORD}([^{DROW}]*){DROW}", lambda m: m[0].replace(",", f"{DROW},{WORD}"), text)
    parts = [(sign, part) for sign, part in split_top(text, LIST)]
    if len(parts) > 1:
        signs = " ".join(as_words(sign) for sign, _ in parts if sign)
        items = tuple(read(part) for _, part in parts[:MAX_PARTS] if part)
        inequalities = [item for item in items if item.kind in ("interval", "inequality") and item.why == "inequality"]
        if inequalities and len(inequalities) == len(items) and "and" not in signs:
            return Answer("union", text, items)
        if len(items) == 1:
            return items[0]
        return Answer("list", text, items, brackets=signs)
    if re.search(r"\\[pm][mp](?![A-Za-z])", text) and not re.match(r"[(\[]|\\\{", text):
        both = [
            text.replace(r"\pm", upper).replace(r"\mp", lower) for upper, lower in ((" + ", " - "), (" - ", " + "))
        ]
        return Answer("list", text, tuple(read(re.sub(r"^\s*\+\s*", "", part)) for part in both))
    return None


def _bracketed(text: str) -> Answer | None:
    transposed = re.fullmatch(r"(.+[)\]])\s*\^\s*\{?\s*(?:T|\\top|\\mathsf\s*T|\\intercal)\s*\}?", text)
    if transposed:
        text = transposed[1]
    for opening in BRACKETS:
        if not text.startswith(opening):
            continue
        closing = next((c for c in BRACKETS.values() if text.endswith(c)), None)
        if closing is None:
            return None
        inner = text[len(opening) : len(text) - len(closing)]
        if not _balanced(inner):
            return None
        if opening == r"\{" and closing == r"\}":
            built = re.match(r"\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:]\s*(.+)$", inner)
            if built:
                return read(built[1])
            parts = split_top(inner, LIST)
            items = tuple(_expanded(read(part) for _, part in parts[:MAX_PARTS] if part))
            return Answer("set", text, items, brackets="{}")
        members = [part for _, part in split_top(inner, re.compile(r"[,;]"))]
        if len(members) == 1:
            one = (opening, closing) in (("(", ")"), ("[", "]")) and not re.match(r"^\s*\\pm", inner)
            return read(inner) if one and inner.strip() else None
        items = tuple(read(part) for part in members[:MAX_PARTS])
        kind = "interval" if opening + closing in ("[)", "(]") and len(items) == 2 else "tuple"
        brackets = "()" if opening == r"\langle" or transposed else opening[-1] + closing[-1]
        return Answer(kind, text, items, brackets=brackets)
    return None


def _expanded(items) -> list[Answer]:
    out: list[Answer] = []
    for item in items:
        out.extend(item.parts if item.kind == "list" and not item.brackets else [item])
    return out


def _balanced(inner: str) -> bool:
    depth = 0
    for char in inner.replace(r"\{", "(").replace(r"\}", ")"):
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _matrix(text: str) -> Answer | None:
    match = MATRIX.fullmatch(text)
    if not match:
        return None
    rows = [
        [read(cell) for cell in row.split("&")[:MAX_PARTS]]
        for row in match[2].split(NEW_ROW)[:MAX_PARTS]
        if row.strip()
    ]
    if not rows or len({len(row) for row in rows}) != 1:
        return Answer("other", text, why="rows of different lengths")
    determinant = "|" if match[1].startswith("v") else ""
    return Answer(
        "matrix",
        text,
        tuple(cell for row in rows for cell in row),
        brackets=f"{len(rows)}x{len(rows[0])}{determinant}",
    )


def _colon(text: str) -> Answer | None:
    match = COLON.fullmatch(text)
    if not match:
        return None
    numbers = [match[1], *re.findall(r"\d+", match[2])]
    parts = tuple(Answer("value", n, tree=num(Fraction(n), n)) for n in numbers)
    return Answer("colon", text, parts, brackets=(match[3] or "").lower())


def _base(text: str) -> Answer | None:
    match = BASE.fullmatch(text)
    if not match or not re.search(r"\d", match[1]):
        return None
    return Answer("base", text, brackets=f"{match[1].upper().lstrip('+')} {match[2] or match[3]}")
