"""CONFIG, key=value, --solver and --guidance in; the configuration of commands that sample and do not train out."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from score_openrlhf import platform
from score_openrlhf.config.compose import DEFAULT, Resolved, load_config
from score_openrlhf.config.context import context_length
from score_openrlhf.config.derive import guidance_start, has_guidance

NO_GUIDANCE = "none"
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
        resolved = load_config(config, words)
        _fit_dtype(resolved)
        return resolved
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "defaults.yaml")
        empty.write_text("{}\n")
        resolved = load_config(str(empty), words)
    _fit_budgets(resolved)
    _fit_dtype(resolved)
    return resolved


def _exported(path: Path) -> str | None:
    return str(path) if Path(path, "config.json").is_file() else None


def _fit_dtype(resolved: Resolved) -> None:
    """The type in which this machine samples fastest, where nobody has set one."""
    if resolved.sources["ds.param_dtype"] != DEFAULT:
        return
    cfg = resolved.cfg
    models = [cfg.model_path, guidance_start(cfg) if has_guidance(cfg) else None]
    cfg.ds.param_dtype = platform.sampling_dtype([m for m in models if m]) or cfg.ds.param_dtype


def _fit_budgets(resolved: Resolved) -> None:
    """Defaults that fit the model: sequences no longer than it was made for, budgets that leave room for prompts."""
    cfg, sources = resolved.cfg, resolved.sources
    if cfg.model_path is None or not Path(cfg.model_path, "config.json").is_file():
        return
    if sources["data.max_len"] == DEFAULT:
        cfg.data.max_len = min(cfg.data.max_len, context_length(cfg.model_path) or cfg.data.max_len)
    for name, share in (("attempt", ATTEMPT_SHARE), ("guidance", GUIDANCE_SHARE), ("revision", ATTEMPT_SHARE)):
        key = f"{name}_max_tokens"
        if sources[f"rollout.{key}"] == DEFAULT:
            setattr(cfg.rollout, key, max(1, min(getattr(cfg.rollout, key), int(share * cfg.data.max_len))))
