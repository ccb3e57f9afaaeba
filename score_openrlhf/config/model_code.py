"""A configuration -> the models whose own Python code may run, and a line for each that has some and may not.

A model's folder can name Python files (`auto_map` in its JSON files) that transformers runs to load it. Nobody can
know that such a file does no harm, so it is refused unless a key allows it, model by model; `platform/remote_code.py`
sees to it in every process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from score_openrlhf.config.derive import guidance_start, has_guidance
from score_openrlhf.config.schema import Config

FILES = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def models(cfg: Config) -> Iterator[tuple[str, str, bool]]:
    """(the key that allows a model's code, the model, whether it does) of the solver and the guidance model."""
    if cfg.model_path:
        yield "trust_remote_code", cfg.model_path, cfg.trust_remote_code
    hints = guidance_start(cfg) if has_guidance(cfg) else None
    if hints:
        yield "guidance_trust_remote_code", hints, cfg.guidance_trust_remote_code


def name_of(model: str) -> str:
    """A model's folder as an absolute path, any other name as it is: what two names of one model share."""
    path = os.path.expanduser(model)
    return os.path.abspath(path) if os.path.isdir(path) else model


def trusted_models(cfg: Config) -> list[str]:
    """The models whose code may run, with the repositories whose code theirs refers to."""
    trusted = {name_of(model) for _, model, allowed in models(cfg) if allowed}
    others = {code.partition("--")[0] for model in trusted for _, code in own_code(model) if "--" in code}
    return sorted(trusted | others)


def is_trusted(cfg: Config, model: str) -> bool:
    """Whether the code of `model` may run."""
    return name_of(model) in trusted_models(cfg)


def untrusted_code(cfg: Config) -> Iterator[str]:
    """The models in folders that come with code of their own and may not run it; a hub's are refused when loaded."""
    trusted, said = trusted_models(cfg), set()
    for key, model, _ in models(cfg):
        name = name_of(model)
        code = [f"{code} in {file}" for file, code in own_code(name)]
        if code and name not in trusted and name not in said:
            said.add(name)
            yield refusal(name, ", ".join(code), key)


def refusal(model: str, code: str, key: str) -> str:
    """Why a model is not loaded, and the mend."""
    return (
        f"{model} comes with Python code of its own ({code}), which would run on this machine to load it: set "
        f"{key}=true if you have read it and trust it, or remove auto_map to load it by transformers' own classes"
    )


def own_code(folder: str) -> list[tuple[str, str]]:
    """(JSON file, `module.Class` or `owner/name--module.Class`) of the code that a model's folder names."""
    found = []
    for file in FILES:
        path = Path(folder, file)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there, or said by whoever reads it
            continue
        named = values.get("auto_map") if isinstance(values, dict) else None
        pieces = list(named.values()) if isinstance(named, dict) else [named]
        for piece in pieces:
            found += [
                (file, code) for code in (piece if isinstance(piece, list) else [piece]) if isinstance(code, str)
            ]
    return found
