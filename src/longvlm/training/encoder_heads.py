"""Where the default model's encoder learns to see: single frames crowded with objects, a label for every patch.

Dense labels teach a small encoder far more per frame than captions do.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from longvlm.stages.vision import encode_pixels
from longvlm.training.augmentation import draw_augmentation
from longvlm.world.render import render_labelled
from longvlm.world.scene import (
    COLOURS,
    MAX_SIZE,
    MIN_SIZE,
    SHAPES,
    SHAPES_THAT_DO_NOT_SPIN,
    Event,
    Scene,
    make_scene,
)
from longvlm.world.shapes import SYMMETRY_FOLDS

_SCENE_SECONDS = 60.0
_FRAMES_PER_SCENE = 8  # drawing a new background is the dearest part of a frame
_GRID_SIDES = (1, 2, 2, 3, 3, 4)
_CELL_SHARE = 0.85
_TURNED_SHARE = 0.5
_LEAST_COVER = 0.1  # of a patch, for the patch to count as showing an object
ASPECTS = (1.0, 4 / 3, 16 / 9, 3 / 4, 9 / 16)
_COLOUR_NAMES = tuple(COLOURS)
NO_OBJECT = -1
POSE_NUMBERS = 5
_POSE_WEIGHT = 0.5


class CrowdedFrames(Dataset):
    """Frames with up to 16 objects that do not hide one another; item i is always the same frame.

    An item holds pixels (3, R, R) uint8, and of what each patch shows colours and shapes (P,) int64, -1 where it
    shows no object, and poses (P, 5): see `describe_pose`.
    """

    def __init__(self, num_frames: int, *, image_size: int, patch_size: int, first_seed: int) -> None:
        self.num_frames = num_frames
        self.image_size = image_size
        self.patch_size = patch_size
        self.first_seed = first_seed

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"crowded frame {self.first_seed} {index}")
        time_seconds = rng.uniform(0, _SCENE_SECONDS)
        scene = _crowd(_cached_scene(self.first_seed + index // _FRAMES_PER_SCENE), time_seconds, rng)
        aspect = random.Random(scene.seed).choice(ASPECTS)
        pixels, labels = render_labelled(scene, time_seconds, self.image_size, self.image_size, display_aspect=aspect)
        pixels = draw_augmentation(rng).apply(pixels)
        shown = patch_labels(labels, self.patch_size, len(scene.events))
        colours = np.array([_COLOUR_NAMES.index(event.colour) for event in scene.events] + [NO_OBJECT])
        shapes = np.array([SHAPES.index(event.shape) for event in scene.events] + [NO_OBJECT])
        poses = np.array([describe_pose(event, time_seconds) for event in scene.events] + [(0.0,) * POSE_NUMBERS])
        return {
            "pixels": torch.from_numpy(pixels).permute(2, 0, 1),
            "colours": torch.from_numpy(colours[shown]),
            "shapes": torch.from_numpy(shapes[shown]),
            "poses": torch.from_numpy(poses[shown].astype(np.float32)),
        }


@lru_cache(maxsize=4)
def _cached_scene(seed: int) -> Scene:
    return make_scene(seed, _SCENE_SECONDS)


def _crowd(scene: Scene, time_seconds: float, rng: random.Random) -> Scene:
    """The scene's background with objects of all kinds in the cells of a grid, each a little off its cell's centre."""
    side = rng.choice(_GRID_SIDES)
    events = [
        _place(time_seconds, (column + 0.5) / side, (row + 0.5) / side, 1 / side, rng)
        for column in range(side)
        for row in range(side)
        if rng.random() < _CELL_SHARE
    ]
    return dataclasses.replace(scene, events=tuple(events))


def _place(time_seconds: float, x: float, y: float, cell: float, rng: random.Random) -> Event:
    """An object of random kind that fills most of a cell around (x, y) at `time_seconds`."""
    colour, shape = rng.choice(_COLOUR_NAMES), rng.choice(SHAPES)
    size = min(MAX_SIZE, max(MIN_SIZE, cell * rng.uniform(0.6, 1.0)))
    slack = max(0.0, cell - size) / 2 + 0.1 * cell
    x, y = x + rng.uniform(-slack, slack), y + rng.uniform(-slack, slack)
    turned = shape not in SHAPES_THAT_DO_NOT_SPIN and rng.random() < _TURNED_SHARE
    red, green, blue = (min(255, max(0, level + rng.randint(-10, 10))) for level in COLOURS[colour])
    return Event(
        colour=colour,
        shape=shape,
        action="stay",
        start_seconds=time_seconds - 1,
        end_seconds=time_seconds + 1,
        start_x=x,
        start_y=y,
        end_x=x,
        end_y=y,
        size=size,
        end_size=size,
        angle_radians=rng.uniform(-math.pi, math.pi) if turned else rng.uniform(-0.12, 0.12),
        rgb=(red, green, blue),
    )


def describe_pose(event: Event, time_seconds: float) -> tuple[float, ...]:
    """Where the object's centre is (x, y), how big it is, and its angle (cosine, sine), all of about unit variance.

    The angle is counted in turns after which the shape looks the same; a shape without one has zeros.
    """
    pose = event.pose(time_seconds)
    place = (math.sqrt(12) * (pose.x - 0.5), math.sqrt(12) * (pose.y - 0.5))
    size = 3 * math.log(pose.size / math.sqrt(MIN_SIZE * MAX_SIZE))
    folds = SYMMETRY_FOLDS[event.shape]
    turn = folds * pose.angle_radians
    angle = (math.sqrt(2) * math.cos(turn), math.sqrt(2) * math.sin(turn)) if folds else (0.0, 0.0)
    return (*place, size, *angle)


def patch_labels(labels: np.ndarray, patch_size: int, num_events: int) -> np.ndarray:
    """Pixel labels (R, R) -> the event that covers most of each patch, (P,), or -1 where none covers enough."""
    side = len(labels) // patch_size
    patches = labels.reshape(side, patch_size, side, patch_size).transpose(0, 2, 1, 3).reshape(side * side, -1)
    cover = np.stack([(patches == event).sum(1) for event in range(max(1, num_events))], axis=1)
    return np.where(cover.max(1) >= _LEAST_COVER * patch_size**2, cover.argmax(1), NO_OBJECT)


@torch.no_grad()
def init_as_cosine_transform(patch_embedding: nn.Conv2d) -> None:
    """Start the patch embedding as a cosine transform: brightness and two colour differences, coarse waves first.

    Random filters mix what a patch shows into noise, and a small tower needs thousands of steps to undo that.
    """
    filters, _, size, _ = patch_embedding.weight.shape
    places = torch.arange(size) + 0.5
    waves = torch.stack([torch.cos(math.pi * places * k / size) for k in range(size)])
    waves *= torch.where(torch.arange(size) == 0, 1.0, math.sqrt(2))[:, None] / math.sqrt(size)
    brightness = torch.tensor([1.0, 1.0, 1.0]) / math.sqrt(3)
    differences = (
        torch.tensor([1.0, -1.0, 0.0]) / math.sqrt(2),
        torch.tensor([1.0, 1.0, -2.0]) / math.sqrt(6),
    )
    candidates = [
        (math.hypot(u, v) * coarseness, u, v, channels)
        for u in range(size)
        for v in range(size)
        for coarseness, channels in ((1.0, brightness), (1.8, differences[0]), (1.81, differences[1]))
    ]
    candidates.sort(key=lambda candidate: candidate[0])
    for i, (_, u, v, channels) in enumerate(candidates[:filters]):
        gain = 0.08 * (1 + math.hypot(u, v))  # fine waves are faint in pictures
        patch_embedding.weight[i] = gain * channels[:, None, None] * waves[u][:, None] * waves[v]


class Prediction(NamedTuple):
    """Logits of colour (B, P, 9), shape (B, P, 11); poses (B, P, 5); logits of presence (B, 80)."""

    colours: torch.Tensor
    shapes: torch.Tensor
    poses: torch.Tensor
    presence: torch.Tensor


class EncoderWithHeads(nn.Module):
    """The tower with heads that are thrown away afterwards: patches tell an object's kind and pose, [CLS] all kinds.

    Without the pose, features forget where things are, and what moves or turns can't be told from what stays.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, tower: PreTrainedModel, *, image_mean: Sequence[float], image_std: Sequence[float]) -> None:
        super().__init__()
        self.tower = tower
        width = tower.config.hidden_size
        self.colour_head = nn.Linear(width, len(COLOURS) + 1)
        self.shape_head = nn.Linear(width, len(SHAPES) + 1)
        self.pose_head = nn.Linear(width, POSE_NUMBERS)
        self.presence_head = nn.Linear(width, len(COLOURS) * len(SHAPES))
        self.register_buffer("mean", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(image_std).view(3, 1, 1), persistent=False)

    def predict(self, pixels: torch.Tensor) -> Prediction:
        """What the heads say of pixels (B, 3, R, R) uint8."""
        normalised = (pixels / 255 - self.mean) / self.std
        patches, layer_globals = encode_pixels(
            self.tower, normalised, feature_layer=-2, select_strategy="default", global_layers=1
        )
        return Prediction(
            self.colour_head(patches),
            self.shape_head(patches),
            self.pose_head(patches),
            self.presence_head(layer_globals[:, 0]),
        )

    def forward(
        self, pixels: torch.Tensor, colours: torch.Tensor, shapes: torch.Tensor, poses: torch.Tensor
    ) -> dict[str, Any]:
        """Cross entropy of kinds over patches (those with an object weigh three quarters in all) and of [CLS], and the
        squared error of poses where there is an object."""
        colour_logits, shape_logits, predicted_poses, presence_logits = self.predict(pixels)
        has_object = shapes != NO_OBJECT
        weights = torch.where(has_object, 0.75 / has_object.sum().clamp(min=1), 0.25 / (~has_object).sum().clamp(min=1))
        squared_errors = (predicted_poses - poses).square().mean(-1)
        loss = _POSE_WEIGHT * (squared_errors * has_object).sum() / has_object.sum().clamp(min=1)
        for logits, targets in ((colour_logits, colours), (shape_logits, shapes)):
            # NO_OBJECT is -1: the last class.
            per_patch = cross_entropy(logits.flatten(0, 1), targets.flatten() % logits.shape[-1], reduction="none")
            loss = loss + (per_patch * weights.flatten()).sum()
        present = presence_logits.new_zeros(len(pixels), len(COLOURS) * len(SHAPES) + 1)
        kinds = torch.where(has_object, colours * len(SHAPES) + shapes, present.shape[1] - 1)
        present = present.scatter(1, kinds, 1.0)[:, :-1]
        loss = loss + binary_cross_entropy_with_logits(presence_logits, present)
        return {"loss": loss}


@torch.no_grad()
def measure(learner: EncoderWithHeads, frames: CrowdedFrames, batch_size: int = 64) -> dict[str, float]:
    """Shares of patches with an object whose colour and shape are named rightly and of empty ones known as such, and
    the mean squared error of poses."""
    right = {"colour": 0, "shape": 0, "empty": 0}
    objects = empties = 0
    squared_error = 0.0
    for start in range(0, len(frames), batch_size):
        items = [frames[i] for i in range(start, min(start + batch_size, len(frames)))]
        batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
        colour_logits, shape_logits, predicted_poses, _ = learner.predict(batch["pixels"])
        squared_error += (predicted_poses - batch["poses"]).square().mean(-1)[batch["shapes"] != NO_OBJECT].sum().item()
        has_object = batch["shapes"] != NO_OBJECT
        right["colour"] += int((colour_logits.argmax(-1) == batch["colours"])[has_object].sum())
        right["shape"] += int((shape_logits.argmax(-1) == batch["shapes"])[has_object].sum())
        right["empty"] += int((shape_logits.argmax(-1) == len(SHAPES))[~has_object].sum())
        objects += int(has_object.sum())
        empties += int((~has_object).sum())
    return {
        "colour": right["colour"] / objects,
        "shape": right["shape"] / objects,
        "empty": right["empty"] / empties,
        "pose_error": squared_error / objects,
    }
