"""The import of flash_attn in OpenRLHF's ring attention in, pure torch functions of the same names out.

Used wherever flash-attn is not installed: on CPU machines, and on GPUs with another attention (sdpa).

The stand-ins exist only while that one module is imported. Left in `sys.modules`, they would make transformers believe
that flash attention is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from score_openrlhf.platform.hooks import Upstream, around_import

if TYPE_CHECKING:
    import torch

RING_ATTN = "openrlhf/models/ring_attn_utils.py"


@around_import(
    "flash_attn",
    "openrlhf.models.ring_attn_utils",
    Upstream(RING_ATTN, 3, "from flash_attn.bert_padding import index_first_axis, pad_input, rearrange, unpad_input"),
    Upstream(RING_ATTN, 4, "from flash_attn.utils.distributed import all_gather"),
)
@contextmanager
def provide_flash_attn(_module: ModuleType) -> Iterator[None]:
    """Importing Actor, and with it nearly all of OpenRLHF, needs flash_attn, which is built for CUDA only."""
    from einops import rearrange

    padding = ModuleType("flash_attn.bert_padding")
    padding.__dict__.update(
        index_first_axis=index_first_axis, pad_input=pad_input, rearrange=rearrange, unpad_input=unpad_input
    )
    distributed = ModuleType("flash_attn.utils.distributed")
    distributed.__dict__.update(all_gather=all_gather)
    stand_ins = {
        "flash_attn": ModuleType("flash_attn"),
        "flash_attn.bert_padding": padding,
        "flash_attn.utils": ModuleType("flash_attn.utils"),
        "flash_attn.utils.distributed": distributed,
    }
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def index_first_axis(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows `indices` (N,) of `values` (R, ...), as (N, ...). As flash_attn/bert_padding.py."""
    return values.index_select(0, indices)


def unpad_input(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor]:
    """The tokens (N, ...) of `hidden_states` (B, S, ...) where `attention_mask` (B, S) is 1.

    As flash_attn/bert_padding.py. Also their indices in the flattened batch (N,), the cumulative lengths (B + 1,), the
    longest length and the lengths (B,).
    """
    import torch
    import torch.nn.functional as F

    lengths = attention_mask.sum(dim=-1, dtype=torch.int32)
    indices = torch.nonzero(attention_mask.flatten(), as_tuple=False).flatten()
    cumulative = F.pad(torch.cumsum(lengths, dim=0, dtype=torch.int32), (1, 0))
    tokens = index_first_axis(hidden_states.flatten(0, 1), indices)
    return tokens, indices, cumulative, int(lengths.max()), lengths


def pad_input(tokens: torch.Tensor, indices: torch.Tensor, batch: int, seqlen: int) -> torch.Tensor:
    """`tokens` (N, ...) at their `indices` of a zero tensor (batch, seqlen, ...). As flash_attn/bert_padding.py."""
    padded = tokens.new_zeros(batch * seqlen, *tokens.shape[1:]).index_copy(0, indices, tokens)
    return padded.unflatten(0, (batch, seqlen))


def all_gather(values: torch.Tensor, group) -> torch.Tensor:
    """`values` (N, ...) of the W ranks as (W * N, ...), with gradients. As flash_attn/utils/distributed.py."""
    import torch
    from torch.distributed.nn.functional import all_gather as gather_with_gradient

    return torch.cat(gather_with_gradient(values.contiguous(), group=group), dim=0)
