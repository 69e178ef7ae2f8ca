"""Stretches of generated video, encoded once for all rows of the study: features of every patch of every frame."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from longvlm.stages.vision import VisionEncoder
from longvlm.training.checkpointing import naming_what_is_damaged
from longvlm.training.drawn_blocks import BlockPlan, DrawnBlocks, DrawnSegment, encode_blocks
from longvlm.whole_files import replacing
from longvlm.world.scene import max_events

_EVERY_EMPTY = 7
_BLOCK_SEED = 700_000


def plan_blocks(num_blocks: int, *, first: int, seconds: float) -> list[BlockPlan]:
    """Blocks of none to as many events as fit, of seeds of their own from `first` on; every seventh is empty."""
    plans = []
    for number in range(num_blocks):
        seed = _BLOCK_SEED + first + number
        events = random.Random(f"study block {seed}").randint(1, max_events(seconds))
        plans.append(BlockPlan(seed, 1, 0 if number % _EVERY_EMPTY == 0 else events))
    return plans


@dataclass(frozen=True)
class BlockFeatures:
    """B blocks of F frames, one a second: patches (B, F, P, D) and layer_globals (B, F, L, D) float16; what each patch
    shows, patch_events (B, F, P) int16, -1 for none, and patch_poses (B, F, P, 5) float16.
    """

    plans: list[BlockPlan]
    patches: torch.Tensor
    layer_globals: torch.Tensor
    patch_events: torch.Tensor
    patch_poses: torch.Tensor

    @classmethod
    def encode(cls, plans: Sequence[BlockPlan], encoder: VisionEncoder, num_frames: int) -> BlockFeatures:
        patch_size = encoder.tower.config.patch_size
        blocks = DrawnBlocks(list(plans), encoder.image_size, patch_size, num_frames, fps=1.0)
        rows = encode_blocks(blocks, partial(_encode_block, encoder), "encoding")
        return cls(list(plans), *(torch.stack(column) for column in zip(*rows, strict=True)))

    def save(self, path: Path) -> None:
        tensors = {name: getattr(self, name) for name in _TENSORS}
        metadata = {"plans": json.dumps([dataclasses.astuple(plan) for plan in self.plans])}
        with replacing(path) as whole:
            save_file(tensors, whole, metadata)

    @classmethod
    def load(cls, path: Path) -> BlockFeatures:
        """Raises LongVLMError for a damaged file."""
        with naming_what_is_damaged(path), safe_open(str(path), framework="pt") as file:
            plans = [BlockPlan(*numbers) for numbers in json.loads(file.metadata()["plans"])]
            return cls(plans, *(file.get_tensor(name) for name in _TENSORS))

    def starts(self, frames_per_segment: int) -> range:
        """The first frame of every segment of a block."""
        return range(0, self.patches.shape[1], frames_per_segment)

    def plans_of(self, frames_per_segment: int) -> list[BlockPlan]:
        """The plans, counted in segments of this length."""
        num_segments = len(self.starts(frames_per_segment))
        return [dataclasses.replace(plan, num_segments=num_segments) for plan in self.plans]


def _encode_block(encoder: VisionEncoder, block: list[DrawnSegment]) -> tuple[torch.Tensor, ...]:
    """What a block of one segment has in each of the tensors."""
    (segment,) = block
    features, shown, num_frames = encoder(segment.frames), segment.shown, segment.shown.num_frames
    events = shown.events.view(num_frames, -1).to(torch.int16)
    poses = shown.poses.view(num_frames, events.shape[1], -1).half()
    return features.patches.half(), features.layer_globals.half(), events, poses


_TENSORS = ("patches", "layer_globals", "patch_events", "patch_poses")
