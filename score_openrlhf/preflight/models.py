"""A model's folder or hub name in; what stops it from being loaded, prompted, served or saved, out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openrlhf.utils.utils import get_tokenizer

from score_openrlhf.config.derive import guidance_start, has_guidance
from score_openrlhf.config.model_code import is_trusted
from score_openrlhf.config.schema import Config
from score_openrlhf.errors import UserError


def models_of(cfg: Config) -> dict[str, str]:
    """The models of the run by the key that names them; one model in both roles stands once."""
    assert cfg.model_path is not None
    found = {"model_path": cfg.model_path}
    hints = guidance_start(cfg) if has_guidance(cfg) else None
    if hints is not None and hints != cfg.model_path:
        found["guidance_model_path" if cfg.guidance_model_path else "correction_model_path"] = hints
    return found


def load_tokenizer(key: str, model: str, *, use_fast: bool = True) -> Any:
    """The model's tokenizer; raises UserError, one line with the key, for whatever stops it."""
    try:
        return get_tokenizer(model, None, "left", use_fast=use_fast)
    except UserError:
        raise
    except Exception as error:  # the hub, a broken file, a class this transformers lacks: one line each, by its key
        raise UserError(f"{key}: the tokenizer of {model} cannot be loaded: {in_a_line(error)}") from error


def config_faults(key: str, model: str, cfg: Config) -> Iterator[str]:
    """Why the model's configuration cannot be loaded."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(model, trust_remote_code=is_trusted(cfg, model))
    except Exception as error:  # as above
        yield f"{key}: the configuration of {model} cannot be loaded: {in_a_line(error)}"


def generation_note(key: str, model: str) -> str | None:
    """What will be changed of the model's generation config when it is saved; None if nothing, or if it has none."""
    from transformers import GenerationConfig
    from transformers.utils import logging

    from score_openrlhf.policies.generation import savable

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would say in four lines what the note says in one
    try:
        config = GenerationConfig.from_pretrained(model)
    except (OSError, ValueError):
        return None
    finally:
        logging.set_verbosity(level)
    _, change = savable(config)
    return f"{key}: generation_config.json of {model} contradicts itself; when saved, {change}" if change else None


def in_a_line(error: Exception) -> str:
    """The error's first sentence, and what to do about it where it came from the hub."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "offline" in text.lower() or "huggingface.co" in text or "couldn't connect" in text.lower():
        return (
            "it is not on this machine and the hub cannot be reached; download it where there is a network "
            "(hf download NAME), name a folder instead, or look at HF_HUB_OFFLINE and HF_HOME"
        )
    if "gated" in text.lower() or "401" in text:
        return "the hub asks for a login: accept the model's terms there and set HF_TOKEN"
    sentence = text.split(". ")[0]
    return sentence if len(sentence) <= 300 else sentence[:297] + "..."
