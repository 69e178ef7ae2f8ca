"""The ways from patch features to visual tokens that the study compares, and the recipe that lists them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import track

from longvlm.errors import LongVLMError
from longvlm.stages.merging import merge_tokens
from longvlm.study.blocks import BlockFeatures
from longvlm.study.spelling import spell_bank
from longvlm.training.drawn_blocks import ShownObjects, describe_tokens
from longvlm.training.examples import Lesson
from longvlm.training.segment_bank import SegmentBank
from longvlm.training.settings import build_settings, read_settings
from longvlm.training.stage import StageSettings
from longvlm.training.untrained_model import plan_by_share
from longvlm.types import MergeOrder
from longvlm.world.questions import KINDS
from longvlm.world.scene import MIN_SECONDS_PER_EVENT
from longvlm.world.wordings import TIMED_KINDS

_SEGMENTS_AT_ONCE = 20  # merged in one call, three times as fast as one by one


@dataclass(frozen=True)
class Row:
    """One row of the study: how visual tokens are made. Unless said otherwise, as the paper makes them.

    Args:
        group: the rows it is shown with: "main", or a sweep.
        method: "merge", the segments' patches; "pool", Video-ChatGPT's tokens: the mean of every frame, and of every
            position over the video; "subsample", all patches of the middle frame of each segment; "spell", what the
            world knows in their place.
        merged_share: of the tokens left, that one level of merging removes; None halves.
        background_weight: of a patch without an object, in what a token is taught to show: what most of its patches
            show. 0 for tokens that average so much that most would never show anything.
        seeds: how many times the row is trained.
        steps: of its training; None: as many as of all others.
    """

    name: str
    group: str = "main"
    method: Literal["merge", "pool", "subsample", "spell"] = "merge"
    frames_per_segment: int = 10
    tokens_per_segment: int = 16
    merge_order: MergeOrder = "merge"
    merge_heads: int = 16
    merged_share: float | None = None
    frame_code: float = 0.0
    background_weight: float = 1.0
    with_local: bool = True
    with_global: bool = True
    seeds: int = 1
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("frames_per_segment", "tokens_per_segment", "merge_heads", "seeds"):
            if getattr(self, name) < 1:
                raise LongVLMError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.steps is not None and self.steps < 1:
            raise LongVLMError(f"steps is {self.steps}; it must be at least 1.")
        if not (self.with_local or self.with_global) or (self.method == "subsample" and not self.with_local):
            raise LongVLMError("the row has no tokens at all; leave with_local or with_global true.")

    @property
    def file_name(self) -> str:
        """The name as part of a file's name."""
        return re.sub("[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class StartStage(StageSettings):
    """How the language model learns, once for all rows, from `blocks` that are spelled out."""

    blocks: int
    lesson: Lesson


@dataclass(frozen=True)
class StudySettings:
    """What all rows share.

    Args:
        blocks, held_out_blocks: stretches of video, encoded once; all videos are joined from them, those that rows are
            scored on from the held-out ones alone.
        block_seconds: of each, looked at once a second.
        blocks_per_video: least and most; the first third of the steps is spent on videos of one.
        kinds: of questions, and how often one is asked in training.
        scored_videos: with one question of every kind each.
        text_width, text_layers, text_heads: of the language model.
        start: how long and fast it learns from videos that are spelled out, once for all rows.
        training: how long and fast each row learns from there, with its own projector.
    """

    blocks: int
    held_out_blocks: int
    block_seconds: int
    blocks_per_video: tuple[int, int]
    videos_per_batch: int
    questions_per_video: int
    names_share: float
    kinds: dict[str, float]
    scored_videos: int
    text_width: int
    text_layers: int
    text_heads: int
    start: StartStage
    training: StageSettings
    threads: int
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        least = {"blocks": 2, "held_out_blocks": 2}  # the first is empty
        least |= dict.fromkeys(("videos_per_batch", "questions_per_video", "scored_videos", "threads"), 1)
        for name, number in least.items():
            if getattr(self, name) < number:
                raise LongVLMError(f"{name} is {getattr(self, name)}; it must be at least {number}.")
        if self.block_seconds < MIN_SECONDS_PER_EVENT:
            raise LongVLMError(
                f"block_seconds is {self.block_seconds}; an event and the gap after it take {MIN_SECONDS_PER_EVENT:g}."
            )
        unknown = next((kind for kind in self.kinds if kind not in KINDS or kind in TIMED_KINDS), None)
        if unknown is not None:
            known = ", ".join(kind for kind in KINDS if kind not in TIMED_KINDS)
            raise LongVLMError(f"kinds has {unknown!r}; those that can be asked are {known}.")
        for kind, weight in self.kinds.items():
            if not weight > 0:
                raise LongVLMError(
                    f"kinds has {weight:g} for {kind!r}; a weight must be above 0, or its kind left out."
                )
        if not 1 <= self.blocks_per_video[0] <= self.blocks_per_video[1]:
            raise LongVLMError(f"blocks_per_video is {list(self.blocks_per_video)}; give the least and the most.")


def load_study(path: Path) -> StudySettings:
    """Read a study's recipe. Raises LongVLMError for a missing, unknown or wrong key, naming it."""
    study = build_settings(StudySettings, read_settings(path), path.name)
    names = [row.file_name for row in study.rows]
    if len(set(names)) < len(names):
        raise LongVLMError(f"{path.name} has two rows whose names have the same letters; each needs its own.")
    for row in study.rows:
        if study.block_seconds % row.frames_per_segment:
            raise LongVLMError(
                f"{path.name}: {row.name} has {row.frames_per_segment} frames per segment, which must divide "
                f"the {study.block_seconds} of a block."
            )
    return study


def make_bank(blocks: BlockFeatures, row: Row) -> SegmentBank:
    """The row's tokens of every block, ready to be joined into videos; with a progress bar."""
    size = row.frames_per_segment
    if row.method == "spell":
        return spell_bank(blocks.plans_of(size), blocks.patches.shape[-1], segment_seconds=size)
    starts = blocks.starts(size)
    places = [(block, slice(start, start + size)) for block in range(len(blocks.plans)) for start in starts]
    parts = [places[first : first + _SEGMENTS_AT_ONCE] for first in range(0, len(places), _SEGMENTS_AT_ONCE)]
    made = []
    for part in track(parts, "making tokens", console=Console(stderr=True), transient=True):
        patches = torch.stack([blocks.patches[place] for place in part]).float()
        for place, *tokens in zip(part, patches, *_gather(patches, row), strict=True):
            made.append(_describe_segment(blocks, place, row, *tokens))
    local, layer_globals, events, poses, frames = (torch.stack(column) for column in zip(*made, strict=True))
    return SegmentBank(
        blocks.plans_of(size),
        local,
        layer_globals,
        events,
        poses,
        frames,
        segment_seconds=float(size),
        frames_per_segment=size,
    )


def _gather(patches: torch.Tensor, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments' patches (S, K, P, D) -> their tokens (S, M, D), and which of these each patch is part of, (S, K·P);
    (S, P), of the middle frame alone, for "subsample".
    """
    num_segments, num_frames, num_places, _ = patches.shape
    if row.method == "merge":
        num_tokens, share = row.tokens_per_segment, row.merged_share
        merged = merge_tokens(
            patches.flatten(1, 2),
            tokens_per_segment=num_tokens,
            schedule=plan_by_share(num_frames * num_places, num_tokens, share) if share else None,
            heads=row.merge_heads,
            order=row.merge_order,
            frames_per_segment=num_frames,
            frame_code=row.frame_code,
        )
        return merged.features, merged.assignment
    if row.method == "pool":
        local, assignment = patches.mean(2), torch.arange(num_frames).repeat_interleave(num_places)
    else:
        local = patches[:, num_frames // 2].clone()  # not a view, which would keep all frames in memory
        assignment = torch.arange(num_places)
    return local, assignment.expand(num_segments, -1)


def _describe_segment(
    blocks: BlockFeatures,
    place: tuple[int, slice],
    row: Row,
    patches: torch.Tensor,
    local: torch.Tensor,
    assignment: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """A segment's tokens (M, D), globals (L, D), and the events (M,), poses (M, 5) and frames (M,) of the tokens."""
    num_frames, num_places, width = patches.shape
    shown = ShownObjects(
        blocks.patch_events[place].flatten().long(), blocks.patch_poses[place].flatten(0, 1).float(), num_frames
    )
    layer_globals, first_frame = blocks.layer_globals[place].float().mean(0), 0
    if row.method == "pool":
        layer_globals = patches.mean(0)
    elif row.method == "subsample":
        layer_globals, first_frame = patches.new_zeros(0, width), num_frames // 2
        kept = slice(first_frame * num_places, (first_frame + 1) * num_places)
        shown = ShownObjects(shown.events[kept], shown.poses[kept], 1)
    events, poses, frame = describe_tokens(assignment, shown, len(local), background_weight=row.background_weight)
    frame = frame + first_frame
    if not row.with_local:
        local, events, poses, frame = (tensor[:0] for tensor in (local, events, poses, frame))
    return local, layer_globals if row.with_global else layer_globals[:0], events, poses, frame


def choose_rows(study: StudySettings, names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these names, all without any. Raises LongVLMError for a name that no row has."""
    known = {row.name: row for row in study.rows}
    for name in names:
        if name not in known:
            raise LongVLMError(f"The study has no row {name!r}; its rows are {', '.join(known)}.")
    return tuple(known[name] for name in names) or study.rows
