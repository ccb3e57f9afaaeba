"""A configuration file and key=value overrides -> a typed Config in which the source of every value is known."""

from __future__ import annotations

import copy
import math
import operator
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from score_openrlhf.config.errors import ConfigError, nearest
from score_openrlhf.config.keys import PATH_KEYS, Key, keys, sections, set_value, value_of
from score_openrlhf.config.packaged import find
from score_openrlhf.config.refused import REFUSED
from score_openrlhf.config.schema import Config
from score_openrlhf.config.sources import compose_files
from score_openrlhf.errors import UserError

COMMAND_LINE = "command line"
DEFAULT = "default"


@dataclass(frozen=True)
class Resolved:
    """A configuration with all interpolations resolved; `sources` maps each dotted key to where its value stands."""

    cfg: Config
    sources: Mapping[str, str]  # "default", "command line" or the file's name
    config_path: str  # absolute


def load_config(path: str, overrides: list[str]) -> Resolved:
    """Compose the configuration `path`, a file or a name that the package knows, then apply `overrides` (`key=value`).

    Raises ConfigError that lists every unknown key with the nearest valid names, and every value of a wrong type.

        resolved = load_config("configs/rl_guided_score_math.yaml", ["guidance_samples=4", "data.train=rows.jsonl"])
    """
    merged = copy.deepcopy(_typed_defaults())
    sources = dict.fromkeys(keys(), DEFAULT)
    problems: list[str] = []
    for file in compose_files(path):
        values = file.values
        for part in reversed(file.package.split(".") if file.package else []):
            values = {part: values}
        _merge(merged, _flatten(values), file.label, sources, problems)
    for override in overrides:
        try:
            name, value = _parse_override(override)
        except UserError as error:
            problems.append(str(error))
            continue
        _merge(merged, _flatten(value, name), COMMAND_LINE, sources, problems)
    if problems:
        raise ConfigError(problems)
    try:
        cfg = cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(_interpolation_problems(merged, sources)) from error
    for name in PATH_KEYS:
        value = value_of(cfg, name)
        if value is not None and value.startswith("~"):
            set_value(cfg, name, os.path.expanduser(value))
    return Resolved(cfg=cfg, sources=sources, config_path=str(find(path)))


def to_yaml_with_sources(resolved: Resolved) -> str:
    """The configuration as YAML that loads again to the same values, each line ending in its value's source."""
    header = f"# Resolved from {os.path.basename(resolved.config_path)}; each comment names where the value stands."
    return "\n".join([header, *_yaml_lines(resolved, "")]) + "\n"


def save(resolved: Resolved, path: str) -> None:
    """Write `to_yaml_with_sources` to `path`, whole or not at all (a temporary name, then a rename)."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    temporary.write_text(to_yaml_with_sources(resolved), encoding="utf-8")
    os.replace(temporary, target)


@cache
def _typed_defaults() -> DictConfig:
    """The schema as OmegaConf's typed nodes; a copy costs a fifth of making them anew."""
    return OmegaConf.structured(Config)


def _flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping -> (dotted name, value); an empty or non-mapping value is left to `_merge` to judge."""
    if not isinstance(values, Mapping) or (prefix and (prefix in keys() or not values)):
        yield prefix, values
        return
    for part, value in values.items():
        yield from _flatten(value, f"{prefix}.{part}" if prefix else str(part))


def _merge(
    merged: DictConfig, items: Iterator[tuple[str, Any]], where: str, sources: dict[str, str], problems: list[str]
) -> None:
    for name, value in items:
        key = keys().get(name)
        if key is None and (parent := keys().get(name.rpartition(".")[0])) and parent.type is dict:
            name, value, key = parent.name, {name.rpartition(".")[2]: value}, parent
        if key is None:
            if not (name in sections() and value in ({}, None)):  # an empty section sets nothing
                problems.append(_unknown(name, value, where))
            continue
        if _loses_by_conversion(key, value):
            problems.append(_wrong_type(key, value, where))
            continue
        try:
            # a mapping is added to what there is; OmegaConf cannot merge one into null
            merge = key.type is not dict or OmegaConf.select(merged, name) is not None
            OmegaConf.update(merged, name, value, merge=merge)
        except OmegaConfBaseException:
            problems.append(_wrong_type(key, value, where))
            continue
        sources[name] = where


def _parse_override(override: str) -> tuple[str, Any]:
    """`key=value` -> (dotted name, value); text keys take the text as it stands, others Hydra's grammar for values."""
    name, equals, text = override.partition("=")
    name, text = name.strip(), text.strip()
    if name.startswith("-"):
        raise UserError(f"{override!r} ({COMMAND_LINE}): write overrides as key=value, without dashes")
    if name.startswith(("+", "~")):
        raise UserError(f"{override!r} ({COMMAND_LINE}): keys are neither added (+) nor removed (~); write key=value")
    if not equals or not name:
        raise UserError(f"{override!r} ({COMMAND_LINE}): an override has the form key=value")
    if "@" in name or name.endswith("+"):
        raise UserError(f"{override!r} ({COMMAND_LINE}): only key=value is understood; drop what follows the key")
    key = keys().get(name)
    if key is not None and key.type is str and text[:1] not in ("'", '"'):
        # Paths, URLs and prompts hold characters ({, =, a comma) that Hydra's grammar refuses or reads as a sweep.
        return name, None if text == "null" else text
    try:
        parsed = OverridesParser.create().parse_override(f"{name}={text}")
    except HydraException as error:
        raise UserError(f"{override!r} ({COMMAND_LINE}): {str(error).splitlines()[0]}; quote the value") from error
    if parsed.is_sweep_override():
        raise UserError(f"{override!r} ({COMMAND_LINE}): a sweep over values; give one value (lists as [a,b])")
    return name, parsed.value()


def _loses_by_conversion(key: Key, value: Any) -> bool:
    """Whether OmegaConf would convert `value` to `key`'s type and so hide a mistake (2 -> true, [1] -> '[1]')."""
    if key.type is bool:
        return not isinstance(value, (bool, str)) and value is not None
    if key.type in (int, float):
        return isinstance(value, bool) or (isinstance(value, float) and math.isnan(value))
    return key.type is str and isinstance(value, (bool, list, dict))


def _unknown(name: str, value: Any, where: str) -> str:
    if name in REFUSED:
        return f"{name} ({where}) is the host's and refused here: {REFUSED[name]}"
    if name in sections():
        some = [key for key in keys() if key.startswith(name + ".")][:3]
        return f"{name} ({where}) is a section, not a value: set its keys, such as {', '.join(some)} (got {value!r})"
    parent = name.rsplit(".", 1)[0]
    while "." in parent and parent not in keys():
        parent = parent.rsplit(".", 1)[0]
    if parent in keys():
        key = keys()[parent]
        return f"{name} ({where}) is unknown: {parent} is a value ({key.type_name}), not a section"
    near = nearest(name, [*keys(), *filter(None, sections())])
    hint = f"; did you mean {' or '.join(near)}?" if near else "; docs/configuration.md lists all keys"
    return f"unknown key {name} ({where}){hint}"


def _wrong_type(key: Key, value: Any, where: str) -> str:
    shown = yaml.safe_dump(value).removesuffix("...\n").rstrip("\n") if value in (None, True, False) else repr(value)
    return f"{key.name} ({where}) is {shown}, but must be {key.type_name}"


def _interpolation_problems(merged: DictConfig, sources: Mapping[str, str]) -> list[str]:
    """Why values cannot be resolved; those that only repeat another failing key's value are left out."""
    raw, reasons = {}, {}
    unresolved = OmegaConf.to_container(merged, resolve=False)
    for name in keys():
        raw[name] = reduce(operator.getitem, name.split("."), cast(Any, unresolved))
        try:
            OmegaConf.select(merged, name, throw_on_missing=True)
        except MissingMandatoryValue:
            reasons[name] = f"a value that must be given: {name}=..."
        except OmegaConfBaseException as error:
            reasons[name] = f"{str(error.msg).splitlines()[0]}; write a literal dollar and brace as \\${{"
    return [
        f"{name} ({sources[name]}) is {raw[name]!r}: {reason}"
        for name, reason in reasons.items()
        if not any(f"${{{other}}}" in str(raw[name]) for other in reasons if other != name)
    ]


def _yaml_lines(resolved: Resolved, section: str) -> Iterator[str]:
    """One section's lines: its own keys, then the sections inside it."""
    indent = "  " * (section.count(".") + 1) if section else ""
    for name in keys():
        if name.rpartition(".")[0] == section:
            value = _yaml_value(value_of(resolved.cfg, name))
            yield f"{indent}{name.rpartition('.')[2]}: {value}  # {resolved.sources[name]}"
    for name in filter(None, sections()):
        if name.rpartition(".")[0] == section:
            yield f"{indent}{name.rpartition('.')[2]}:"
            yield from _yaml_lines(resolved, name)


def _yaml_value(value: Any) -> str:
    if isinstance(value, str):
        # OmegaConf reads ${ as an interpolation; \${ is the literal, and backslashes in front of it count double.
        value = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
        return yaml.safe_dump(value, default_style='"', width=math.inf, allow_unicode=True).rstrip("\n")
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").rstrip("\n")
