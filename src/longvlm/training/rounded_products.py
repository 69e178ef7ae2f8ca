"""Products of matrices in bfloat16, all else in float32: where a processor multiplies that faster, learning is faster.

The weights, what they are multiplied with and the gradients are rounded for the products alone; weights, gradients,
sums of layers, norms and losses stay in float32 (Micikevicius et al., Mixed Precision Training, 2018; bfloat16 has the
range of float32, so that no loss need be scaled). Autocast would keep all activations in bfloat16, whose element-wise
operations are slower on a processor than float32's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import silu
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

_ROWS_AT_ONCE = 128  # whose float32 values a core's cache holds


class _RoundedProduct(torch.autograd.Function):
    """x (..., in) times weight (out, in), plus bias."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows, rounded = x.flatten(0, -2).bfloat16(), weight.bfloat16()
        ctx.save_for_backward(rows, rounded)
        product = (rows @ rounded.T).float()
        if bias is not None:
            product += bias
        return product.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, rounded = ctx.saved_tensors
        of_rows = gradient.flatten(0, -2)
        for_bias = of_rows.sum(0) if ctx.needs_input_grad[2] else None
        of_rows = of_rows.bfloat16()
        for_x = (of_rows @ rounded).float().view(*gradient.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        for_weight = (of_rows.T @ rows).float() if ctx.needs_input_grad[1] else None
        return for_x, for_weight, for_bias


class _RoundedGatedProduct(torch.autograd.Function):
    """x (..., width) through the gated layer down(silu(gate(x)) · up(x)), some rows at a time between the products."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        rows, inwards, outwards = x.flatten(0, -2).bfloat16(), torch.cat([gate, up]).bfloat16(), down.bfloat16()
        gates_and_ups = rows @ inwards.T
        hidden = rows.new_empty(len(rows), len(gate))
        for some, into in zip(gates_and_ups.split(_ROWS_AT_ONCE), hidden.split(_ROWS_AT_ONCE), strict=True):
            gates, ups = some.float().chunk(2, dim=1)
            into.copy_(silu(gates).mul_(ups))
        ctx.save_for_backward(rows, inwards, outwards, gates_and_ups, hidden)
        return (hidden @ outwards.T).float().view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows, inwards, outwards, gates_and_ups, hidden = ctx.saved_tensors
        of_rows = gradient.flatten(0, -2).bfloat16()
        for_hidden, for_both = of_rows @ outwards, torch.empty_like(gates_and_ups)
        parts = (tensor.split(_ROWS_AT_ONCE) for tensor in (gates_and_ups, for_hidden, for_both))
        for some, reached, into in zip(*parts, strict=True):
            (gates, ups), reached = some.float().chunk(2, dim=1), reached.float()
            into_gates, into_ups = into.chunk(2, dim=1)
            into_ups.copy_(silu(gates).mul_(reached))
            into_gates.copy_(torch.ops.aten.silu_backward(reached.mul_(ups), gates))
        for_gate, for_up = (for_both.T @ rows).float().chunk(2)
        return (for_both @ inwards).float().view_as(gradient), for_gate, for_up, (of_rows.T @ hidden).float()


class _RoundedLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _RoundedProduct.apply(x, self.weight, self.bias)


class _RoundedMLP(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _RoundedGatedProduct.apply(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)


def _multiplied_as_here(mlp: LlamaMLP) -> bool:
    config = cast(LlamaConfig, mlp.config)
    return config.hidden_act == "silu" and not config.mlp_bias


@contextmanager
def rounded_products(module: nn.Module) -> Iterator[None]:
    """Meanwhile the linear layers of `module`, and of copies made of it, multiply in bfloat16."""
    swapped: list[tuple[nn.Module, type[nn.Module]]] = []
    for layer in module.modules():
        if type(layer) is nn.Linear:
            swapped.append((layer, _RoundedLinear))
        elif type(layer) is LlamaMLP and _multiplied_as_here(layer):
            swapped.append((layer, _RoundedMLP))
    exact = [type(layer) for layer, _ in swapped]
    for layer, rounded in swapped:
        layer.__class__ = rounded
    try:
        yield
    finally:
        for (layer, _), kind in zip(swapped, exact, strict=True):
            layer.__class__ = kind
