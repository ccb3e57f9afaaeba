"""`ds.param_dtype: fp32` in, torch.float32 out. Active on every platform: nothing about it is special to CPUs."""

from __future__ import annotations

from typing import Any

from score_openrlhf.platform.hooks import Upstream, after_import


@after_import(
    "fp32",
    "openrlhf.utils.utils",
    Upstream("openrlhf/utils/utils.py", 22, 'raise ValueError(f"Invalid param_dtype: {param_dtype}")'),
)
def add_fp32(module: Any) -> None:
    """OpenRLHF knows bf16 and fp16 only: Actor and the critic raise on fp32.

    Its DeepSpeed configuration needs no change: neither bf16 nor fp16 enabled is fp32.
    """
    import torch

    convert = module.convert_to_torch_dtype

    def convert_to_torch_dtype(param_dtype: str) -> torch.dtype:
        return torch.float32 if param_dtype == "fp32" else convert(param_dtype)

    module.convert_to_torch_dtype = convert_to_torch_dtype
