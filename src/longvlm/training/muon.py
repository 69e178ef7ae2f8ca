"""The optimiser of the bundled model's stages: Muon for the matrices of hidden layers, AdamW for all else.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) steps along the momentum with all its singular
values made about one, so that directions that are rare in the gradients are learned, too. Steps are scaled to have
AdamW's usual size (Liu et al., Muon is Scalable for LLM Training, 2025). `torch.optim.Muon` does the same, matrix by
matrix and always in bfloat16: with many small ones on a processor, that takes longer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

_MOMENTUM = 0.95
_ADAMW_STEP = 0.2  # the usual root mean square of AdamW's steps, in learning rates
# Of the odd polynomial of degree 5 that draws singular values to about one, fastest from near zero; and how often.
_COEFFICIENTS, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class MuonAndAdamW(torch.optim.AdamW):
    """Groups of parameters with a true `is_hidden` are stepped by Muon, with that group's `lr` and `weight_decay`; the
    others by AdamW. `rounded`: multiply in bfloat16.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, rounded: bool, **adamw: Any) -> None:
        super().__init__([{"is_hidden": False, **group} for group in groups], **adamw)
        self._dtype = torch.bfloat16 if rounded else torch.float32

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["is_hidden"]]
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["is_hidden"]:
                self._step_hidden(group)
        return loss

    def _step_hidden(self, group: dict[str, Any]) -> None:
        alike = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                alike[weight.shape].append(weight)
        for shape, weights in alike.items():
            momenta = [self._momentum(weight) for weight in weights]
            gradients = [weight.grad for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
            ahead = torch.stack(torch._foreach_lerp(gradients, momenta, _MOMENTUM))  # as Nesterov has it
            steps = orthogonalise(ahead.to(self._dtype)).to(ahead.dtype)
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, steps.unbind(), alpha=-group["lr"] * _ADAMW_STEP * max(shape) ** 0.5)

    def _momentum(self, weight: torch.Tensor) -> torch.Tensor:
        state = self.state[weight]
        if not state:  # AdamW looks for a step in all that it takes up from a checkpoint
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(weight)}
        return state["momentum"]


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """(n, a, b), each with singular vectors as it was and singular values between about 0.7 and 1.2 (but those that
    were below a thousandth of the norm, which end lower), by a Newton-Schulz iteration.
    """
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    of_first, of_third, of_fifth = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = wide @ wide.mT
        grams = torch.baddbmm(gram, gram, gram, beta=of_third, alpha=of_fifth)
        wide = torch.baddbmm(wide, grams, wide, beta=of_first)
    return wide.mT if matrices.shape[1] > matrices.shape[2] else wide


def group_parameters(module: nn.Module, matrix_learning_rate: float) -> list[dict[str, Any]]:
    """The parameters that learn: the matrices of layers (of a list called `layers`) with that learning rate, to be
    stepped by Muon; other matrices; and, not decayed, vectors.
    """
    learning = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    hidden = {name for name, weight in learning.items() if ".layers." in name and weight.ndim == 2}
    others = [weight for name, weight in learning.items() if name not in hidden]
    return [
        {"params": [learning[name] for name in sorted(hidden)], "is_hidden": True, "lr": matrix_learning_rate},
        {"params": [weight for weight in others if weight.ndim > 1]},
        {"params": [weight for weight in others if weight.ndim <= 1], "weight_decay": 0.0},
    ]
