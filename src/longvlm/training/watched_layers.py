"""The layers of a language model, watched: what they make of a batch, and where their heads look, for losses to read.

A last layer need only be computed where something is read from it, which is at few tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import LlamaModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    apply_rotary_pos_emb,
    rotate_half,
)


class WatchedLayers:
    """Of the last batch of B texts of T tokens, until `clear`; layers are counted from 1.

    `hidden`: what each layer has made, (B, T, width).
    """

    def __init__(self, language_model: LlamaModel) -> None:
        self._language_model = language_model
        self.hidden: dict[int, torch.Tensor] = {}
        self._given: dict[int, dict[str, Any]] = {}  # to each layer's attention
        self._queries: dict[int, torch.Tensor] = {}  # of all heads, before they are turned by their places
        self._keys: dict[int, torch.Tensor] = {}
        for number in range(1, self.number + 1):
            layer, attention = self._layer(number), self._attention(number)
            layer.register_forward_hook(partial(self._keep_hidden, number))
            attention.register_forward_pre_hook(partial(self._keep_given, number), with_kwargs=True)
            attention.q_proj.register_forward_hook(partial(self._keep_queries, number))
            attention.k_proj.register_forward_hook(partial(self._keep_keys, number))

    @property
    def number(self) -> int:
        return len(self._language_model.layers)

    def _layer(self, layer: int) -> LlamaDecoderLayer:
        return cast(LlamaDecoderLayer, self._language_model.layers[layer - 1])

    def _attention(self, layer: int) -> LlamaAttention:
        return cast(LlamaAttention, self._layer(layer).self_attn)

    def _keep_hidden(self, layer: int, _module: nn.Module, _inputs: Any, hidden: torch.Tensor) -> None:
        self.hidden[layer] = hidden

    def _keep_given(self, layer: int, _module: nn.Module, _inputs: Any, named: dict[str, Any]) -> None:
        self._given[layer] = named

    def _keep_queries(self, layer: int, _module: nn.Module, _inputs: Any, queries: torch.Tensor) -> None:
        self._queries[layer] = queries

    def _keep_keys(self, layer: int, _module: nn.Module, _inputs: Any, keys: torch.Tensor) -> None:
        self._keys[layer] = keys

    def clear(self) -> None:
        for kept in (self.hidden, self._given, self._queries, self._keys):
            kept.clear()

    @contextmanager
    def left_out_behind(self, last: int) -> Iterator[None]:
        """Meanwhile the language model has no layers behind `last`."""
        config = self._language_model.config
        number = config.num_hidden_layers
        config.num_hidden_layers = last
        try:
            yield
        finally:
            config.num_hidden_layers = number

    def compute_where_read(self, layer: int, is_read: torch.Tensor) -> torch.Tensor:
        """What `layer` makes of what the one before has made, at the n tokens that `is_read` (B, T): (n, width)."""
        given = self._given[layer] = self._given[layer - 1]
        is_seen, positions = self.visible(layer, is_read), given["position_embeddings"]
        return forward_where_read(self._layer(layer), is_read, self.hidden[layer - 1], is_seen, positions)

    def visible(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """What each token (B, T) sees, (B, T, T) bool."""
        mask = self._given[layer].get("attention_mask")  # (B, 1, T, T) bool, or none: all that is before
        if mask is None:
            return torch.ones(*tokens.shape, tokens.shape[1], dtype=torch.bool).tril()
        return mask[:, 0]

    def attention_logits(self, layer: int, head: int, rows: torch.Tensor) -> torch.Tensor:
        """(n, T) of one head, for the n `rows` (B, T) that are asked for, one text after the other; T may be less than
        the batch's, of whose first tokens these then are.
        """
        attention = self._attention(layer)
        own, first = slice(head * attention.head_dim, (head + 1) * attention.head_dim), slice(0, rows.shape[1])
        positions = (states[:, first] for states in self._given[layer]["position_embeddings"])
        queries, keys = (kept[layer][:, None, first, own] for kept in (self._queries, self._keys))
        queries, keys = (states[:, 0] for states in apply_rotary_pos_emb(queries, keys, *positions))
        by_text = [queries[text][asked] @ keys[text].T for text, asked in enumerate(rows)]
        return torch.cat(by_text) * attention.scaling


def forward_where_read(
    layer: LlamaDecoderLayer,
    is_read: torch.Tensor,
    hidden: torch.Tensor,
    is_seen: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """What a layer makes of hidden (B, T, width) at the n tokens that `is_read` (B, T), one text after the other: (n,
    width). All tokens are attended to, where `is_seen` (B, T, T); `position_embeddings`: cosines and sines, (B or 1,
    T, width of a head) each.
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
