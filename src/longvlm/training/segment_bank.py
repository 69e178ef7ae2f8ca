"""A bank of encoded blocks of video, joined into ever new videos.

A segment's tokens do not depend on its neighbours, so blocks that were encoded once can follow one another in any
order. A few thousand blocks make more distinct videos than training ever sees, at no cost of drawing or encoding.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file

from longvlm.stages.merging import merge_tokens
from longvlm.stages.tokens import average_globals
from longvlm.stages.vision import VisionEncoder
from longvlm.training.encoder_school import ASPECTS
from longvlm.types import Compression, Frames
from longvlm.world.render import render_frame
from longvlm.world.scene import MAX_EVENTS, MIN_SECONDS_PER_EVENT, Scene, make_scene

_NO_EVENT_SHARE = 0.12


@dataclass(frozen=True)
class BlockPlan:
    """What a block shows: everything follows from these numbers."""

    seed: int
    num_segments: int
    num_events: int

    def scene(self, segment_seconds: float) -> Scene:
        seconds = self.num_segments * segment_seconds
        scene = make_scene(self.seed, seconds, num_events=max(1, self.num_events))
        return scene if self.num_events else dataclasses.replace(scene, events=())


def plan_blocks(num_blocks: int, lengths: Sequence[int], *, first_seed: int, segment_seconds: float) -> list[BlockPlan]:
    rng = random.Random(f"blocks {first_seed} {num_blocks}")
    plans = []
    for i in range(num_blocks):
        num_segments = rng.choice(lengths)
        most = int(num_segments * segment_seconds / MIN_SECONDS_PER_EVENT)
        num_events = 0 if rng.random() < _NO_EVENT_SHARE else rng.randint(1, most)
        plans.append(BlockPlan(first_seed + i, num_segments, num_events))
    return plans


class SegmentBank:
    """Encoded blocks: local (segments of all blocks, M, D), globals (segments of all blocks, L, D), and their scenes."""

    def __init__(
        self, plans: list[BlockPlan], local: torch.Tensor, layer_globals: torch.Tensor, segment_seconds: float
    ) -> None:
        self.plans = plans
        self.local = local
        self.layer_globals = layer_globals
        self.segment_seconds = segment_seconds
        self.scenes = [plan.scene(segment_seconds) for plan in plans]
        self.first_segment = [0]
        for plan in plans:
            self.first_segment.append(self.first_segment[-1] + plan.num_segments)

    @classmethod
    def encode(
        cls, plans: list[BlockPlan], encoder: VisionEncoder, compression: Compression, *, fps: float = 1.0
    ) -> SegmentBank:
        """Draw every block at `fps` frames a second and send it through the encoder and the merging."""
        segment_seconds = compression.frames_per_segment / fps
        local, layer_globals = [], []
        for plan in track(plans, "encoding the bank", console=Console(stderr=True), transient=True):
            for frames in _draw(plan.scene(segment_seconds), plan, encoder.image_size, compression, fps):
                features = encoder(frames)
                merged = merge_tokens(
                    features.patches.flatten(0, 1)[None],
                    tokens_per_segment=compression.tokens_per_segment,
                    schedule=compression.merge_schedule,
                    heads=compression.merge_heads,
                    order=compression.merge_order,
                    frames_per_segment=compression.frames_per_segment,
                )
                local.append(merged.features[0])
                layer_globals.append(features.layer_globals.mean(0))
        return cls(plans, torch.stack(local), torch.stack(layer_globals), segment_seconds)

    def save(self, path: Path) -> None:
        plans = json.dumps([dataclasses.astuple(plan) for plan in self.plans])
        metadata = {"plans": plans, "segment_seconds": repr(self.segment_seconds)}
        save_file({"local": self.local, "layer_globals": self.layer_globals}, str(path), metadata)

    @classmethod
    def load(cls, path: Path) -> SegmentBank:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            plans = [BlockPlan(*numbers) for numbers in json.loads(metadata["plans"])]
            tensors = file.get_tensor("local"), file.get_tensor("layer_globals")
        return cls(plans, *tensors, float(metadata["segment_seconds"]))

    def compose(self, num_segments: int, rng: random.Random) -> tuple[Scene, torch.Tensor]:
        """A new video of `num_segments` segments: its scene, and its tokens (G + S·M, D).

        No object comes twice in it, as in a generated video.
        """
        chosen: list[int] = []
        shown: set[str] = set()
        length = tries = 0
        while length < num_segments:
            block = rng.randrange(len(self.plans))
            tries += 1
            objects = {event.object for event in self.scenes[block].events}
            too_full = len(shown) + len(objects) > MAX_EVENTS or bool(shown & objects)
            if too_full or length + self.plans[block].num_segments > num_segments:
                continue
            chosen.append(block)
            shown |= objects
            length += self.plans[block].num_segments
        return self._join_scenes(chosen), self._join_tokens(chosen)

    def _join_scenes(self, blocks: list[int]) -> Scene:
        events, backgrounds, now = [], [], 0.0
        for block in blocks:
            scene = self.scenes[block]
            events += [shift(event, now) for event in scene.events]
            backgrounds += [shift(background, now) for background in scene.backgrounds]
            now += scene.duration_seconds
        return dataclasses.replace(
            self.scenes[blocks[0]], duration_seconds=now, events=tuple(events), backgrounds=tuple(backgrounds)
        )

    def _join_tokens(self, blocks: list[int]) -> torch.Tensor:
        rows = torch.cat([torch.arange(self.first_segment[b], self.first_segment[b + 1]) for b in blocks])
        segment_globals = self.layer_globals[rows]
        counts = torch.ones(len(rows), dtype=torch.int64)
        return torch.cat([average_globals(segment_globals, counts), self.local[rows].flatten(0, 1)])


def shift(timed, seconds: float):  # type: ignore[no-untyped-def]
    """An event or a background, `seconds` later."""
    return dataclasses.replace(
        timed, start_seconds=timed.start_seconds + seconds, end_seconds=timed.end_seconds + seconds
    )


def _draw(scene: Scene, plan: BlockPlan, side: int, compression: Compression, fps: float) -> list[Frames]:
    aspect = random.Random(plan.seed).choice(ASPECTS)
    size = compression.frames_per_segment
    segments = []
    for segment in range(plan.num_segments):
        times = tuple((segment * size + i) / fps for i in range(size))
        pixels = [torch.from_numpy(render_frame(scene, t, side, side, display_aspect=aspect)) for t in times]
        segments.append(Frames(torch.stack(pixels).permute(0, 3, 1, 2), times, size))
    return segments
