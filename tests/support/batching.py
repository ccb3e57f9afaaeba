"""Every way of cutting an update's rows into optimizer windows and micro batches, and every way of masking rows.

One table: `tests/stack/test_batching.py` compares the gradients of each pair with the equations, and
`tests/unit/test_batching_table.py` holds the table against the schema, so that a new key cannot be left out.
"""

from __future__ import annotations

from typing import Any

from score_openrlhf.config.keys import keys

NUM_ROWS = 18  # what the masks below are of: two windows of 16 with 14 rows of padding

# Name -> the keys that make it; what a way does not say is 16 rows a window, 2 a micro batch and one epoch.
WAYS: dict[str, dict[str, Any]] = {
    "micro batches of 2": {},
    "one window": {"train.batch_size": None, "train.micro_batch_size": 4, "rollout.micro_batch_size": 2},
    "packed, two epochs": {"ds.packing_samples": True, "train.max_epochs": 2},
    "ZeRO-2": {"ds.zero_stage": 2},
    "dynamic": {"train.dynamic_batch_enable": True, "train.max_tokens_per_gpu": 60},
    "dynamic, one micro batch a window, two epochs": {
        "train.dynamic_batch_enable": True, "train.max_tokens_per_gpu": 10_000, "train.max_epochs": 2,
        "rollout.max_tokens_per_gpu": 60,
    },
    "dynamic, packed, ZeRO-2": {
        "train.dynamic_batch_enable": True, "train.max_tokens_per_gpu": 60, "ds.packing_samples": True,
        "ds.zero_stage": 2,
    },
}  # fmt: skip
RANKS = (1, 2)

# Name -> the rows that failed. With one row left a window is empty, and so is all that the other rank has.
MASKED: dict[str, tuple[int, ...]] = {
    "none": (),
    "some": (0, 6, 7, 8, 13),
    "a window and a rank": tuple(row for row in range(NUM_ROWS) if row != 4),
    "all": tuple(range(NUM_ROWS)),
}

# Keys that look like batching and are in no way of the table, with the reason.
ELSEWHERE = {
    "train.full_determinism_enable": "chooses kernels",
    "rollout.batch_size": "how many rows there are; the rows are made by hand",
    "ds.grad_accum_dtype": "how sums are rounded; fp32 all through in the comparison with the equations",
    "ds.ring_attn_size": "needs CUDA kernels",
    "ds.tensor_parallel_size": "needs CUDA kernels",
}
_WORDS = ("batch", "packing", "tokens_per_gpu", "epoch", "accum", "ring_attn", "ds.tensor_parallel", "zero_stage")


def batching_keys() -> set[str]:
    """Keys of the schema that decide which rows are in which window or micro batch; engines batch by themselves."""
    of_training = [key for key in keys() if not key.startswith(("vllm.", "guidance_vllm."))]
    return {key for key in of_training if key.startswith("train.") or any(word in key for word in _WORDS)}
