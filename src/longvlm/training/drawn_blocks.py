"""Blocks of video that training sees: planned, drawn, and encoded by several processes."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from longvlm.errors import LongVLMError
from longvlm.training.augmentation import Augmentation, draw_augmentation
from longvlm.training.encoder_heads import ASPECTS, POSE_NUMBERS, describe_pose, patch_labels
from longvlm.types import Frames, fill_places
from longvlm.world.render import NO_EVENT, render_labelled
from longvlm.world.scene import MIN_SECONDS_PER_EVENT, Scene, make_scene, max_events

_NO_EVENT_SHARE = 0.12
_FEW_EVENTS_SHARE = 0.4  # have one or two, however long they are: in long videos most objects stay for long
_ENDING_BLOCKS_SHARE = 0.2
_LEAST_SECONDS = 5.0  # the shortest event fits


@dataclass(frozen=True)
class BlockPlan:
    """What a block shows: everything follows from these numbers.

    `short_by_seconds`: what its last segment lacks, so that nothing can come after it. `is_whole`: it is a video by
    itself, not to be joined with others.
    """

    seed: int
    num_segments: int
    num_events: int
    short_by_seconds: float = 0.0
    is_whole: bool = False

    def scene(self, segment_seconds: float) -> Scene:
        seconds = self.num_segments * segment_seconds - self.short_by_seconds
        scene = make_scene(self.seed, seconds, num_events=max(1, self.num_events))
        return scene if self.num_events else dataclasses.replace(scene, events=())


def plan_blocks(num_blocks: int, lengths: Sequence[int], *, first_seed: int, segment_seconds: float) -> list[BlockPlan]:
    """The same first blocks, however many are planned. Raises LongVLMError where no event fits into a segment."""
    if segment_seconds < MIN_SECONDS_PER_EVENT:
        raise LongVLMError(
            f"A segment of {segment_seconds:g} s has no room for an event, which takes {MIN_SECONDS_PER_EVENT:g}; "
            "give it more frames."
        )
    rng = random.Random(f"blocks {first_seed}")
    plans = []
    for i in range(num_blocks):
        num_segments, short_by = rng.choice(lengths), 0
        if rng.random() < _ENDING_BLOCKS_SHARE:
            room = int(segment_seconds - (_LEAST_SECONDS if num_segments == 1 else 1.0))
            short_by = rng.randint(1, room) if room >= 1 else 0
        most = max_events(num_segments * segment_seconds - short_by)
        few = rng.random() < _FEW_EVENTS_SHARE
        num_events = 0 if rng.random() < _NO_EVENT_SHARE else rng.randint(1, min(2, most) if few else most)
        plans.append(BlockPlan(first_seed + i, num_segments, num_events, short_by))
    for num_events in (0, 1):  # what fills any gap must be there, in a small bank too
        if not any((p.num_segments, p.num_events, p.short_by_seconds) == (1, num_events, 0) for p in plans):
            plans.append(BlockPlan(first_seed + len(plans), 1, num_events))
    return plans


def plan_whole_scenes(
    num_scenes: int, lengths: tuple[int, int], *, first_seed: int, segment_seconds: float
) -> list[BlockPlan]:
    """Videos as evaluation draws them, of so many segments, log-uniformly: their events begin wherever they will, and
    last from one segment into the next, which within a block few do.
    """
    rng = random.Random(f"whole scenes {first_seed}")
    least, most = lengths
    plans = []
    for i in range(num_scenes):
        num_segments = min(most, int(least * ((most + 1) / least) ** rng.random()))
        short_by = round(rng.uniform(0.0, segment_seconds - 0.5), 3)
        room = max_events(num_segments * segment_seconds - short_by)
        num_events = rng.randint(min(2, room), room)
        plans.append(BlockPlan(first_seed + i, num_segments, num_events, short_by, is_whole=True))
    return plans


@dataclass(frozen=True)
class ShownObjects:
    """What each patch of a segment of K frames shows: the event, or -1, (K·P,), and its pose (K·P, 5)."""

    events: torch.Tensor
    poses: torch.Tensor
    num_frames: int


def describe_tokens(
    assignment: torch.Tensor, shown: ShownObjects, num_tokens: int, *, background_weight: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a segment's tokens show, from the patches they stand for, assignment (K·P,): the event that most of these
    show, or -1 (M,); its mean pose over those that show it (M, 5); their mean frame in the segment (M,).

    `background_weight`: of a patch without an object, in finding what most of them show.
    """
    kinds = shown.events + 1  # 0: background
    votes = torch.zeros(num_tokens, int(kinds.max()) + 1)
    votes.index_put_((assignment, kinds), torch.where(kinds == 0, background_weight, 1.0), accumulate=True)
    events = votes.argmax(1)
    frames = torch.arange(shown.num_frames).repeat_interleave(len(kinds) // shown.num_frames)
    is_counted = (kinds == events[assignment])[:, None].float()
    seen = torch.cat([shown.poses, frames[:, None], torch.ones(len(kinds), 1)], dim=1) * is_counted
    sums = torch.zeros(num_tokens, seen.shape[1]).index_add_(0, assignment, seen)
    means = sums[:, :-1] / sums[:, -1:]
    return events - 1, means[:, :-1], means[:, -1]


def find_sightings(assignment: torch.Tensor, shown: ShownObjects, token_events: torch.Tensor) -> torch.Tensor:
    """In which of a segment's K frames some patch of each token shows what most of its patches do, (M, K) bool; nowhere
    where that is nothing.

    assignment (K·P,) and `token_events` (M,) as in `describe_tokens`.
    """
    events = shown.events
    counts = torch.zeros(len(token_events), shown.num_frames)
    frames = torch.arange(shown.num_frames).repeat_interleave(len(events) // shown.num_frames)
    is_shown = (events == token_events[assignment]) & (events != NO_EVENT)
    return counts.index_put_((assignment, frames), is_shown.float(), accumulate=True) > 0


@dataclass(frozen=True)
class DrawnSegment:
    """The frames of a segment, and what their patches show."""

    frames: Frames
    shown: ShownObjects


EncodeBlock = Callable[[list[DrawnSegment]], tuple[torch.Tensor, ...]]


class DrawnBlocks(Dataset):
    """The segments of each block, drawn at `fps` frames a second."""

    def __init__(
        self, plans: list[BlockPlan], image_size: int, patch_size: int, frames_per_segment: int, fps: float
    ) -> None:
        self.plans = plans
        self.image_size = image_size
        self.patch_size = patch_size
        self.frames_per_segment = frames_per_segment
        self.fps = fps

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, index: int) -> list[DrawnSegment]:
        plan, size = self.plans[index], self.frames_per_segment
        scene = plan.scene(size / self.fps)
        rng = random.Random(plan.seed)
        aspect, augmentation = rng.choice(ASPECTS), draw_augmentation(rng)
        return [self._draw(scene, aspect, augmentation, first) for first in range(0, plan.num_segments * size, size)]

    def _draw(self, scene: Scene, aspect: float, augmentation: Augmentation, first_frame: int) -> DrawnSegment:
        """A short last segment repeats its frames, as one of a file does."""
        side, size = self.image_size, self.frames_per_segment
        num_frames = math.ceil(round(scene.duration_seconds * self.fps, 6))  # one at 0, as a file has
        num_distinct = min(size, num_frames - first_frame)
        different = [(first_frame + i) / self.fps for i in range(num_distinct)]
        drawn = [render_labelled(scene, t, side, side, display_aspect=aspect) for t in different]
        pixels = torch.from_numpy(np.stack([augmentation.apply(picture) for picture, _ in drawn])).permute(0, 3, 1, 2)
        events = np.stack([patch_labels(labels, self.patch_size, len(scene.events)) for _, labels in drawn])
        poses = np.stack([_poses_at(scene, t)[seen] for t, seen in zip(different, events, strict=True)])
        places = fill_places(num_distinct, size)
        shown, posed = (torch.from_numpy(known[places]).flatten(0, 1) for known in (events, poses))
        frames = Frames(pixels[places], tuple(different[place] for place in places), num_distinct)
        return DrawnSegment(frames, ShownObjects(shown, posed, size))


def _poses_at(scene: Scene, time_seconds: float) -> np.ndarray:
    """The events' poses, then that of none, which NO_EVENT, -1, takes: (E + 1, 5) float32."""
    poses = [describe_pose(event, time_seconds) for event in scene.events]
    return np.array([*poses, (0.0,) * POSE_NUMBERS], dtype=np.float32)


class _Encoded(Dataset):
    """What `encode` makes of each drawn block."""

    def __init__(self, blocks: DrawnBlocks, encode: EncodeBlock) -> None:
        self.blocks, self.encode = blocks, encode

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return self.encode(self.blocks[index])


def encode_blocks(blocks: DrawnBlocks, encode: EncodeBlock, what: str) -> Iterator[tuple[torch.Tensor, ...]]:
    """What `encode` makes of each block, in order, with a progress bar about `what`.

    One process for each of torch's threads draws and encodes whole blocks, which keeps all cores busy; frames of so
    small an encoder are too few for two threads to share.
    """
    encoded = DataLoader(_Encoded(blocks, encode), batch_size=None, num_workers=torch.get_num_threads())
    arriving = iter(encoded)  # forks now: later the progress bar's threads may hold locks, which a fork never lets go
    for tensors in track(arriving, what, len(blocks), console=Console(stderr=True), transient=True):
        yield tuple(tensor.clone() for tensor in tensors)  # what lies in shared memory keeps a file open
