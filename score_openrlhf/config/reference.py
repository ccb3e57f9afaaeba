"""The schema -> docs/configuration.md, every key in a table; `python -m score_openrlhf.config.reference` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from score_openrlhf.config.keys import Key, keys, sections
from score_openrlhf.config.packaged import PROJECT_ROOT

REFERENCE = PROJECT_ROOT / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Written by `python -m score_openrlhf.config.reference` from score_openrlhf/config/schema.py: edit that file. -->

A run is a YAML file and overrides:

    score-openrlhf train rl_guided_score_math guidance_samples=4 actor.adam.lr=5e-7

- **The file** is named by its path, or by its name alone where it is one of the project's `configs/`, from any folder.
- **Files** are composed by [Hydra](https://hydra.cc/docs/advanced/defaults_list/): the files that a `defaults:` list
  names are looked for beside the file, then in the project's `configs/`; what stands later wins, and `_self_` is the
  file itself. `${run_name}` takes another key's value, `${oc.env:HOME}` an environment variable; a literal `${` is
  written `\\${`.
- **Overrides** are `key=value` with the dotted names below. Numbers, `true`, `null`, lists (`[0.9,0.99]`) and quoted
  text follow Hydra's grammar; the value of a text key is taken as it stands. Keys are neither added (`+key`) nor
  removed (`~key`).
- **Unknown keys** and values of a wrong type are refused, each with the place it stands in and the nearest valid
  names.
- **Checks across keys** run before anything is started and report all problems at once.
- The resolved configuration is saved as `config.yaml` in `output_dir`, with the source of each value as a comment; it
  is itself a configuration file.

Keys under `actor`, `vllm`, `train`, `ds`, `ckpt` and `eval` keep OpenRLHF's names and meaning. `null` is YAML's word
for not set.
"""


def reference() -> str:
    """The text of docs/configuration.md."""
    parts = [INTRODUCTION]
    for name, meaning in sections().items():
        rows = [key for key in keys().values() if key.name.rpartition(".")[0] == name]
        if rows:
            heading = f"## `{name}`\n\n{meaning}" if name else "## Top level"
            parts.append("\n".join([heading, "", *_table(rows)]) + "\n")
    return "\n".join(parts)


def write(path: Path = REFERENCE) -> None:
    """Write the reference to `path`."""
    path.write_text(reference(), encoding="utf-8")


def _table(rows: list[Key]) -> Iterator[str]:
    yield "| key | type | default | range | meaning |"
    yield "|---|---|---|---|---|"
    for key in rows:
        cells = (f"`{key.name}`", key.type_name, f"`{_shown(key.default)}`", _range(key), key.help)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _range(key: Key) -> str:
    if "choices" in key.limits:
        return ", ".join(f"`{choice}`" for choice in key.limits["choices"])
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return ", ".join(f"{sign} {key.limits[name]}" for name, sign in signs.items() if name in key.limits)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)


if __name__ == "__main__":
    write()
