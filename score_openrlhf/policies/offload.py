"""Keeps what DeepSpeed needs to move Adam's states to host memory out of checkpoints, and out of what is resumed.

DeepSpeed's `offload_adam_states` (deepspeed/runtime/zero/offload_states.py) keeps each moment's place in host memory
in the optimizer's own state, beside the moment. torch saves what stands there, and moves all it loads to the
parameter's device. So a resumed policy would have those places on the GPU, "offload" its moments into them and never
free a byte, until the engines that share the GPU run out of memory.
"""

from __future__ import annotations

from typing import Any

import torch

BUFFER = "_offload_buffer"  # how DeepSpeed ends their names


def keep_offload_buffers_out(adam: torch.optim.Optimizer) -> None:
    """Save `adam` without its offload buffers, and load it without those that older checkpoints have.

    As hooks of the optimizer, because saving must not touch the live state: reloading reads the buffers. Before a
    load, because afterwards they would have been on the GPU beside the moments for a moment.
    """
    adam.register_state_dict_post_hook(_without_buffers)
    adam.register_load_state_dict_pre_hook(_without_buffers)


def _without_buffers(adam: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    states = {
        key: {name: value for name, value in state.items() if not name.endswith(BUFFER)}
        for key, state in saved["state"].items()
    }
    return {**saved, "state": states}
