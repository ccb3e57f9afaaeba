"""A configuration -> the local files and folders it names that are not there, each by its absolute path."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from score_openrlhf.config.choices import GUIDANCE_REWARDS, TASKS
from score_openrlhf.config.context import context_length
from score_openrlhf.config.derive import has_guidance
from score_openrlhf.config.errors import nearest
from score_openrlhf.config.schema import Config

DATA_SUFFIXES = (".jsonl", ".json", ".parquet")


def looks_like_path(value: str) -> bool:
    """Whether `value` names something on this machine and not on the hub (`name` or `owner/name`)."""
    return (
        value.startswith(("/", "./", "../", "~"))
        or value.endswith(DATA_SUFFIXES)
        or value.count("/") > 1
        or os.path.exists(value)
    )


def paths(cfg: Config) -> Iterator[str]:
    """Models, data and user code that are missing."""
    if not cfg.model_path:
        yield "model_path is not set: give the solver's starting model, model_path=<directory or hub name>"
    if not cfg.data.train:
        yield "data.train is not set: give the training problems, data.train=<file or hub name>"
    for name, model in _models(cfg):
        if looks_like_path(model):
            yield from _model(name, model)
    for name, source in (("data.train", cfg.data.train), ("data.eval", cfg.data.eval)):
        if source and looks_like_path(source) and not os.path.exists(source):
            yield f"{name}: {os.path.abspath(source)} does not exist"
    yield from _plugin("task.name", cfg.task.name, TASKS, "Class")
    yield from _plugin("guidance.reward", cfg.guidance.reward, GUIDANCE_REWARDS, "function")
    reward_func = cfg.task.reward_func
    if reward_func and not reward_func.startswith(("http://", "https://")) and not os.path.isfile(reward_func):
        yield f"task.reward_func: {os.path.abspath(reward_func)} does not exist; give a .py file or an http(s) URL"


def contexts(cfg: Config) -> Iterator[str]:
    """Models of this machine that were made for shorter sequences than `data.max_len`; vLLM would refuse them."""
    for name, model in _models(cfg):
        longest = context_length(model) if looks_like_path(model) else None
        if longest is not None and longest < cfg.data.max_len:
            yield (
                f"data.max_len is {cfg.data.max_len}, and the model at {name} ({os.path.abspath(model)}) was made for "
                f"sequences of {longest} tokens: set data.max_len={longest} and token budgets that leave room for the "
                "prompts"
            )


def _models(cfg: Config) -> Iterator[tuple[str, str]]:
    """The models that are loaded, by the key that names them."""
    for name, model in (
        ("model_path", cfg.model_path),
        ("correction_model_path", cfg.correction_model_path if has_guidance(cfg) else None),
        ("guidance_model_path", cfg.guidance_model_path if has_guidance(cfg) else None),
    ):
        if model:
            yield name, model


def _model(name: str, model: str) -> Iterator[str]:
    path = os.path.abspath(model)
    if not os.path.isdir(path):
        yield f"{name}: {path} {'is a file, not a model directory' if os.path.isfile(path) else 'does not exist'}"
    elif not os.path.isfile(os.path.join(path, "config.json")):
        yield f"{name}: {path} holds no config.json, so it is no Hugging Face model directory"


def _plugin(name: str, value: str, known: Collection[str], kind: str) -> Iterator[str]:
    file, colon, member = value.rpartition(":")
    if value in known:
        return
    if not colon:
        near = nearest(value, known, limit=1)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(known)} or path/to/file.py:{kind}"
        yield f"{name} is {value!r}: {hint}"
    elif not os.path.isfile(file):
        yield f"{name}: {os.path.abspath(file)} does not exist"
    elif not member.isidentifier():
        yield f"{name} is {value!r}: {member!r} is no name of a {kind.lower()}; write path/to/file.py:{kind}"
