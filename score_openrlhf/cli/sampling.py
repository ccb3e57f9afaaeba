"""CONFIG, key=value, --solver and --guidance in; the configuration of commands that sample and do not train out."""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from score_openrlhf import platform
from score_openrlhf.config.compose import DEFAULT, Resolved, load_config
from score_openrlhf.config.keys import keys

NO_GUIDANCE = "none"
OVERRIDE = re.compile(r"([a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*)=\S")
# Shares of data.max_len, those of the schema's defaults; what is left is for the prompts.
ATTEMPT_SHARE, GUIDANCE_SHARE = 1 / 4, 1 / 16


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--solver, --guidance and --temperature, shared by evaluate and solve."""
    parser.add_argument("--solver", metavar="PATH", help="the solver: a directory or a hub name; default: CONFIG's")
    parser.add_argument(
        "--guidance",
        metavar="PATH",
        help=f"the guidance model, or {NO_GUIDANCE}; default: CONFIG's, and none without CONFIG",
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="of both models; 0 is greedy")


def is_override(word: str) -> bool:
    """Whether a word is `key=value`: a known key, or a dotted name that is meant to be one."""
    match = OVERRIDE.match(word)
    return match is not None and (match.group(1) in keys() or "." in match.group(1) or len(match.group(1)) > 3)


def is_config(word: str) -> bool:
    """Whether a word names a configuration: a YAML file, or the folder of a run."""
    return word.endswith((".yaml", ".yml")) or Path(word, "config.yaml").is_file()


def resolve(config: str | None, overrides: list[str], solver: str | None, guidance: str | None) -> Resolved:
    """The configuration of CONFIG (a file, a run's folder, or None for the defaults) with what the options say.

    A run's folder brings the models that it trained. Raises ConfigError as `load_config` does.
    """
    if config is not None and Path(config, "config.yaml").is_file():
        run = Path(config)
        solver = solver or _exported(run / "solver")
        guidance = guidance or _exported(run / "guidance")
        config = str(run / "config.yaml")
    words = list(overrides)
    if solver is not None:
        words.append(f"model_path={solver}")
    if guidance == NO_GUIDANCE or (guidance is None and config is None):
        words.append("method=score")
    elif guidance is not None:
        words += ["method=smart_score", f"guidance_model_path={guidance}"]
    if config is not None:
        return load_config(config, words)
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "defaults.yaml")
        empty.write_text("{}\n")
        resolved = load_config(str(empty), words)
    _fit_budgets(resolved)
    if platform.is_cpu() and resolved.sources["ds.param_dtype"] == DEFAULT:
        resolved.cfg.ds.param_dtype = "fp32"  # cores without bf16 arithmetic sample 1.7 times as fast in it
    return resolved


def _exported(path: Path) -> str | None:
    return str(path) if Path(path, "config.json").is_file() else None


def _fit_budgets(resolved: Resolved) -> None:
    """Defaults that fit the model: sequences no longer than it was made for, budgets that leave room for prompts."""
    cfg, sources = resolved.cfg, resolved.sources
    if cfg.model_path is None or not Path(cfg.model_path, "config.json").is_file():
        return
    from transformers import AutoConfig

    if sources["data.max_len"] == DEFAULT:
        longest = getattr(AutoConfig.from_pretrained(cfg.model_path), "max_position_embeddings", None)
        cfg.data.max_len = min(cfg.data.max_len, longest or cfg.data.max_len)
    for name, share in (("attempt", ATTEMPT_SHARE), ("guidance", GUIDANCE_SHARE), ("revision", ATTEMPT_SHARE)):
        key = f"{name}_max_tokens"
        if sources[f"rollout.{key}"] == DEFAULT:
            setattr(cfg.rollout, key, max(1, min(getattr(cfg.rollout, key), int(share * cfg.data.max_len))))
