"""An answer as a model or a data set spells it, in any script and LaTeX; the same answer in one plain spelling.

Text inside `\\text{...}` comes out between the marks `WORD` and `DROW`, so that later steps can tell words from
products of letters. String work only; nothing is evaluated.
"""

from __future__ import annotations

import re
import unicodedata

from score_openrlhf.tasks.latex import brace_fractions, read_argument

WORD, DROW = "\ue000", "\ue001"  # private-use characters: no answer holds them (they are removed if one does)
NEW_ROW = "\ue004"  # LaTeX's double backslash

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
SYMBOLS = {
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "﹣": "-",
    "－": "-",
    "×": "*",
    "✕": "*",
    "·": "*",
    "⋅": "*",
    "∗": "*",
    "÷": "/",
    "∕": "/",
    "⁄": "/",
    "≤": r" \le ",
    "⩽": r" \le ",
    "≥": r" \ge ",
    "⩾": r" \ge ",
    "≠": r" \ne ",
    "≈": r" \approx ",
    "≃": r" \approx ",
    "π": r" \pi ",
    "∞": r" \infty ",
    "∪": r" \cup ",
    "∩": r" \cap ",
    "∈": r" \in ",
    "∅": r" \emptyset ",
    "±": r" \pm ",
    "∓": r" \mp ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "θ": r" \theta ",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "⟨": r" \langle ",
    "⟩": r" \rangle ",
    "ℝ": r" \mathbb{R} ",
    "…": " ",
    "∶": ":",
    "：": ":",
    "٫": ".",
    "٬": ",",
    "\u00a0": " ",
    "\u202f": " ",
    "\u2009": " ",
}
ROOT_SIGN = re.compile(r"√\s*(?:(\d+(?:\.\d+)?|[A-Za-z])|\(([^()]*)\)|(?=\{))")

SIZING = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut|strut|bf|rm|it"
    r"|mathopen|mathclose|mathrel|mathbin|hfill|hline|centering|large|Large|normalsize|small)(?![A-Za-z])\.?"
)
SPACING = re.compile(
    r"\\(?:[,;: ~>]|quad|qquad|thinspace|medspace|thickspace|enspace|space|newline|hfill)(?![A-Za-z])|~"
)
# Commands whose argument is not shown, and those that show their (last) argument as it is.
HIDDEN = ("phantom", "hphantom", "vphantom", "hspace", "vspace", "color", "label", "tag", "kern", "hskip")
SHOWN = {
    "boxed": 1,
    "fbox": 1,
    "framebox": 1,
    "underline": 1,
    "mathbf": 1,
    "bm": 1,
    "boldsymbol": 1,
    "mathit": 1,
    "mathsf": 1,
    "mathtt": 1,
    "mathnormal": 1,
    "ensuremath": 1,
    "emph": 1,
    "textcolor": 2,
    "colorbox": 2,
    "mathbin": 1,
    "displaylines": 1,
    "mathring": 1,
    "smash": 1,
}
TEXT = ("text", "textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "mbox", "hbox", "mathrm", "textup")
COMMAND = re.compile(rf"\\({'|'.join(sorted((*HIDDEN, *SHOWN, *TEXT), key=len, reverse=True))})(?![A-Za-z])\*?")
RENAMED = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:leqslant|leqq|leq)(?![A-Za-z])|<=|=<(?!=)", r" \\le "),
        (r"\\(?:geqslant|geqq|geq)(?![A-Za-z])|>=", r" \\ge "),
        (r"\\lt(?![A-Za-z])", " < "),
        (r"\\gt(?![A-Za-z])", " > "),
        (r"\\(?:neq|ne)(?![A-Za-z])|!=|\\not\s*=", r" \\ne "),
        (r"\\(?:approxeq|approx|simeq|thickapprox|doteq)(?![A-Za-z])|~=", r" \\approx "),
        (r"\\(?:cdot|times|ast)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\*\*", "^"),
        (r"\\(?:lbrace|\{)(?![A-Za-z])", r" \\{ "),
        (r"\\(?:rbrace|\})(?![A-Za-z])", r" \\} "),
        (r"\\(?:lbrack)(?![A-Za-z])", "["),
        (r"\\(?:rbrack)(?![A-Za-z])", "]"),
        (r"\\[lr]?vert(?![A-Za-z])|\\\|", "|"),
        (r"\\mid(?![A-Za-z])", "|"),
        (r"\\(?:colon|ratio)(?![A-Za-z])", ":"),
        (r"\\(?:varnothing|O)(?![A-Za-z])", r" \\emptyset "),
        (r"\\(?:iff|implies|Rightarrow|rightarrow|to|therefore)(?![A-Za-z])", r" \\to "),
        (r"\\(?:imath|mathrm\{i\})(?![A-Za-z])", "i"),
        (
            r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))|\\(?:degree|textdegree)(?![A-Za-z])",
            "°",
        ),
        (r"\\%", "%"),
        (r"\\[#&_]", " "),
        (r"\\!|\{\}|\\/", ""),
    )
]
THOUSANDS_SPELLED = re.compile(r"(?<=\d)(?:\{,\}|,\s*\\!|\\!\s*,)\s*(?=\d{3}(?!\d))")
SPACED_THOUSANDS = re.compile(r"(?<![\d.,/^_{])([1-9]\d{0,2})((?: \d{3})+)(?![\d/]|\s*[/]|,\d)(\.\d+)?")
APOSTROPHE_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:'\d{3})+(?!\d)")
DOTTED_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3}){2,}|\d{1,3}(?:\.\d{3})+(?=,\d))(?:,(\d+))?(?![\d.,])")
ENGLISH_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee", "₽": "ruble", "₩": "won"}
MATH_PAIR = re.compile(r"(?<!\\)\$\$?([^$]+?)(?<!\\)\$\$?")


def spell(answer: str) -> str:
    """The one spelling of `answer`: no delimiters, sizes or hidden parts, ASCII digits and signs, braced fractions."""
    text = THOUSANDS_SPELLED.sub("", _ascii(answer).replace("\\\\", NEW_ROW))
    text = SPACING.sub(" ", SIZING.sub(" ", text))
    text = _arguments(text)
    text = _undelimited(text)
    for pattern, new in RENAMED:
        text = pattern.sub(new, text)
    text = brace_fractions(" ".join(text.split()))
    text = re.sub(rf"\s*{DROW}\s*{WORD}\s*", " ", text)
    text = SPACED_THOUSANDS.sub(lambda m: m[1] + m[2].replace(" ", "") + (m[3] or ""), text)
    text = APOSTROPHE_THOUSANDS.sub(lambda m: m[0].replace("'", ""), text)
    text = DOTTED_THOUSANDS.sub(lambda m: m[1].replace(".", "") + (f".{m[2]}" if m[2] else ""), text)
    text = re.sub(r"^(?:\\approx|\\to|~|=|:)\s*", "", text.strip())
    return _unwrapped(text.strip().strip("*").strip()).rstrip(" .,;").strip()


def without_thousands(text: str) -> str:
    """`text` with `1,234,567` as `1234567`."""
    return ENGLISH_THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)


def squeezed(text: str) -> str:
    """The spelling without spaces, marks and braces of one character, to compare texts letter by letter."""
    text = (
        re.sub(rf"[\s{WORD}{DROW}]+(?!\d)|(?<!\d)[\s{WORD}{DROW}]+", "", text)
        .replace("\\cdot", "*")
        .replace("\\times", "*")
    )
    return re.sub(r"\{(\w)\}", r"\1", text)


def _ascii(text: str) -> str:
    if text.isascii():
        return text
    text = re.sub("[\ue000-\ue004]", "", text)
    text = SUPERSCRIPT_RUN.sub(lambda m: "^{" + m[0].translate(SUPERSCRIPTS) + "}", text)
    text = SUBSCRIPT_RUN.sub(lambda m: "_{" + m[0].translate(SUBSCRIPTS) + "}", text)
    text = ROOT_SIGN.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}" if m[1] or m[2] else r"\sqrt", text)
    out = []
    for char in text:
        if char in SYMBOLS:
            out.append(SYMBOLS[char])
        elif unicodedata.category(char) == "Cf":  # zero-width and direction marks
            continue
        elif char.isdecimal():
            out.append(str(unicodedata.decimal(char)))
        elif unicodedata.decomposition(char).startswith("<fraction>"):
            out.append(" " + unicodedata.normalize("NFKC", char).replace("⁄", "/"))
        else:
            out.append(unicodedata.normalize("NFKC", char))
    return "".join(out)


def _arguments(text: str) -> str:
    """`text` without hidden arguments, with shown ones in place of their commands, and words between marks."""
    for match in reversed(list(COMMAND.finditer(text))):
        name, position = match[1], match.end()
        if name in ("color", "kern", "hskip") and not text[position:].lstrip().startswith("{"):
            continue
        argument = None
        for _ in range(SHOWN.get(name, 1)):
            argument = read_argument(text, position)
            if argument is None:
                break
            position = argument[1]
        if argument is None:
            continue
        content = argument[0]
        if name in HIDDEN:
            shown = " "
        elif name in SHOWN:
            shown = f" {content} "
        else:
            words = re.search(r"[A-Za-z]", content) and not re.search(r"\d", content)
            shown = f" {WORD} {content} {DROW} " if words else f" {content} "
        text = text[: match.start()] + shown + text[position:]
    return text


def _undelimited(text: str) -> str:
    """`text` without math delimiters; a dollar sign that is money, and other currencies, as words."""
    text = re.sub(r"\\[()]|\\(?:\[|\])", " ", text)
    text = text.replace("\\$", "\ue002")
    if text.replace("$$", "").count("$") % 2:
        text = text.replace("$$", " ").replace("$", "\ue002")
    else:
        text = MATH_PAIR.sub(lambda m: m[0].replace("$", "\ue002") if _is_money(m[1]) else f" {m[1]} ", text)
    text = text.replace("\ue002", "$")
    for sign, name in CURRENCIES.items():
        if sign in text:
            text = text.replace(sign, f" {WORD} {name} {DROW} ")
    return text


def _is_money(between: str) -> bool:
    """Whether what stands between two dollar signs shows that they are money: `5 and ` of "$5 and $6"."""
    return bool(re.fullmatch(r"\d[\d.,]*\s*(?:and|or|to|,|;)\s*", between))


def _unwrapped(text: str) -> str:
    """`text` without braces around all of it."""
    while text.startswith("{") and (argument := read_argument(text, 0)) and argument[1] == len(text):
        text = argument[0].strip()
    return text
