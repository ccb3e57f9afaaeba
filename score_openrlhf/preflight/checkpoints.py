"""A checkpoint's layout and a configuration in; why DeepSpeed could not load one under the other, out.

DeepSpeed cuts optimizer state by rank, ZeRO stage and type of weights; it finds another number of them while it loads,
after every role has been started, in words of its own. The layout stands in trainer.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from score_openrlhf.config.methods import POLICIES
from score_openrlhf.config.policies import learning_specs, spec_of
from score_openrlhf.config.schema import Config

# what of the layout -> the key that sets it
KEYS = {
    "zero_stage": "ds.zero_stage",
    "param_dtype": "ds.param_dtype",
    "tensor_parallel_size": "ds.tensor_parallel_size",
    "ring_attn_size": "ds.ring_attn_size",
    "solver_ranks": "actor.num_nodes x actor.num_gpus_per_node",
    "guidance_ranks": "guidance_actor.num_nodes x guidance_actor.num_gpus_per_node",
    "critic_ranks": "critic.num_nodes x critic.num_gpus_per_node",
    "solver_lora_rank": "ds.lora.rank",
    "guidance_lora_rank": "guidance_actor.lora_rank",
}


def layout(cfg: Config) -> dict[str, Any]:
    """How a run of this configuration cuts what it writes."""
    found: dict[str, Any] = {
        "zero_stage": cfg.ds.zero_stage,
        "param_dtype": cfg.ds.param_dtype,
        "tensor_parallel_size": cfg.ds.tensor_parallel_size,
        "ring_attn_size": cfg.ds.ring_attn_size,
    }
    for spec in learning_specs(cfg):
        found[f"{spec.name}_ranks"] = spec.group.num_gpus
        found[f"{spec.name}_lora_rank"] = spec.lora_rank
        if spec.critic:
            found["critic_ranks"] = spec.critic.num_gpus
    return found


def layout_faults(path: Path, state: dict[str, Any], cfg: Config) -> Iterator[str]:
    """What the run at `path` was cut by otherwise; `state` is its trainer.json (without a layout: an older one)."""
    kept, now = state.get("layout"), layout(cfg)
    if kept is None:
        return
    changed = {name for name in kept.keys() & now.keys() if kept[name] != now[name]}
    listed = ", ".join(f"{KEYS[name]} {kept[name]} (now {now[name]})" for name in KEYS if name in changed)
    if "critic_ranks" in kept.keys() ^ now.keys():
        was, is_now = ("a", "no") if "critic_ranks" in kept else ("no", "a")
        listed += f"{', ' if listed else ''}{was} critic (now {is_now} critic: critic.enable)"
    if listed:
        models = " and ".join(
            f"{spec_of(cfg, name).start_key}=.../{name}" for name in POLICIES if f"{name}_ranks" in kept
        )  # fmt: skip
        yield (
            f"{path} was written with {listed}; DeepSpeed cannot load it under another. Go on with what it was "
            f"written with, or start a run of its own from the exported weights: another output_dir and {models}"
        )
