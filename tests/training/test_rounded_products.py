import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import silu
from transformers import LlamaConfig, set_seed
from transformers.models.llama.modeling_llama import LlamaMLP

from longvlm.training.rounded_products import rounded_products


def gated(act: str = "silu") -> LlamaMLP:
    return LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=48, hidden_act=act))


def slopes_of(module: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor, learned: list) -> tuple:
    return torch.autograd.grad((module(x) * weight).sum(), [x, *learned])


@pytest.mark.parametrize("make", [lambda: nn.Linear(32, 24), lambda: nn.Linear(32, 24, bias=False), gated])
def test_products_are_those_of_float32_but_for_rounding(make: Callable[[], nn.Module]) -> None:
    set_seed(0)
    module, x = make(), torch.randn(2, 150, 32, requires_grad=True)  # more rows than are gone through at once
    learned, exact = list(module.parameters()), module(x)
    weight = torch.randn_like(exact)
    expected = slopes_of(module, x, weight, learned)
    with rounded_products(module):
        rounded, slopes = module(x), slopes_of(module, x, weight, learned)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    for one, other in zip((rounded, *slopes), (exact, *expected), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert (one - other).norm() < 0.01 * other.norm()
    assert torch.equal(module(x), exact)  # as before


def test_what_goes_into_a_product_and_comes_out_is_rounded_and_nothing_else() -> None:
    set_seed(0)
    linear, x = nn.Linear(8, 4), torch.randn(3, 8)
    with rounded_products(linear):
        got = linear(x)
    product = (x.bfloat16() @ linear.weight.bfloat16().T).float()
    assert torch.equal(got, product + linear.bias)
    mlp, x = gated(), torch.randn(5, 32)
    with rounded_products(mlp):
        got = mlp(x)
    gates, ups = ((x.bfloat16() @ layer.weight.bfloat16().T).float() for layer in (mlp.gate_proj, mlp.up_proj))
    hidden = (silu(gates) * ups).bfloat16()
    torch.testing.assert_close(got, (hidden @ mlp.down_proj.weight.bfloat16().T).float(), atol=0, rtol=2**-7)


def test_a_layer_that_learns_no_weights_passes_gradients_on() -> None:
    linear, x = nn.Linear(8, 4).requires_grad_(False), torch.randn(3, 8, requires_grad=True)
    with rounded_products(linear):
        linear(x).sum().backward()
    expected = linear.weight.bfloat16().float().sum(0).expand(3, 8)
    torch.testing.assert_close(x.grad, expected, atol=0.02, rtol=0.02)
    assert linear.weight.grad is None


def test_copies_made_meanwhile_round_and_share_what_is_shared() -> None:
    linear, x = nn.Linear(8, 4), torch.randn(3, 8)
    with rounded_products(linear):
        replica = copy.deepcopy(linear, {id(one): one for one in linear.parameters()})
    assert replica.weight is linear.weight
    assert not torch.equal(replica(x), linear(x))


def test_other_gated_layers_are_left_as_they_are_but_for_their_linear_ones() -> None:
    mlp, x = gated("gelu"), torch.randn(3, 32)
    exact = mlp(x)
    with pytest.raises(KeyboardInterrupt), rounded_products(mlp):
        assert type(mlp) is LlamaMLP and not torch.equal(mlp(x), exact)
        raise KeyboardInterrupt
    assert torch.equal(mlp(x), exact)
