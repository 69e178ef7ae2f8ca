import copy
from itertools import chain

import pytest
import torch
from torch import nn

from longvlm.training.muon import MuonAndAdamW, group_parameters, orthogonalise

ADAMW = {"lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 0.01}
MATRIX_LEARNING_RATE = 1e-2


class Network(nn.Module):
    """Layers of wide, tall and square matrices, between a matrix that is no layer's and another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Linear(6, 8)
        self.tower = nn.Module()
        sizes = ((8, 8), (8, 12), (12, 8), (8, 8))
        self.tower.layers = nn.ModuleList([nn.Linear(before, after) for before, after in sizes])
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        for layer in self.tower.layers:
            x = layer(x).tanh()
        return self.head(x).square().mean()


def learn(network: nn.Module, optimisers: list[torch.optim.Optimizer], steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        network.zero_grad()
        network(torch.randn(16, 6, generator=generator)).backward()
        for optimiser in optimisers:
            optimiser.step()


def make(network: nn.Module, *, rounded: bool = False) -> MuonAndAdamW:
    return MuonAndAdamW(group_parameters(network, MATRIX_LEARNING_RATE), rounded=rounded, **ADAMW)


def test_it_steps_as_torch_has_muon_and_adamw() -> None:
    ours, theirs = Network(), Network()
    hidden = [layer.weight for layer in theirs.tower.layers]
    vectors = [weight for weight in theirs.parameters() if weight.ndim == 1]
    matrices = [theirs.embedding.weight, theirs.head.weight]
    muon = torch.optim.Muon(hidden, lr=MATRIX_LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], **ADAMW)
    before = copy.deepcopy(ours)
    learn(ours, [make(ours, rounded=True)], 1)
    learn(theirs, [muon, adamw], 1)
    for (name, weight), expected, old in zip(
        ours.named_parameters(), theirs.parameters(), before.parameters(), strict=True
    ):
        steps, expected_steps = weight - old, expected - old
        if ".layers." in name and weight.ndim == 2:  # both round, to bfloat16, but not at the same places
            assert (steps - expected_steps).norm() < 0.03 * expected_steps.norm(), name
        else:
            torch.testing.assert_close(steps, expected_steps, msg=name)
        assert expected_steps.abs().max() > 1e-4


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_about_one_and_their_vectors_stay(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -2, left.shape[2])
    result = orthogonalise((1e-3 * left * values @ right).to(dtype)).float()
    found = left.mT @ result @ right.mT
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6 and diagonal.max() < 1.25
    assert (found - torch.diag_embed(diagonal)).abs().max() < (1e-3 if dtype is torch.float32 else 0.3)


def test_a_matrix_without_a_gradient_anywhere_stays() -> None:
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_its_state_is_given_back() -> None:
    whole, parted = Network(), Network()
    optimiser = make(whole)
    learn(whole, [optimiser], 4)
    first = make(parted)
    learn(parted, [first], 4)
    again = make(parted)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    learn(whole, [optimiser], 3, seed=2)
    learn(parted, [again], 3, seed=2)
    for weight, expected in zip(parted.parameters(), whole.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_what_does_not_learn_is_in_no_group_and_all_else_in_one() -> None:
    network = Network()
    network.tower.layers[0].requires_grad_(False)
    groups = group_parameters(network, MATRIX_LEARNING_RATE)
    names = {id(weight): name for name, weight in network.named_parameters()}
    assert [[names[id(weight)] for weight in group["params"]] for group in groups] == [
        ["tower.layers.1.weight", "tower.layers.2.weight", "tower.layers.3.weight"],
        ["embedding.weight", "head.weight"],
        ["embedding.bias", *(f"tower.layers.{layer}.bias" for layer in (1, 2, 3)), "head.bias"],
    ]
    assert len({*names} - {id(weight) for weight in chain(*(group["params"] for group in groups))}) == 2
