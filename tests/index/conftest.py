"""A tiny model, a vision tower without any language model, and three small videos."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from media import write_video
from tiny_checkpoint import save_tiny_checkpoint
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from longvlm import LongVLM


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> LongVLM:
    return LongVLM.from_pretrained(save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tower(tmp_path_factory.mktemp("models") / "clip", initializer_factor=20.0)


@pytest.fixture(scope="session")
def mild_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that does not blow up rounding, so that the order of additions decides no merge."""
    return save_tower(tmp_path_factory.mktemp("mild") / "clip", initializer_factor=2.0)


def save_tower(folder: Path, *, initializer_factor: float) -> Path:
    """CLIP's vision half, 6 layers, width 32: 7 hidden states, more than an index keeps the [CLS] of."""
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        initializer_factor=initializer_factor,
    )
    torch.manual_seed(3)
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for number, num_frames in enumerate((30, 20, 5)):
        write_video(folder / f"v_{number}.mp4", num_frames)
    return folder


@pytest.fixture
def videos(films: Path, tmp_path: Path) -> Path:
    """The same videos in a folder to spoil."""
    return Path(shutil.copytree(films, tmp_path / "videos"))
