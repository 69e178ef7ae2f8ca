"""A bank of encoded blocks of video, joined into ever new videos.

A segment's tokens do not depend on its neighbours, so blocks that were encoded once can follow one another in any
order. A few thousand blocks make more distinct videos than training ever sees, at no cost of drawing or encoding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from longvlm.errors import LongVLMError
from longvlm.stages.merging import merge_segments
from longvlm.stages.tokens import average_globals
from longvlm.stages.vision import VisionEncoder
from longvlm.training.drawn_blocks import (
    BlockPlan,
    DrawnBlocks,
    DrawnSegment,
    describe_tokens,
    encode_blocks,
    find_sightings,
)
from longvlm.types import Compression
from longvlm.whole_files import replacing
from longvlm.world.render import NO_EVENT
from longvlm.world.scene import Background, Event, Scene, max_events

_ENDING_VIDEOS_SHARE = 0.9  # a file's frames seldom fill its last segment
# A block has at most so many times the events a second that the rest of the video needs, so that few events are not
# huddled together; but where they are few anyway, blocks with one in so many seconds will do.
_MOST_DENSITY, _SPARSE_SECONDS = 1.5, 20.0
_MOST_TRIES = 50
_WHOLE_SCENES_SHARE = 0.7


@dataclass(frozen=True)
class ComposedVideo:
    """A video joined from blocks: its scene, its visual tokens (G + S·M, D), and what and when each shows.

    `token_events` (G + S·M,): the index in `scene.events` of the object that the token shows, or -1.
    `token_poses` (G + S·M, 5): that object's pose, see `describe_pose`; zeros where there is none.
    `token_frames` (G + S·M,): the frame it shows it in, or the mean of several; 0 for global tokens.
    `token_segments` (G + S·M,): the segment of each token, counted from 1; 0 for global tokens.
    `token_sightings` (G + S·M, K): in which frames of that segment it shows its object; None where the bank can't tell.
    `token_places` (G + S·M,): where each token stands among the `num_places` of the whole video; other than one after
    another only where segments were left out.
    """

    scene: Scene
    visual_tokens: torch.Tensor
    token_events: torch.Tensor
    token_poses: torch.Tensor
    token_frames: torch.Tensor
    token_segments: torch.Tensor
    token_places: torch.Tensor
    num_places: int
    token_sightings: torch.Tensor | None = None

    @property
    def num_segments(self) -> int:
        """Those that have tokens."""
        return len(self.token_segments.unique()) - int((self.token_segments == 0).any())

    def leave_out_empty(self, num_segments: int, segment_seconds: float, rng: random.Random) -> ComposedVideo:
        """The video without the tokens of some segments in which no object is on screen, in the same places.

        `num_segments` are left, or more where they have objects. So a model learns places far apart, as in hours of
        video, at the price of minutes (Zhu et al., PoSE, 2024, skip positions of texts).
        """
        total = int(self.token_segments.max())
        busy: set[int] = set()
        for event in self.scene.events:
            first, end = (time / segment_seconds for time in (event.start_seconds, event.end_seconds))
            busy.update(range(math.floor(first) + 1, math.ceil(end) + 1))
        empty = sorted(set(range(1, total + 1)) - busy)
        left_out = rng.sample(empty, min(len(empty), max(0, total - num_segments)))
        kept = ~torch.isin(self.token_segments, torch.tensor(left_out, dtype=torch.int64))
        per_token = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors: dict[str, Any] = {n: value[kept] for n, value in per_token.items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(self, **tensors)

    def add_noise(self, spread: torch.Tensor, rng: random.Random) -> ComposedVideo:
        """The video with normal noise of the standard deviations `spread` (D,) on every local token."""
        generator = torch.Generator().manual_seed(rng.randrange(2**63))
        noise = spread * torch.randn(self.visual_tokens.shape, generator=generator)
        is_local = (self.token_segments > 0)[:, None]
        return dataclasses.replace(self, visual_tokens=self.visual_tokens + noise * is_local)


class SegmentBank:
    """Encoded blocks and their scenes: local (segments of all blocks, M, D), layer_globals (as many, L, D).

    `token_events` (segments of all blocks, M): the event of its block that a token shows, or -1; `token_poses` (as
    many, M, 5): that object's pose; `token_frames` (as many, M): when, in frames of the segment; `token_sightings` (as
    many, M, K) bool: in which frames of it, see `find_sightings`, or None where that is not known.
    """

    _TENSORS = ("local", "layer_globals", "token_events", "token_poses", "token_frames", "token_sightings")

    def __init__(
        self,
        plans: list[BlockPlan],
        local: torch.Tensor,
        layer_globals: torch.Tensor,
        token_events: torch.Tensor,
        token_poses: torch.Tensor,
        token_frames: torch.Tensor,
        token_sightings: torch.Tensor | None = None,
        *,
        segment_seconds: float,
        frames_per_segment: int,
    ) -> None:
        self.plans = plans
        self.local = local
        self.layer_globals = layer_globals
        self.token_events = token_events
        self.token_poses = token_poses
        self.token_frames = token_frames
        self.token_sightings = token_sightings
        self.segment_seconds = segment_seconds
        self.frames_per_segment = frames_per_segment
        self.scenes = [plan.scene(segment_seconds) for plan in plans]
        self._alike: dict[tuple[bool, int, int], list[int]] = {}  # by whether they end a video, segments and events
        self._whole: dict[int, list[int]] = {}  # by segments
        for i, plan in enumerate(plans):
            if plan.is_whole:
                self._whole.setdefault(plan.num_segments, []).append(i)
                continue
            kind = (plan.short_by_seconds > 0, plan.num_segments, plan.num_events)
            self._alike.setdefault(kind, []).append(i)
        self.first_segment = [0]
        for plan in plans:
            self.first_segment.append(self.first_segment[-1] + plan.num_segments)

    @cached_property
    def feature_spread(self) -> torch.Tensor:
        """The standard deviation of each feature over all local tokens, (D,)."""
        return self.local.flatten(0, 1).std(0)

    @classmethod
    def encode(
        cls, plans: list[BlockPlan], encoder: VisionEncoder, compression: Compression, *, fps: float = 1.0
    ) -> SegmentBank:
        """Draw every block at `fps` frames a second and send it through the encoder and the merging."""
        size, patch_size = encoder.image_size, encoder.tower.config.patch_size
        blocks = DrawnBlocks(plans, size, patch_size, compression.frames_per_segment, fps)
        encoded = encode_blocks(blocks, partial(_encode_block, encoder, compression), "encoding the bank")
        columns = (torch.cat(column) for column in zip(*encoded, strict=True))
        return cls(
            plans,
            *columns,
            segment_seconds=compression.frames_per_segment / fps,
            frames_per_segment=compression.frames_per_segment,
        )

    @classmethod
    def join(cls, banks: Sequence[SegmentBank]) -> SegmentBank:
        """One bank of the blocks of several, all with segments alike."""
        return cls(
            [plan for bank in banks for plan in bank.plans],
            *(torch.cat(column) for column in zip(*(bank._tensors().values() for bank in banks), strict=True)),
            segment_seconds=banks[0].segment_seconds,
            frames_per_segment=banks[0].frames_per_segment,
        )

    def with_actions(self, actions: Collection[str]) -> SegmentBank:
        """The blocks in which some object does one of `actions`, and every other one of those without an object."""
        empty = [block for block, scene in enumerate(self.scenes) if not scene.events]
        fits_all = [b for b in empty if (self.plans[b].num_segments, self.plans[b].short_by_seconds) == (1, 0)]
        acting = [b for b, scene in enumerate(self.scenes) if any(event.action in actions for event in scene.events)]
        blocks = sorted({*acting, *empty[::2], *fits_all[:1]})  # without one that fits everywhere, compose is stuck
        rows = self._rows(blocks)
        return SegmentBank(
            [self.plans[block] for block in blocks],
            **{name: tensor[rows] for name, tensor in self._tensors().items()},
            segment_seconds=self.segment_seconds,
            frames_per_segment=self.frames_per_segment,
        )

    def _tensors(self) -> dict[str, torch.Tensor]:
        named = {name: getattr(self, name) for name in self._TENSORS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def save(self, path: Path) -> None:
        """Write all of it, in one step; of the scenes, which are drawn anew when it is read, a hash."""
        metadata = {
            "plans": json.dumps([dataclasses.astuple(plan) for plan in self.plans]),
            "scenes": _digest(self.scenes),
            "segment_seconds": repr(self.segment_seconds),
            "frames_per_segment": str(self.frames_per_segment),
        }
        with replacing(path) as whole:
            save_file(self._tensors(), whole, metadata)

    @classmethod
    def load(cls, path: Path) -> SegmentBank:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            plans = [BlockPlan(*numbers) for numbers in json.loads(metadata["plans"])]
            tensors = [file.get_tensor(name) for name in cls._TENSORS if name in file.keys()]  # noqa: SIM118
        bank = cls(
            plans,
            *tensors,
            segment_seconds=float(metadata["segment_seconds"]),
            frames_per_segment=int(metadata["frames_per_segment"]),
        )
        if metadata.get("scenes", _digest(bank.scenes)) != _digest(bank.scenes):
            raise LongVLMError(
                f"{path} shows scenes that are drawn in another way now; remove it, and what came of it."
            )
        return bank

    def compose(self, num_segments: int, rng: random.Random) -> ComposedVideo:
        """A new video of `num_segments` segments.

        As in a generated video, any number of events that it has room for is as likely, no object comes twice, and the
        last segment is mostly short. Where the bank has whole scenes of this length, most videos are one of these.
        """
        if num_segments in self._whole and rng.random() < _WHOLE_SCENES_SHARE:
            return self._join([rng.choice(self._whole[num_segments])])
        most = max_events(num_segments * self.segment_seconds)
        left, missing = num_segments, rng.randint(min(2, most), most)
        chosen: list[int] = []
        shown: set[str] = set()
        wants_ending = rng.random() < _ENDING_VIDEOS_SHARE
        while left > 0:
            block = self._choose(left, missing, shown, rng, ending=wants_ending)
            if block is not None:
                chosen.append(block)
                left, missing = left - self.plans[block].num_segments, missing - self.plans[block].num_events
            elif not wants_ending:
                missing = 0  # a small bank may not have that many different objects, or blocks so full
            wants_ending = False
        rng.shuffle(chosen)
        return self._join(sorted(chosen, key=lambda block: self.plans[block].short_by_seconds > 0))

    def _choose(
        self, left: int, missing: int, shown: set[str], rng: random.Random, *, ending: bool = False
    ) -> int | None:
        """A block for some of the `left` segments and `missing` events, whose objects are `shown` then, or None.

        As long as events are missing, one that has some; one that ends the video need not.
        """
        alike = [
            (blocks, events / segments, missing - events <= max_events((left - segments) * self.segment_seconds))
            for (ends, segments, events), blocks in self._alike.items()
            if ends == ending and segments <= left and events <= missing and (ending or bool(events) == bool(missing))
        ]
        densest = max(_MOST_DENSITY * missing / left, self.segment_seconds / _SPARSE_SECONDS)
        fitting = [blocks for blocks, density, leaves_room in alike if density <= densest and leaves_room]
        groups = fitting or [blocks for blocks, _, _ in alike]
        for _ in range(_MOST_TRIES if groups else 0):
            block = rng.choice(rng.choices(groups, [len(blocks) for blocks in groups])[0])
            objects = {event.object for event in self.scenes[block].events}
            if not shown & objects:
                shown |= objects
                return block
        return None

    def _rows(self, blocks: list[int]) -> torch.Tensor:
        """Where the segments of these blocks lie, one block after the other."""
        return torch.cat([torch.arange(self.first_segment[b], self.first_segment[b + 1]) for b in blocks])

    def _join(self, blocks: list[int]) -> ComposedVideo:
        rows = self._rows(blocks)
        segment_globals = self.layer_globals[rows]
        weights = torch.ones(len(rows))
        weights[-1] -= self.plans[blocks[-1]].short_by_seconds / self.segment_seconds
        video_globals = average_globals(segment_globals, weights)
        num_globals, num_tokens = len(video_globals), self.local.shape[1]
        token_events, earlier = [torch.full((num_globals,), NO_EVENT)], 0
        for block in blocks:
            shown = self.token_events[self.first_segment[block] : self.first_segment[block + 1]].flatten()
            token_events.append(torch.where(shown == NO_EVENT, NO_EVENT, shown + earlier))
            earlier += len(self.scenes[block].events)
        segments = torch.arange(len(rows))[:, None]
        frames = self.token_frames[rows] + self.frames_per_segment * segments
        num_places = num_globals + num_tokens * len(rows)
        return ComposedVideo(
            self._join_scenes(blocks),
            torch.cat([video_globals, self.local[rows].flatten(0, 1)]),
            torch.cat(token_events),
            _after_globals(self.token_poses[rows], num_globals),
            torch.cat([torch.zeros(num_globals), frames.flatten()]),
            torch.cat([torch.zeros(num_globals, dtype=torch.int64), (segments + 1).repeat(1, num_tokens).flatten()]),
            torch.arange(num_places),
            num_places,
            None if self.token_sightings is None else _after_globals(self.token_sightings[rows], num_globals),
        )

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


def _digest(scenes: Sequence[Scene]) -> str:
    return hashlib.sha256(repr(scenes).encode()).hexdigest()


def _after_globals(per_token: torch.Tensor, num_globals: int) -> torch.Tensor:
    """What is known of local tokens (S, M, n), after zeros for global ones: (G + S·M, n)."""
    return torch.cat([per_token.new_zeros(num_globals, per_token.shape[-1]), per_token.flatten(0, 1)])


def _encode_block(
    encoder: VisionEncoder, compression: Compression, block: list[DrawnSegment]
) -> tuple[torch.Tensor, ...]:
    """The rows that a block's segments have in the bank's tensors."""
    features = [encoder(segment.frames) for segment in block]
    merged = merge_segments(torch.stack([segment.patches.flatten(0, 1) for segment in features]), compression)
    described = []
    for assignment, segment in zip(merged.assignment, block, strict=True):
        tokens = describe_tokens(assignment, segment.shown, compression.tokens_per_segment)
        described.append((*tokens, find_sightings(assignment, segment.shown, tokens[0])))
    layer_globals = torch.stack([segment.mean_globals.float() for segment in features])
    return merged.features.float(), layer_globals, *(torch.stack(rows) for rows in zip(*described, strict=True))


Timed = TypeVar("Timed", Event, Background)


def shift(timed: Timed, seconds: float) -> Timed:
    """An event or a background, `seconds` later."""
    return dataclasses.replace(
        timed, start_seconds=timed.start_seconds + seconds, end_seconds=timed.end_seconds + seconds
    )
