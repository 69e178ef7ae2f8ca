"""A tiny base, features of a few made-up videos, instructions about them, and a recipe: what `longvlm train` needs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tiny_checkpoint import save_tiny_checkpoint

from longvlm.pipeline import LongVLM
from longvlm.training.checkpointing import COMPLETE
from longvlm.training.recipe import Recipe, load_recipe

NUM_VIDEOS = 6


def write_small_run(folder: Path) -> Path:
    """Write all of it into `folder`; the recipe's path."""
    base = save_tiny_checkpoint(folder / "base")
    (folder / "features").mkdir()
    model = LongVLM.from_pretrained(base, device="cpu", dtype="float32")
    for number in range(NUM_VIDEOS):
        frames = np.random.RandomState(number).randint(0, 256, (10, 64, 64, 3), dtype=np.uint8)
        model.encode(frames).save(folder / "features" / f"v{number}.longvlm")
    (folder / "train.json").write_text(json.dumps(make_rows()))
    recipe = {
        "output": str(folder / "run"),
        "model": {"base": str(base)},
        "data": [{"instructions": str(folder / "train.json"), "features": str(folder / "features")}],
        "learning_rates": {"projector": 1e-2, "new_tokens": 1e-2},
        "schedule": {"epochs": 2, "batch_size": 2},
        "machine": {"device": "cpu", "precision": "float32", "threads": 1},
        "reports": {"save_every": 2, "log_every": 2, "tensorboard": False},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def make_rows() -> list[dict[str, Any]]:
    """Conversations of one and two turns, with the video before and after the question, and one without a video."""
    rows: list[dict[str, Any]] = []
    for number in range(NUM_VIDEOS):
        question = f"What is in video {number}?"
        first = f"<video>\n{question}" if number % 2 else f"{question}\n<video>"
        turns = [first, f"Noise of seed {number}.", *(["Are you sure?", "Yes."] if number % 3 == 0 else [])]
        said = [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(turns)]
        rows.append({"id": f"row{number}", "video": f"v{number}", "conversations": said})
    text = [{"from": "human", "value": "What is two and two?"}, {"from": "gpt", "value": "Four."}]
    return [*rows, {"id": "text", "conversations": text}]


def read_recipe(path: Path, *changes: str) -> Recipe:
    return load_recipe(path, changes)


def train_in_child(path: Path, changes: list[str]) -> None:
    """What a child process does that a test kills."""
    from longvlm.training.finetune import train

    train(load_recipe(path, changes), say=lambda text: None)


def train_until_marking(path: Path, changes: list[str], step: int) -> None:
    """As `train_in_child`; killed when all of the checkpoint of `step` is written but the mark that it is complete."""
    touch = Path.touch

    def touch_or_die(file: Path, *arguments: Any, **settings: Any) -> None:
        if (file.parent.name, file.name) == (f"checkpoint-{step}", COMPLETE):
            os.kill(os.getpid(), signal.SIGKILL)
        touch(file, *arguments, **settings)

    Path.touch = touch_or_die  # type: ignore[method-assign]
    train_in_child(path, changes)
