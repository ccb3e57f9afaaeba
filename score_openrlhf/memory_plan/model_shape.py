"""A model's name or directory -> its shape: the numbers from which parameters, activations and caches are counted.

The shape comes from the `config.json` of a local directory, else from the configuration's `model_shape` section, else
from a table of published models; nothing is downloaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from score_openrlhf.config.errors import ConfigError
from score_openrlhf.config.schema import Config, ModelShapeConfig

# model_type of config.json -> whether query, key and value have biases where the file does not say so
ATTENTION_BIAS = {"llama": False, "mistral": False, "qwen2": True, "qwen3": False}
REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder with grouped-query attention, a gated MLP and RMS norms (Llama, Qwen2 and their kin)."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    head_norms: bool = False  # Qwen3 normalises each query and key head

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.num_key_value_heads * self.head_dim

    @cached_property
    def linear_layers(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the projections of one layer: query, key, value, output, gate, up, down."""
        hidden, q, kv, mlp = self.hidden_size, self.q_size, self.kv_size, self.intermediate_size
        return ((hidden, q), (hidden, kv), (hidden, kv), (q, hidden), (hidden, mlp), (hidden, mlp), (mlp, hidden))

    @property
    def embedding_params(self) -> int:
        """Parameters of the embedding, the largest single one: vocabulary x hidden size."""
        return self.vocab_size * self.hidden_size

    @cached_property
    def layer_params(self) -> int:
        """Parameters of one decoder layer."""
        weights = sum(inputs * outputs for inputs, outputs in self.linear_layers)
        biases = self.q_size + 2 * self.kv_size if self.attention_bias else 0
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.head_norms else 0)
        return weights + biases + norms

    @cached_property
    def num_params(self) -> int:
        """Parameters of the whole model; a tied output layer counts once."""
        embeddings = self.embedding_params * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * self.layer_params + self.hidden_size

    def lora_params(self, rank: int) -> int:
        """Parameters of LoRA adapters of `rank` on every projection (the host's `all-linear`)."""
        return self.num_hidden_layers * sum(rank * (inputs + outputs) for inputs, outputs in self.linear_layers)


@dataclass(frozen=True)
class KnownShape:
    """A shape and where it stands."""

    shape: ModelShape
    source: str  # a path, a section of the configuration, or the name of a published config.json


def _known(hidden, layers, heads, kv_heads, mlp, vocab, *, tied=False, bias=False, head_dim=None) -> ModelShape:
    return ModelShape(hidden, layers, heads, kv_heads, head_dim or hidden // heads, mlp, vocab, tied, bias)


# As published in each model's config.json on the Hugging Face hub.
_QWEN = {
    "0.5B": _known(896, 24, 14, 2, 4864, 151936, tied=True, bias=True),
    "1.5B": _known(1536, 28, 12, 2, 8960, 151936, tied=True, bias=True),
    "3B": _known(2048, 36, 16, 2, 11008, 151936, tied=True, bias=True),
    "7B": _known(3584, 28, 28, 4, 18944, 152064, bias=True),
    "14B": _known(5120, 48, 40, 8, 13824, 152064, bias=True),
    "32B": _known(5120, 64, 40, 8, 27648, 152064, bias=True),
    "72B": _known(8192, 80, 64, 8, 29568, 152064, bias=True),
}
_LLAMA_1B = _known(2048, 16, 32, 8, 8192, 128256, tied=True)
_LLAMA_3B = _known(3072, 28, 24, 8, 8192, 128256, tied=True)
_LLAMA_8B = _known(4096, 32, 32, 8, 14336, 128256)
_LLAMA_70B = _known(8192, 80, 64, 8, 28672, 128256)
KNOWN_SHAPES: Mapping[str, ModelShape] = {
    **{f"Qwen/Qwen2.5-{size}{kind}": shape for size, shape in _QWEN.items() for kind in ("", "-Instruct")},
    **{f"Qwen/Qwen2.5-Math-{size}{kind}": _QWEN[size] for size in ("1.5B", "7B", "72B") for kind in ("", "-Instruct")},
    **{
        f"meta-llama/{name}{kind}": shape
        for name, shape in {
            "Meta-Llama-3-8B": _LLAMA_8B,
            "Meta-Llama-3-70B": _LLAMA_70B,
            "Llama-3.1-8B": _LLAMA_8B,
            "Llama-3.1-70B": _LLAMA_70B,
            "Llama-3.2-1B": _LLAMA_1B,
            "Llama-3.2-3B": _LLAMA_3B,
        }.items()
        for kind in ("", "-Instruct")
    },
    "meta-llama/Llama-3.3-70B-Instruct": _LLAMA_70B,
}


def shape_of(cfg: Config, section: str, model: str) -> KnownShape:
    """The shape of `model` (a directory or a hub name); `section` is `model_shape` or `guidance_model_shape`.

    Raises ConfigError where the model is unknown, the section incomplete or the architecture another one.
    """
    file = os.path.join(model, "config.json")
    if os.path.isfile(file):
        return KnownShape(from_config_json(file), file)
    given: ModelShapeConfig = getattr(cfg, section)
    if given != ModelShapeConfig():
        return KnownShape(_from_mapping(asdict(given), section), f"section {section}")
    if model in KNOWN_SHAPES:
        return KnownShape(KNOWN_SHAPES[model], f"config.json of {model} as published")
    known = ", ".join(sorted({name.removesuffix("-Instruct") for name in KNOWN_SHAPES}))
    raise ConfigError(
        [
            f"the shape of {model} is not known: there is no {file}, and it is none of the known names ({known}); "
            f"give the numbers of its config.json: {', '.join(f'{section}.{name}' for name in REQUIRED)}"
        ]
    )


def from_config_json(file: str) -> ModelShape:
    """The shape that a Hugging Face `config.json` declares.

    Raises ConfigError for a file that is no JSON object, lacks a number, or declares another architecture.
    """
    with open(file, encoding="utf-8") as opened:
        try:
            values = json.load(opened)
        except json.JSONDecodeError as error:
            raise ConfigError([f"{file} is not valid JSON: {error}"]) from error
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in ATTENTION_BIAS:
        raise ConfigError(
            [
                f"{file} declares model_type {kind!r}: memory is counted for {', '.join(sorted(ATTENTION_BIAS))}; "
                "for a model of that form under another name write one of these"
            ]
        )
    return _from_mapping({"attention_bias": ATTENTION_BIAS[kind], **values}, file, head_norms=kind == "qwen3")


def _from_mapping(values: Mapping[str, Any], where: str, *, head_norms: bool = False) -> ModelShape:
    missing = [name for name in REQUIRED if values.get(name) is None]
    if missing:
        raise ConfigError([f"{where} lacks {', '.join(missing)}: the model's config.json has the numbers"])
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    kv_heads, head_dim = values.get("num_key_value_heads") or heads, values.get("head_dim") or hidden // heads
    if heads % kv_heads:
        raise ConfigError([f"{where}: {heads} query heads do not divide by {kv_heads} key and value heads"])
    return ModelShape(
        hidden_size=hidden,
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=values["intermediate_size"],
        vocab_size=values["vocab_size"],
        tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
        attention_bias=bool(values["attention_bias"]),
        head_norms=head_norms,
    )
