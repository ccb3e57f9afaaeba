"""A spelled answer without brackets or lists in; its expression with what stands beside it, or its words, out."""

from __future__ import annotations

import re
from typing import NamedTuple

from score_openrlhf.tasks.answers.beside import FILLERS, Beside, beside
from score_openrlhf.tasks.answers.expression import Node, num, read_expression
from score_openrlhf.tasks.answers.spelling import DROW, WORD
from score_openrlhf.tasks.answers.tokens import PLAIN_WORDS, Unreadable
from score_openrlhf.tasks.answers.units import UNITS

ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)\b")
# Words among signs: marked ones; runs of three letters and more that stand apart; short units after a number.
WORDS_IN = re.compile(
    rf"{WORD}([^{DROW}]*){DROW}"
    r"|(?<![A-Za-z\\_^{])((?:[A-Za-z][A-Za-z'’]*[A-Za-z]|[A-Za-z])(?:\.[A-Za-z]\.)*)(?![A-Za-z(_])"
)
FUNCTION = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
SHORT_UNITS = {"m", "g", "s", "h", "L", "l", "N", "J", "W", "V"}
MERIDIEM = re.compile(rf"(?<=\d)\s*{WORD}?\s*([ap])\.?\s?m\b\.?\s*{DROW}?", re.I)
_UNITS_AND_TEENS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {word: value for value, word in enumerate(_UNITS_AND_TEENS.split())}
NUMBER_WORDS |= {word: 10 * value for value, word in enumerate(_TENS.split(), start=2)}


class Answer(NamedTuple):
    """One reading. `kind`: value words list set tuple interval union matrix colon base chain inequality other."""

    kind: str
    text: str
    parts: tuple[Answer, ...] = ()
    tree: Node | None = None  # of a value
    beside: Beside = Beside()  # of a value
    brackets: str = ""  # of tuple, interval and matrix ("2x3"); of chain and inequality: the signs between the parts
    why: str = ""  # of other: why it is not read


def as_words(text: str) -> str:
    """`text` without marks, its words in lower case with single spaces."""
    return " ".join(re.sub(rf"[{WORD}{DROW}]", " ", text).lower().split())


def leaf(text: str) -> Answer:
    """A number or expression with what stands beside it; words alone; or `other`."""
    if (
        re.fullmatch(r"[A-Za-z]+", text)
        and text not in PLAIN_WORDS
        and (len(text) > 2 or (len(text) == 2 and (text.isupper() or text in ("no", "up", "No", "Up"))))
    ):
        return _words(text)
    pieces = _pieces(ORDINAL.sub("", text))
    math = [piece for piece, is_word in pieces if not is_word]
    if not math:
        return _words(text)
    if len(math) > 1:
        return Answer("words", text, tuple(leaf(p) if not w else _words(p) for p, w in pieces), why="several numbers")
    at = next(i for i, (_, is_word) in enumerate(pieces) if not is_word)
    core = math[0]
    before = " ".join(piece for piece, _ in pieces[:at])
    after = " ".join(piece for piece, _ in pieces[at + 1 :])
    power = re.fullmatch(r"(.*?)\s*\ue003(.*)", core)  # a power that belongs to the unit, see _pieces
    if power:
        core, after = power[1], power[2] + after
    for sign, word in (("%", "percent"), ("°", "degree")):
        if core.endswith(sign) and not FUNCTION.search(core):
            core, after = core[: -len(sign)].rstrip(), f"{word} {after}"
    try:
        surroundings, factor = beside(before, after)
        tree = read_expression(core.strip(" ,:").rstrip("-").strip() if before or after else core)
    except (ValueError, Unreadable) as error:
        return Answer("other", text, why=str(error))
    if factor != 1:
        tree = num(tree.args[0] * factor) if tree.op == "num" else Node("mul", (tree, num(factor)))
    return Answer("value", text, tree=tree, beside=surroundings)


def _words(text: str) -> Answer:
    words = [word for word in re.findall(r"[a-z0-9'’]+", as_words(text)) if word not in FILLERS or word in ("or",)]
    key = " ".join(words) or as_words(text)
    if words and len(words) <= 2:
        spoken = "-".join(words).split("-")
        total = [NUMBER_WORDS[word] for word in spoken if word in NUMBER_WORDS]
        tens_first = len(total) > 1 and total[0] >= 20 and total[0] % 10 == 0 and total[1] < 10
        if len(total) == len(spoken) and (len(total) == 1 or tens_first):
            return Answer("value", text, tree=num(sum(total)), brackets=key)
    return Answer("words", text, brackets=key)


def _pieces(text: str) -> list[tuple[str, bool]]:
    """`text` cut into expressions and words, in order; True for words."""
    pieces: list[tuple[str, bool]] = []
    end = 0
    text = MERIDIEM.sub(lambda m: f" {WORD} {m[1]}m {DROW} ", text)
    for match in WORDS_IN.finditer(text):
        if match.start() < end:
            continue
        word = match[1]
        if word is None and not _is_word(text, match):
            continue
        stop = match.end()
        word = (word if word is not None else match[2]).strip()
        power = re.match(r"\s*\^\s*\{?\s*(-?\d)\s*\}?", text[stop:])
        if power and word:
            word, stop = f"{word}^{power[1]}", stop + power.end()
        _add(pieces, text[end : match.start()], word)
        end = stop
    _add(pieces, text[end:], "")
    return pieces


def _add(pieces: list[tuple[str, bool]], math: str, word: str) -> None:
    math = re.sub(r"^[\s:,;\"']+|^\.(?!\d)|[\s:,;.\"']+$", "", math)
    if math in ("/", "-", "(", ")") or not math:
        if math == "/" and pieces and pieces[-1][1]:
            word = f"/ {word}"
    else:
        pieces.append((math, False))
    if word:
        if pieces and pieces[-1][1]:
            pieces[-1] = (f"{pieces[-1][0]} {word}", True)
        else:
            pieces.append((word, True))


def _is_word(text: str, match: re.Match) -> bool:
    """Whether a run of letters is a word and no product of symbols."""
    run = match[2]
    if (
        run in ("min", "sec")
        and re.search(r"\d\s*$", text[: match.start()])
        and not re.match(r"\s*\(", text[match.end() :])
    ):
        return True
    if run in PLAIN_WORDS or run.lower() in ("pi",):
        return False
    before, after = text[: match.start()], text[match.end() :]
    apart = not before or before[-1] in f" :,;(/{DROW}" or re.search(r"[A-Za-z]-$", before) is not None
    number_before = re.search(r"[\d}.)%°]\s*$", before)
    plain = run.replace(".", "")
    if len(plain) >= 4:
        return True
    if len(plain) == 3:
        return (
            apart and (not after or after[0] in f" :,;.)?^/{WORD}") and not re.match(r"\s*[-+*^=]\s*[\w\\(]", after)
        ) or plain.lower() in UNITS
    if len(plain) == 2:
        if number_before and (plain.lower() in UNITS or run in ("°C", "°F")):
            return True
        return apart and plain.lower() in FILLERS | {"am", "pm", "or", "no"}
    alone = re.fullmatch(r"\s*-?[\d.,]+(?:/\d+)?\s", before) is not None and not after.strip(" .^{}23")
    return alone and run in SHORT_UNITS
