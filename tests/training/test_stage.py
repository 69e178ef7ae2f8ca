import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from longvlm.errors import LongVLMError
from longvlm.training.stage import PARTS, Spent, StageSettings, run_stage

BATCH_SIZE = 4
SETTINGS = StageSettings(steps=10, learning_rate=1e-2, warmup_steps=2)


class Lines(Dataset):
    """Points of y = 2x - 1; asking for an item from `breaks_at` on raises, as a machine that goes down would."""

    def __init__(self, breaks_at: int = 10**9) -> None:
        self.breaks_at = breaks_at

    def __len__(self) -> int:
        return SETTINGS.steps * BATCH_SIZE

    def __getitem__(self, index: int) -> torch.Tensor:
        if index >= self.breaks_at:
            raise RuntimeError("power cut")
        return torch.tensor([float(index % 7), 2.0 * (index % 7) - 1])


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(1, 1)

    def forward(self, points: torch.Tensor) -> dict[str, Any]:
        return {"loss": (self.linear(points[:, :1]) - points[:, 1:]).square().mean()}


class LayeredLine(Line):
    """With matrices for Muon."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Module()
        self.tower.layers = nn.ModuleList([nn.Linear(1, 3), nn.Linear(3, 3), nn.Linear(3, 1)])

    def forward(self, points: torch.Tensor) -> dict[str, Any]:
        hidden = points[:, :1]
        for layer in self.tower.layers:
            hidden = layer(hidden).tanh()
        return {"loss": (self.linear(hidden) - points[:, 1:]).square().mean()}


def collate(points: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"points": torch.stack(points)}


@pytest.mark.parametrize(
    ("made", "changes"), [(Line, {}), (Line, {"averaged_steps": 3}), (LayeredLine, {"matrix_learning_rate": 2e-2})]
)
def test_a_stopped_stage_goes_on_to_the_same_weights(tmp_path: Path, made: type[Line], changes: dict[str, Any]) -> None:
    settings = replace(SETTINGS, **changes)
    whole, stopped = made(), made()
    start = [parameter.clone() for parameter in whole.parameters()]
    run_stage(whole, Lines(), collate, settings, tmp_path / "whole", seed=0, batch_size=BATCH_SIZE)
    with pytest.raises(RuntimeError, match="power cut"):
        run_stage(stopped, Lines(breaks_at=28), collate, settings, tmp_path / "stopped", seed=0, batch_size=BATCH_SIZE)
    resumed = made()
    run_stage(resumed, Lines(), collate, settings, tmp_path / "stopped", seed=0, batch_size=BATCH_SIZE)
    for parameter, expected, untrained in zip(resumed.parameters(), whole.parameters(), start, strict=True):
        assert torch.equal(parameter, expected)
        assert not torch.equal(parameter, untrained)


def test_a_stage_may_leave_the_moving_average_of_its_weights(tmp_path: Path) -> None:
    class RememberingLine(Line):
        def forward(self, points: torch.Tensor) -> dict[str, Any]:
            self.weights.append(self.linear.weight.detach().clone())
            return super().forward(points)

    last, averaged = Line(), RememberingLine()
    averaged.weights = []
    averaged.linear.bias.requires_grad_(False)
    last.linear.bias.requires_grad_(False)
    bias = averaged.linear.bias.clone()
    run_stage(last, Lines(), collate, SETTINGS, tmp_path / "last", seed=0, batch_size=BATCH_SIZE)
    settings = replace(SETTINGS, averaged_steps=4)
    run_stage(averaged, Lines(), collate, settings, tmp_path / "averaged", seed=0, batch_size=BATCH_SIZE)
    before, *after = [*averaged.weights, last.linear.weight.detach()]  # a step each
    assert len(after) == SETTINGS.steps
    expected = 0.75**10 * before + sum(0.25 * 0.75 ** (10 - step) * weight for step, weight in enumerate(after, 1))
    torch.testing.assert_close(averaged.linear.weight.detach(), expected)
    assert not torch.allclose(expected, after[-1], atol=1e-3)
    assert torch.equal(averaged.linear.bias, bias)


@pytest.mark.parametrize("averaged_steps", [-1, 11])
def test_a_moving_average_over_more_steps_than_there_are_is_refused(averaged_steps: int) -> None:
    message = rf"averaged_steps is {averaged_steps}; give 0, or a number up to that of the steps, 10\."
    with pytest.raises(LongVLMError, match=message):
        replace(SETTINGS, averaged_steps=averaged_steps)


def test_a_stage_may_multiply_in_bfloat16_alone(tmp_path: Path) -> None:
    """Weights and what follows a product stay in float32, and the layers are as before in the end."""
    exact, rounded = Line(), Line()
    for line, folder in ((exact, "exact"), (rounded, "rounded")):
        run_stage(
            line, Lines(), collate, SETTINGS, tmp_path / folder, seed=0, batch_size=BATCH_SIZE, rounded=line is rounded
        )
    assert type(rounded.linear) is nn.Linear and rounded.linear.weight.dtype == torch.float32
    assert not torch.equal(rounded.linear.weight, exact.linear.weight)
    torch.testing.assert_close(rounded.linear.weight, exact.linear.weight, atol=5e-3, rtol=0)


@pytest.mark.parametrize(("num_parts", "num_threads"), [(1, 1), (1, 2), (2, 2)])
def test_parts_are_learned_from_as_one_batch_would_be(tmp_path: Path, num_parts: int, num_threads: int) -> None:
    def deal(points: list[torch.Tensor]) -> dict[str, Any]:
        return {PARTS: [collate(points[part::num_parts]) for part in range(num_parts)]}

    usual = torch.get_num_threads()
    whole, parted, again = Line(), Line(), Line()
    run_stage(whole, Lines(), collate, SETTINGS, tmp_path / "whole", seed=0, batch_size=BATCH_SIZE)
    try:
        torch.set_num_threads(num_threads)
        for number, line in enumerate((parted, again)):
            run_stage(line, Lines(), deal, SETTINGS, tmp_path / str(number), seed=0, batch_size=BATCH_SIZE)
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(usual)
    for parameter, same, expected in zip(parted.parameters(), again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(parameter, same)
        torch.testing.assert_close(parameter, expected)


def test_what_earlier_processes_spent_is_known(tmp_path: Path) -> None:
    class SlowLines(Lines):
        def __getitem__(self, index: int) -> torch.Tensor:
            time.sleep(0.02)
            return super().__getitem__(index)

    settings = {"seed": 0, "batch_size": BATCH_SIZE}
    with pytest.raises(RuntimeError, match="power cut"):
        run_stage(Line(), SlowLines(breaks_at=28), collate, SETTINGS, tmp_path / "run", **settings)
    earlier = run_stage(Line(), Lines(), collate, SETTINGS, tmp_path / "run", **settings)
    assert 6 * BATCH_SIZE * 0.02 < earlier.wall_seconds < 60  # six steps were kept
    assert 0 < earlier.cpu_seconds < earlier.wall_seconds * 2 * os.cpu_count()
    assert run_stage(Line(), Lines(), collate, SETTINGS, tmp_path / "other", **settings) == Spent()


@pytest.mark.parametrize("state", [None, b'{"global_step": 8, "log_hist'])
def test_a_checkpoint_that_a_kill_left_unfinished_is_passed_over(tmp_path: Path, state: bytes | None) -> None:
    whole, resumed = Line(), Line()
    run_stage(whole, Lines(), collate, SETTINGS, tmp_path / "whole", seed=0, batch_size=BATCH_SIZE)
    with pytest.raises(RuntimeError, match="power cut"):
        run_stage(Line(), Lines(breaks_at=28), collate, SETTINGS, tmp_path / "stopped", seed=0, batch_size=BATCH_SIZE)
    unfinished = tmp_path / "stopped" / "checkpoint-8"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half of")
    if state is not None:
        (unfinished / "trainer_state.json").write_bytes(state)
    earlier = run_stage(resumed, Lines(), collate, SETTINGS, tmp_path / "stopped", seed=0, batch_size=BATCH_SIZE)
    assert earlier.wall_seconds > 0, "begun anew, it would end alike"
    assert torch.equal(resumed.linear.weight, whole.linear.weight)
