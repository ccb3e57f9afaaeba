"""What a user calls a configuration -> the file: a path, or the name of one that comes with the package.

The project's `configs/` is `score_openrlhf/configs/` in a wheel (setup.py); in a checkout it is read where it stands.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from score_openrlhf.config.errors import ConfigError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
_IN_A_WHEEL = Path(__file__).resolve().parents[1] / "configs"
PROJECT_CONFIGS = _IN_A_WHEEL if _IN_A_WHEEL.is_dir() else PROJECT_ROOT / "configs"


def names() -> list[str]:
    """The configurations that come with the package, as they are called: without folder and suffix."""
    return sorted(file.stem for file in PROJECT_CONFIGS.glob("*.yaml"))


def is_name(word: str) -> bool:
    """Whether `word` is the name of a configuration of the package."""
    return word in names()


def find(word: str) -> Path:
    """The absolute path of the configuration `word`: a file's path that ends in .yaml, or a name of `names()`.

    Raises ConfigError with near names where there is none.
    """
    if is_name(word):
        return PROJECT_CONFIGS / f"{word}.yaml"
    file = Path(os.path.abspath(os.path.expanduser(word)))
    if file.suffix != ".yaml":
        if os.sep in word or file.exists():
            raise ConfigError([f"{file}: a configuration file's name ends in .yaml"])
        near = get_close_matches(word, names(), n=1, cutoff=0.5)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError([f"{word} is not a configuration of the package{meant}{_there_are()}"])
    if file.is_file():
        return file
    raise ConfigError([f"{file} does not exist{_instead_of(file)}"])


def label(file: Path) -> str:
    """How a file is named to people: relative to the working directory or the project where it lies in one of them."""
    for root in (Path.cwd(), PROJECT_CONFIGS.parent):
        if file.is_relative_to(root):
            return str(file.relative_to(root))
    return str(file)


def _instead_of(file: Path) -> str:
    if is_name(file.stem):
        return f"; the one that comes with the package is called {file.stem}, without folder and .yaml"
    if not file.parent.is_dir():
        return f", nor does its folder{_there_are()}"
    there = sorted(entry.name for entry in file.parent.glob("*.yaml"))
    near = get_close_matches(file.name, there, n=3, cutoff=0.5) or there[:5]
    return f"; near names in that folder: {', '.join(near)}" if near else f"; that folder has none{_there_are()}"


def _there_are() -> str:
    return f"; the package has {', '.join(names())}; a file of your own is named by its path, which ends in .yaml"
