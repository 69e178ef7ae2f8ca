"""What the generated world knows of a video, as targets: at every visual token, and at every name of an object.

At a visual token: the objects so far, and how the one shown there moves. At a name: whether the object appears, when,
and which objects come right before and right after it.
"""

from __future__ import annotations

import math
import random
from bisect import insort
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from longvlm.training.encoder_heads import POSE_NUMBERS
from longvlm.world.render import NO_EVENT
from longvlm.world.scene import ACTIONS, COLOURS, MAX_EVENTS, SHAPES, Event, Scene

_COLOURS, _SHAPES = tuple(COLOURS), SHAPES
OBJECT_SIZES = (len(_COLOURS) + 1, len(_SHAPES) + 1)  # a colour and a shape, or none
_PLACES_PER_DOUBLING, _MOST_PLACES = 4, 40
# At a visual token. Four objects: the one it shows, the newest so far, the one before that, the first; what the shown
# one does; how many there were; how many segments, in steps of a quarter of a doubling.
STATE_SIZES = (*OBJECT_SIZES * 4, len(ACTIONS) + 1, MAX_EVENTS + 1, _MOST_PLACES)
STATE_COUNT = STATE_SIZES.index(MAX_EVENTS + 1)  # where in a state the number of objects stands
STATE_PLACE = len(STATE_SIZES) - 1  # and the place in the video, 0 for what is of all of it
# At a name. Whether the object appears; the ones right after and right before it; what it does; in which third; how
# many there were before it.
RECALL_SIZES = (2, *OBJECT_SIZES * 2, len(ACTIONS) + 1, 4, MAX_EVENTS + 1)
# At a visual token that shows an object: its pose; how that differs from its mean so far and from the last one, scaled;
# the frames since.
MOTION_NUMBERS = 3 * POSE_NUMBERS + 1
_CHANGE_SCALE = 2.5  # brings changes of a pose to about unit variance, as poses have
_NO_ACTION, _NO_THIRD = len(ACTIONS), 3
_LEAST_FRAMES_APART, _MOST_FRAMES_APART = 0.5, 4.0
_LEAST_NAMES = 12  # a shorter list would waste what it takes to read the video


def describe_states(scene: Scene, token_events: torch.Tensor, token_segments: torch.Tensor) -> torch.Tensor:
    """What is known at each visual token, (n, 11) int64: an index into each of STATE_SIZES.

    Only objects that some token up to here shows count. `scene.events` stand in order of their starts.
    `token_segments` (n,): the segment of each token, counted from 1; 0 for global tokens.
    """
    states, seen = [], [NO_EVENT, NO_EVENT]
    for event, segment in zip(token_events.tolist(), token_segments.tolist(), strict=True):
        if event not in seen:
            insort(seen, event)
        first = seen[2] if len(seen) > 2 else NO_EVENT
        objects = [index for i in (event, seen[-1], seen[-2], first) for index in _kind(scene.events, i)]
        place = min(_MOST_PLACES - 1, int(_PLACES_PER_DOUBLING * math.log2(segment + 1)))
        states.append([*objects, _action(scene.events, event), len(seen) - 2, place])
    return torch.tensor(states)


def describe_motions(token_events: torch.Tensor, token_poses: torch.Tensor, token_frames: torch.Tensor) -> torch.Tensor:
    """What is known of the motion at each visual token, (n, 16); zeros where there is no object, or none before.

    `token_events` (n,), `token_poses` (n, 5) and `token_frames` (n,) as in `ComposedVideo`.
    """
    motions = torch.zeros(len(token_events), MOTION_NUMBERS)
    for event in set(token_events.tolist()) - {NO_EVENT}:
        (rows,) = torch.nonzero(token_events == event, as_tuple=True)
        poses, frames = token_poses[rows], token_frames[rows]
        motions[rows, :POSE_NUMBERS] = poses
        means = poses.cumsum(0) / torch.arange(1, len(rows) + 1)[:, None]
        motions[rows[1:], POSE_NUMBERS : 2 * POSE_NUMBERS] = _CHANGE_SCALE * (poses[1:] - means[:-1])
        before = find_latest(torch.ones(len(rows), len(rows), dtype=torch.bool).tril(-1), frames).float()
        seen = torch.cat([poses, frames[:, None]], dim=1)
        since = seen - before @ seen / before.sum(1, keepdim=True)
        has_before = before.any(1)
        since[:, :-1] *= _CHANGE_SCALE
        motions[rows[has_before], 2 * POSE_NUMBERS :] = since[has_before]
    motions[:, -1].clamp_(max=_MOST_FRAMES_APART)
    return motions


def describe_sightings(
    token_events: torch.Tensor, token_segments: torch.Tensor, token_sightings: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """When the object of each visual token has been seen: in which frames of the token's segment by tokens up to it,
    (n, K) float; and whether it was gone in between, in that segment and in the video, (n, 2) float: in some frame
    between the first that any token shows it in and the last that this one does, no token shows it. Zeros where there
    is no object.

    `token_events` (n,), `token_segments` (n,) and `token_sightings` (n, K) as in `ComposedVideo`.
    """
    num_frames = token_sightings.shape[1]
    seen, were_gone = torch.zeros(token_sightings.shape), torch.zeros(len(token_events), 2)
    for event in set(token_events.tolist()) - {NO_EVENT}:
        (rows,) = torch.nonzero(token_events == event, as_tuple=True)
        segments, sightings = token_segments[rows], token_sightings[rows]
        so_far = (segments[:, None] == segments).tril().float()
        seen[rows] = (so_far @ sightings.float() > 0).float()
        frames = num_frames * segments[:, None] + torch.arange(num_frames)
        last = frames.masked_fill(~sightings, -1).amax(1)
        ever = frames[sightings].unique()
        first = torch.stack([ever[torch.searchsorted(ever, num_frames * segments)], ever[:1].expand(len(rows))], dim=1)
        num_seen = torch.searchsorted(ever, last, right=True)[:, None] - torch.searchsorted(ever, first)
        were_gone[rows] = (num_seen < last[:, None] - first + 1).float()
    return seen, were_gone


def find_latest(earlier: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Row by row, those of the `earlier` tokens (..., T, T) of the last frame before: as many, from frames (..., T)."""
    apart = earlier & (frames[..., None, :] <= frames[..., None] - _LEAST_FRAMES_APART)
    last = frames[..., None, :].expand_as(apart).masked_fill(~apart, -math.inf).amax(-1, keepdim=True)
    return apart & (frames[..., None, :] > last - _LEAST_FRAMES_APART)


def find_events(scene: Scene, names: Sequence[str]) -> torch.Tensor:
    """The index in `scene.events` of each named object, (n,) int64, or -1."""
    objects = [event.object for event in scene.events]
    return torch.tensor([objects.index(name) if name in objects else NO_EVENT for name in names], dtype=torch.int64)


def describe_names(names: Sequence[str]) -> torch.Tensor:
    """Colour and shape of each name, (n, 2) int64."""
    pairs = [name.split() for name in names]
    kinds = [(_COLOURS.index(colour), _SHAPES.index(shape)) for colour, shape in pairs]
    return torch.tensor(kinds, dtype=torch.int64).view(-1, 2)


def describe_recalls(scene: Scene, names: Sequence[str]) -> torch.Tensor:
    """What is known of each named object, (n, 8) int64: an index into each of RECALL_SIZES."""
    objects = [event.object for event in scene.events]
    recalls = []
    for name in names:
        if name not in objects:
            recalls.append([0, *_kind((), NO_EVENT) * 2, _NO_ACTION, _NO_THIRD, MAX_EVENTS])
            continue
        i = objects.index(name)
        after, before = _kind(scene.events, i + 1), _kind(scene.events, i - 1)
        third = scene.third_of(scene.events[i])
        recalls.append([1, *after, *before, _action(scene.events, i), _NO_THIRD if third is None else third, i])
    return torch.tensor(recalls, dtype=torch.int64).view(-1, len(RECALL_SIZES))


def _kind(events: Sequence[Event], index: int) -> tuple[int, int]:
    """Colour and shape of an event as indices, those of none where there is no such event."""
    if not 0 <= index < len(events):
        return len(_COLOURS), len(_SHAPES)
    return _COLOURS.index(events[index].colour), _SHAPES.index(events[index].shape)


def _action(events: Sequence[Event], index: int) -> int:
    return ACTIONS.index(events[index].action) if index != NO_EVENT else _NO_ACTION


def list_names(scene: Scene, rng: random.Random) -> list[str]:
    """Names to look up in random order: those of all objects, and as many of absent ones or more, half of which share
    a colour or a shape with one that is there."""
    names = [event.object for event in scene.events]
    count = max(2 * len(names), _LEAST_NAMES)
    absent: set[str] = set()
    while len(names) + len(absent) < count:
        seen = rng.choice(scene.events)
        alike = [f"{seen.colour} {rng.choice(_SHAPES)}", f"{rng.choice(_COLOURS)} {seen.shape}"]
        other = rng.choice([*alike, *[f"{rng.choice(_COLOURS)} {rng.choice(_SHAPES)}"] * 2])
        if other not in names:
            absent.add(other)
    return rng.sample([*names, *sorted(absent)], count)


class NameFinder:
    """Finds the names of objects among a conversation's tokens; the tokenizer has one token a word."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._colours = dict(zip(tokenizer.convert_tokens_to_ids(list(_COLOURS)), _COLOURS, strict=True))
        self._shapes = dict(zip(tokenizer.convert_tokens_to_ids(list(_SHAPES)), _SHAPES, strict=True))

    def find(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
        """(T,) -> where names end, (T,) bool, and the names."""
        ids = input_ids.tolist()
        places = [t for t in range(1, len(ids)) if ids[t] in self._shapes and ids[t - 1] in self._colours]
        is_name = torch.zeros(len(ids), dtype=torch.bool)
        is_name[places] = True
        return is_name, [f"{self._colours[ids[t - 1]]} {self._shapes[ids[t]]}" for t in places]
