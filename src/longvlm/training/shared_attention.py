"""Attention of conversations that stand side by side after one video: what all of them share needs no mask.

Most of such a row is the video, where a token sees all that is before it. Kernels skip the half that it does not see
only where no mask is given, so the video is attended to on its own, and the conversations to the whole row. And a last
layer need only be computed where something is read from it, which is at few tokens.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, rotate_half

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


def forward_where_read(
    layer: LlamaDecoderLayer,
    is_read: torch.Tensor,
    hidden: torch.Tensor,
    is_seen: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """What a layer makes of hidden (B, T, width) at the n tokens that `is_read` (B, T), one video after the other: (n,
    width). All tokens are attended to, where `is_seen` (B, T, T).
    """
    attention = cast(LlamaAttention, layer.self_attn)
    counts = is_read.sum(1)
    places = is_read.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, int(counts.max()))]
    is_row = torch.arange(places.shape[1]) < counts[:, None]  # the others fill up

    def pick(values: torch.Tensor) -> torch.Tensor:
        values = values.expand(len(places), -1, -1)
        return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))

    def heads(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(2, (-1, attention.head_dim)).transpose(1, 2)

    def turn(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return states * cos[:, None] + rotate_half(states) * sin[:, None]

    normed = layer.input_layernorm(hidden)
    query = turn(heads(pick(attention.q_proj(normed))), *map(pick, position_embeddings))
    key, value = turn(heads(attention.k_proj(normed)), *position_embeddings), heads(attention.v_proj(normed))
    mask = pick(is_seen)[:, None]
    attended, _ = sdpa_attention_forward(attention, query, key, value, mask, scaling=attention.scaling)
    rows = pick(hidden)[is_row] + attention.o_proj(attended.flatten(2)[is_row])
    return rows + layer.mlp(layer.post_attention_layernorm(rows))


AttentionInterface.register(SHARED_ATTENTION, attend_shared)
AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)
