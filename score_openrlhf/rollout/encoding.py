"""Pieces of a prompt in; their token ids out, the same that the whole text would have.

Two promises: no text of a problem or a model becomes a special token, and a piece does not begin as a text of its own
would. SentencePiece sets a space before a text; between two pieces it has no place.
"""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakKeyDictionary

# What a text is set behind to be encoded as the middle of one, and taken away again; the first that keeps to itself.
ANCHORS = ("\n", "a\n", ".")
_differs: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # what `_begins_differently` found

_markups: WeakKeyDictionary[Any, re.Pattern[str]] = WeakKeyDictionary()


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` in the middle of a prompt, in which no special token can appear, whatever the text says.

    Nor can markup that a tokenizer has a token for without calling it special, such as `</think>` or `<tool_call>`.
    """
    pieces, start = [], 0
    for match in _markup(tokenizer).finditer(text):
        pieces.append(text[start : match.start() + 1])
        start = match.start() + 1
    pieces.append(text[start:])
    return [number for piece in pieces for number in _inside(tokenizer, piece, split_special_tokens=True)]


def encode_template(tokenizer: Any, text: str, *, first: bool = False) -> list[int]:
    """Ids of a piece of the rendered chat template, special tokens included; `first`: it begins the prompt."""
    if not text:
        return []
    return _plain(tokenizer, text) if first else _inside(tokenizer, text)


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the special tokens, also of those that have no role such as eos."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(tokenizer.all_special_ids) | {number for number, token in added.items() if token.special}


def _markup(tokenizer: Any) -> re.Pattern[str]:
    """What finds the texts of a tokenizer's own tokens that look like markup."""
    if tokenizer not in _markups:
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        texts = sorted((t.content for t in added if re.fullmatch(r"<.+>|\[.+\]", t.content)), key=len, reverse=True)
        _markups[tokenizer] = re.compile("|".join(map(re.escape, texts)) if texts else r"(?!)")
    return _markups[tokenizer]


def _plain(tokenizer: Any, text: str, **options: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])


def _inside(tokenizer: Any, text: str, **options: Any) -> list[int]:
    if not text or not _begins_differently(tokenizer):
        return _plain(tokenizer, text, **options)
    for anchor in ANCHORS:
        head, whole = _plain(tokenizer, anchor, **options), _plain(tokenizer, anchor + text, **options)
        if whole[: len(head)] == head:
            return whole[len(head) :]
    return _plain(tokenizer, text, **options)  # it grows together with every anchor


def _begins_differently(tokenizer: Any) -> bool:
    """Whether a letter at the beginning of a text is encoded otherwise than within one."""
    if tokenizer not in _differs:
        head = _plain(tokenizer, ANCHORS[0])
        _differs[tokenizer] = _plain(tokenizer, f"{ANCHORS[0]}x")[len(head) :] != _plain(tokenizer, "x")
    return _differs[tokenizer]
