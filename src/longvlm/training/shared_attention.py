"""Attention of conversations that stand side by side after one video: what all of them share needs no mask.

Most of such a row is the video, where a token sees all that is before it. Kernels skip the half that it does not see
only where no mask is given, so the video is attended to on its own, and the conversations to the whole row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHARED_ATTENTION = "longvlm_shared"


def attend_shared(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    num_shared: int = 0,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' sdpa attention, query, key and value (B, H, T, width of a head) -> (B, T, H, width).

    `num_shared`: of every row, so many tokens come first that see all that is before them and nothing else, whatever
    the mask (B, 1, T, T) says; it goes from the model's own arguments to here.
    """
    if not num_shared:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    first, others = slice(num_shared), slice(num_shared, None)
    shared, _ = sdpa_attention_forward(module, query[:, :, first], key[:, :, first], value[:, :, first], None, **named)
    mask = None if attention_mask is None else attention_mask[:, :, others]
    rest, _ = sdpa_attention_forward(module, query[:, :, others], key, value, mask, **named)
    return torch.cat([shared, rest], dim=1), None


AttentionInterface.register(SHARED_ATTENTION, attend_shared)
AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)
