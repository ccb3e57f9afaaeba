"""A row of any known data set in; its problem's text and its gold answer out, and what was recognised.

The configured keys count first, `reward_model.ground_truth` for a value within a value. Where the first row lacks
them, `data.format: auto` looks for the columns of verl, TRL, OpenRLHF, raw GSM8K and raw MATH.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from score_openrlhf.tasks.answers.stated import HASHES, stated_answer
from score_openrlhf.tasks.latex import BOX


class BadRow(Exception):
    """A row that is no problem, and why."""


@dataclasses.dataclass(frozen=True)
class RowRules:
    """`data.format`, `data.on_bad_row` and `data.list_answers`."""

    format: str = "auto"
    on_bad_row: str = "refuse"
    list_answers: str = "any"


# name -> the columns with the problem and with the gold answer, in the order in which they are looked for
FORMATS: dict[str, tuple[str, str]] = {
    "verl": ("prompt", "reward_model.ground_truth"),
    "gsm8k": ("question", "answer"),
    "math": ("problem", "solution"),
    "openrlhf": ("input", "label"),
    "openrlhf messages": ("context_messages", "label"),
    "trl": ("prompt", "solution"),
    "trl answer": ("prompt", "answer"),
    "trl ground truth": ("prompt", "ground_truth"),
}
ANY_OF = "any of "  # begins a gold answer with alternatives, a JSON list after it


def recognised(row: Any, problem_key: str, answer_key: str, format: str) -> tuple[str, str, str]:
    """The keys of the problem and the answer, and what they are those of ("" for the configured ones)."""
    if format == "columns" or not isinstance(row, dict):
        return problem_key, answer_key, ""
    if format == "auto" and has(row, problem_key) and has(row, answer_key):
        return problem_key, answer_key, ""
    # "trl" names all of TRL's forms; of rows in none of them the first one's columns are then missed
    named = {name: pair for name, pair in FORMATS.items() if format in ("auto", name.split()[0])}
    for name, (problem, answer) in named.items():
        if has(row, problem) and has(row, answer):
            return problem, answer, name
    return (problem_key, answer_key, "") if format == "auto" else (*FORMATS[format], format)


def has(row: dict[str, Any], key: str) -> bool:
    try:
        value_at(row, key)
    except BadRow:
        return False
    return True


def value_at(row: Any, key: str) -> Any:
    """The value at `key`, or at the dotted path; BadRow if there is none."""
    if not isinstance(row, dict):
        raise BadRow(f"a {type(row).__name__}, not an object with the key {key!r}")
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise BadRow(f"no key {key!r}; the row has {', '.join(map(repr, row)) or 'none'}")
        value = value[part]
    return value


def value_of(row: Any, key: str) -> str:
    """The text or number at `key` of a row, as text; BadRow if it is missing, empty or of another type."""
    return _text(value_at(row, key), key)


def problem_of(row: Any, key: str) -> str:
    """The problem's text: a text, or the user's message of a list of messages."""
    value = value_at(row, key)
    if not isinstance(value, list):
        return _text(value, key)
    if not all(isinstance(message, dict) and "role" in message for message in value) or not value:
        raise BadRow(f"{key!r} is a list; it must be text or a list of messages with role and content")
    roles = [message["role"] for message in value]
    if roles.count("user") != 1 or roles[-1] != "user" or set(roles) - {"system", "user"}:
        raise BadRow(f"{key!r} has messages of {', '.join(map(str, roles))}; give one of the user, the last")
    content = value[-1].get("content")
    if isinstance(content, list):  # parts, of which only text can be asked
        others = [part.get("type") for part in content if not isinstance(part, dict) or part.get("type") != "text"]
        if others:
            raise BadRow(f"{key!r} holds parts of type {others[0]!r}; only text can be asked")
        content = "\n".join(part["text"] for part in content)
    return _text(content, key)


def system_of(row: Any, key: str) -> str | None:
    """The text of the system message before a problem that is a list of messages; None if there is none."""
    value = value_at(row, key)
    messages = value if isinstance(value, list) else []
    texts = [str(message.get("content")) for message in messages if message["role"] == "system"]
    return "\n".join(texts) if texts else None


def answer_of(row: Any, key: str, rules: RowRules) -> str:
    """The gold answer: a text or number, a solution's final answer, or a list of which any or all count."""
    value = value_at(row, key)
    if not isinstance(value, list):
        return final_answer(_text(value, key))
    texts = [final_answer(_text(one, key)) for one in value]
    if not texts:
        raise BadRow(f"{key!r} is an empty list")
    if len(texts) == 1:
        return texts[0]
    return ", ".join(texts) if rules.list_answers == "all" else ANY_OF + json.dumps(texts, ensure_ascii=False)


def final_answer(text: str) -> str:
    """The answer that a solution ends in, after `####` or in a box; other texts as they are."""
    if HASHES.search(text) or BOX.search(text):
        return stated_answer(text) or text
    return text


def alternatives(answer: str) -> Sequence[str]:
    """The gold answers of which each is right; one, unless the data give a list."""
    if answer.startswith(ANY_OF):
        try:
            found = json.loads(answer[len(ANY_OF) :])
        except json.JSONDecodeError:
            return [answer]
        if isinstance(found, list) and found and all(isinstance(one, str) for one in found):
            return found
    return [answer]


def _text(value: Any, key: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise BadRow(f"{key!r} is {kind}; it must be text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow(f"{key!r} is {value}; it must be text or a finite number")
    if not str(value).strip():
        raise BadRow(f"{key!r} is empty")
    return str(value)
