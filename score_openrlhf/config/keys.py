"""The schema's dataclasses -> a flat table of keys: dotted name, type, default, range, meaning."""

from __future__ import annotations

import operator
import types
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from score_openrlhf.config.schema import Config

# Keys whose value is a path on this machine or may be one (a hub name, a URL): a leading ~ is the home directory.
PATH_KEYS = (
    "model_path",
    "correction_model_path",
    "guidance_model_path",
    "output_dir",
    "checkpoint_path",
    "data.train",
    "data.eval",
    "task.reward_func",
    "playground.path",
)


@dataclass(frozen=True)
class Key:
    """One configuration key; `limits` holds the metadata ge, gt, le, lt and choices that are set."""

    name: str  # dotted, as in actor.adam.lr
    type: type  # float for Optional[float]; list for List[float]; dict for a mapping with any values
    item_type: Any  # float for List[float], None for a scalar
    nullable: bool
    default: Any
    help: str
    limits: Mapping[str, Any]

    @property
    def type_name(self) -> str:
        """The type in words of YAML, e.g. `list of float or null`."""
        if self.type is list:
            name = f"list of {self.item_type.__name__}"
        else:
            name = "mapping" if self.type is dict else self.type.__name__
        return f"{name} or null" if self.nullable else name


@cache
def keys() -> Mapping[str, Key]:
    """Every key of the schema by dotted name, in the schema's order."""
    return types.MappingProxyType(
        {name: _key(name, item, hint) for name, item, hint in _walk(Config(), "") if not is_dataclass(hint)}
    )


@cache
def sections() -> Mapping[str, str]:
    """Every section's dotted name -> its meaning; the top level is the empty name."""
    return types.MappingProxyType(
        {"": "Top level."}
        | {name: item.metadata["help"] for name, item, hint in _walk(Config(), "") if is_dataclass(hint)}
    )


def value_of(cfg: Config, name: str) -> Any:
    """The value at a dotted name."""
    return operator.attrgetter(name)(cfg)


def set_value(cfg: Config, name: str, value: Any) -> None:
    """Set the value at a dotted name."""
    section, _, last = name.rpartition(".")
    setattr(value_of(cfg, section) if section else cfg, last, value)


def _walk(section: Any, prefix: str) -> Iterator[tuple[str, Field, Any]]:
    """(dotted name, field, hint) of each key below an instance of a section; the instance holds the defaults."""
    hints = get_type_hints(type(section))
    for item in fields(section):
        yield prefix + item.name, item, hints[item.name]
        if is_dataclass(hints[item.name]):
            yield from _walk(getattr(section, item.name), f"{prefix}{item.name}.")


def _key(name: str, item: Field, hint: Any) -> Key:
    nullable = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
    if nullable:
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    collection = get_origin(hint)
    return Key(
        name=name,
        type=collection if collection in (list, dict) else hint,
        item_type=get_args(hint)[0] if collection is list else None,
        nullable=nullable,
        default=value_of(Config(), name),
        help=item.metadata["help"],
        limits=types.MappingProxyType({limit: at for limit, at in item.metadata.items() if limit != "help"}),
    )
