"""A model's generation config in; one that can be saved with the model out, and what had to change.

transformers refuses to save a generation config that contradicts itself, such as `do_sample: false` beside a
temperature, which models on the hub are published with. A run must not find that out when it exports its models.
"""

from __future__ import annotations

from transformers import GenerationConfig

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def savable(config: GenerationConfig) -> tuple[GenerationConfig, str | None]:
    """`config` if it can be saved, else the nearest that can, with a sentence on what was changed."""
    reason = fault(config)
    if reason is None:
        return config, None
    sampling = GenerationConfig.from_dict({**config.to_diff_dict(), "do_sample": True})
    if fault(sampling) is None:  # a temperature, top_p or top_k says that sampling was meant
        return sampling, f"do_sample is set to true ({reason})"
    known = {name: ids for name in TOKEN_IDS if _are_ids(ids := getattr(config, name))}
    return GenerationConfig.from_dict(known), f"only its token ids are kept ({reason})"


def _are_ids(value: object) -> bool:
    ids = value if isinstance(value, list) else [value]
    return bool(ids) and all(isinstance(number, int) and number >= 0 for number in ids)


def fault(config: GenerationConfig) -> str | None:
    """Why transformers would refuse to save `config`; None where it would not."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
        return next((line for line in lines if line.startswith("`")), lines[0]).split(". ")[0]
    return None
