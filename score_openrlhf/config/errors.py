"""A list of problems with a configuration -> one error that shows them all, each with its fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

from score_openrlhf.errors import UserError


class ConfigError(UserError):
    """What a user can get wrong in a configuration; `problems` holds one sentence or more for each."""

    def __init__(self, problems: list[str]):
        self.problems = list(problems)
        lines = [f"  - {problem}" for problem in self.problems]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        super().__init__("\n".join([f"the configuration has {count}:", *lines]))

    def __reduce__(self):
        # Exceptions are rebuilt from args (the joined text) by default, which loses the list between processes.
        return ConfigError, (self.problems,)


def nearest(name: str, candidates: Iterable[str], *, limit: int = 3) -> list[str]:
    """The dotted names most like `name`, best first; a match of the last component alone counts too."""
    last = name.rsplit(".", 1)[-1]

    def score(candidate: str) -> float:
        candidate_last = candidate.rsplit(".", 1)[-1]
        if last == candidate_last:
            return 2.0 + SequenceMatcher(None, name, candidate).ratio()
        if candidate_last.endswith("_" + last):
            return 1.0 + SequenceMatcher(None, name, candidate).ratio()
        full = SequenceMatcher(None, name, candidate).ratio()
        return max(full, 0.95 * SequenceMatcher(None, last, candidate_last).ratio())

    ranked = sorted(((score(candidate), candidate) for candidate in candidates), key=lambda pair: (-pair[0], pair[1]))
    floor = max(0.6, min(1.0, ranked[0][0] - 0.1))
    return [candidate for value, candidate in ranked[:limit] if value >= floor]
