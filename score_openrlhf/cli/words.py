"""CONFIG, key=value and a problem's text, in any order and between the options, told apart in one place."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from score_openrlhf.config import packaged
from score_openrlhf.config.keys import keys
from score_openrlhf.errors import UserError

OVERRIDE = re.compile(r"[+~]?([A-Za-z_][\w.]*)=")


def is_config(word: str) -> bool:
    """Whether a word names a configuration: a YAML file, the folder of a run, or a name that the package knows."""
    return word.endswith((".yaml", ".yml")) or Path(word, "config.yaml").is_file() or packaged.is_name(word)


def is_override(word: str) -> bool:
    """Whether a word is `key=value`. A text with spaces is one only if what stands before `=` looks like a key."""
    match = OVERRIDE.match(word)
    if match is None or Path(word).is_file():
        return False
    return match[1] in keys() or "." in match[1] or not re.search(r"\s", word)


class Words(argparse.Action):
    """All positional words in; `config` (None without one), `overrides` and, where allowed, `texts` out.

    Raises UserError where there are several of one kind, or no CONFIG and one is needed.
    """

    def __init__(self, *args: Any, needs_config: bool = False, texts: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.needs_config, self.texts = needs_config, texts

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        words = list(values or ())
        namespace.overrides = [word for word in words if is_override(word)]
        rest = [word for word in words if not is_override(word)]
        configs = [word for word in rest if is_config(word)] if self.texts else rest
        namespace.config = configs[0] if configs else None
        namespace.texts = [word for word in rest if word not in configs]
        if len(configs) > 1 or len(namespace.texts) > 1:
            what = "one PROBLEM and one CONFIG" if self.texts else "one CONFIG"
            mend = "; put the problem in quotes" if self.texts else "; overrides have the form key=value"
            raise UserError(f"{what} at most, not {' and '.join(rest)}{mend}")
        if self.needs_config and not configs:
            known = ", ".join(packaged.names())
            raise UserError(f"CONFIG is missing: give a YAML file, or one of the package: {known}")


def add_words(parser: argparse.ArgumentParser, metavar: str, help: str, **how: bool) -> None:
    """The positional words of a command whose line may mix them with options (`parse_intermixed_args`)."""
    parser.add_argument("words", nargs="*", action=Words, metavar=metavar, help=help, **how)  # type: ignore[arg-type]


def add_config(parser: argparse.ArgumentParser, example: str) -> None:
    """CONFIG, which has to be there, and key=value."""
    add_words(
        parser, "CONFIG | key=value",
        f"a YAML file, or one of the package: {', '.join(packaged.names())}; overrides such as {example}",
        needs_config=True,
    )  # fmt: skip
