"""A configuration and its held-out problems in; a table of all that changes what an evaluation measures out.

Two evaluations are compared, or one goes on where another stopped, only where these tables are equal; where they are
not, `changes` names what differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from score_openrlhf.config.keys import keys, value_of
from score_openrlhf.config.schema import Config

# Sections of which every key counts, a key that is yet to come too, but for those that say when, with how many
# processes or how fast an evaluation is made, or that are training's alone.
SECTIONS = ("data", "eval", "rollout", "task", "templates")
NOT_COUNTED = (
    "data.train", "data.train_split", "data.max_train_problems", "data.shuffle",
    "eval.steps", "eval.before_and_after",
    "rollout.batch_size", "rollout.n_samples_per_prompt", "rollout.temperature", "rollout.guidance_temperature",
    "rollout.on_truncated_attempt", "rollout.on_truncated_guidance", "rollout.max_failed_fraction",
    "rollout.micro_batch_size", "rollout.max_tokens_per_gpu", "rollout.schedule",
    "rollout.base_attempts_stage1", "rollout.base_attempts_stage2",
    "task.grader_processes", "task.max_error_fraction",
)  # fmt: skip
COUNTED_ELSEWHERE = ("ds.param_dtype",)  # what engines calculate in
SAMPLED_BLOCKS, BLOCK_BYTES = 64, 1 << 16
PROBLEMS, TEMPLATES, CODE = "the problems themselves", "the prompts", "the task's code"


def evaluation_keys() -> tuple[str, ...]:
    """The configuration keys that change what an evaluation measures; the models, its subject, are not among them."""
    of_sections = (name for name in keys() if name.split(".")[0] in SECTIONS and "." in name)
    return (*(name for name in of_sections if name not in NOT_COUNTED), *COUNTED_ELSEWHERE)


def evaluation_settings(cfg: Config, problems: Iterable[Any], templates: Any) -> dict[str, Any]:
    """What an evaluation of this configuration measures, JSON-ready: its keys' values and digests of what they name.

    `problems` have a text, an answer and their other columns; `templates` is the dataclass of the prompts in use.
    """
    asked = [(problem.text, problem.answer, problem.extra) for problem in problems]
    return {
        **{name: value_of(cfg, name) for name in evaluation_keys()},
        PROBLEMS: digest(asked),
        TEMPLATES: digest(dataclasses.asdict(templates)),
        CODE: digest([file_digest(cfg.task.name.rpartition(":")[0]), file_digest(cfg.task.reward_func)]),
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two evaluations' settings, in words: `eval.num_samples was 1 and is 2`."""
    found = []
    for key in dict.fromkeys((*before, *now)):
        old, new = before.get(key), now.get(key)
        if old != new:
            named = key in keys() or not (isinstance(old, str) and isinstance(new, str))
            found.append(f"{key} was {old} and is {new}" if named else f"{key} changed")
    return found


def weights_digest(model_path: str | None) -> str | None:
    """A short name for what a model's folder holds; None for a hub name, which says itself what it is.

    Small files count whole. Of weights, which training changes everywhere, SAMPLED_BLOCKS blocks are read.
    """
    if model_path is None or not Path(model_path).is_dir():
        return None
    found = hashlib.sha256()
    for path in sorted(Path(model_path).iterdir()):
        if not path.is_file():
            continue
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for block in range(SAMPLED_BLOCKS):
                file.seek(block * size // SAMPLED_BLOCKS)
                found.update(file.read(BLOCK_BYTES))
    return found.hexdigest()[:16]


def digest(value: Any) -> str:
    """A short name for JSON-ready content: equal for equal content, in any process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: str | None) -> str | None:
    """A digest of a file; None where the name is not one of a file, a URL say."""
    if not path or not Path(path).is_file():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
