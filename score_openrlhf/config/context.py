"""A model folder's config.json in; the longest sequence the model was made for out, as vLLM works it out.

Source: vLLM 0.29, transformers_utils/model_arch_config_convertor.py (`derive_max_model_len_and_key`) and
config/model.py (`_get_and_verify_max_len`), which refuse a longer one when the engine starts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# what architectures call it; the smallest that is there counts
NAMES = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
SCALED_ALREADY = ("su", "longrope", "llama3", "default")  # rope types whose factor is in the number already


def context_length(model: str) -> int | None:
    """Tokens of the longest sequence, or None where the folder does not say (no config.json, no known key)."""
    file = Path(model, "config.json")
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None  # whoever loads the model says so
    if not isinstance(values, dict):
        return None
    text = values.get("text_config")
    text = text if isinstance(text, dict) else values
    found = [text[name] for name in NAMES if isinstance(text.get(name), int)]
    if not found:
        return None
    length = text["model_max_length"] if isinstance(text.get("model_max_length"), int) else min(found)
    if "gemma3" in str(values.get("model_type")):
        return length
    for rope in _ropes(text):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in SCALED_ALREADY:
            if kind == "yarn" and isinstance(rope.get("original_max_position_embeddings"), int):
                length = rope["original_max_position_embeddings"]
            return int(length * (rope.get("factor") or 1.0))
    return length


def _ropes(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The rotary settings: one, or one for each kind of layer."""
    ropes = values.get("rope_parameters") or values.get("rope_scaling")
    if not isinstance(ropes, dict):
        return []
    nested = [rope for rope in ropes.values() if isinstance(rope, dict)]
    return nested if nested and len(nested) == len(ropes) else [ropes]
