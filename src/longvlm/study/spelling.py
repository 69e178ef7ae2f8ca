"""Videos spelled out, for the language model that all rows of the study start from: nobody's visual tokens."""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot, pad

from longvlm.training.drawn_blocks import BlockPlan
from longvlm.training.encoder_heads import POSE_NUMBERS, describe_pose
from longvlm.training.ground_truth import OBJECT_SIZES, describe_names
from longvlm.training.segment_bank import SegmentBank
from longvlm.world.render import NO_EVENT
from longvlm.world.scene import Scene

_NOTHING = [size - 1 for size in OBJECT_SIZES]


def spell_bank(plans: list[BlockPlan], width: int, *, segment_seconds: int) -> SegmentBank:
    """The blocks as the world knows them, nothing drawn or encoded: a token a second tells one object that is there,
    several in turn: its colour and its shape, one-hot, with "none", and its pose.

    Tokens have `width` numbers, zero beyond the 25 that these are.
    """
    spelled = (_spell(plan, segment_seconds) for plan in plans)
    tokens, events, poses = (torch.cat(column) for column in zip(*spelled, strict=True))
    num_segments = len(tokens) // segment_seconds
    return SegmentBank(
        plans,
        pad(tokens, (0, width - tokens.shape[1])).view(num_segments, -1, width),
        tokens.new_zeros(num_segments, 0, width),
        events.view(num_segments, -1),
        poses.view(num_segments, -1, POSE_NUMBERS),
        torch.arange(float(segment_seconds)).expand(num_segments, -1),
        segment_seconds=float(segment_seconds),
        frames_per_segment=segment_seconds,
    )


def _spell(plan: BlockPlan, segment_seconds: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a block of F seconds: its tokens (F, 25), the event (F,) and the pose (F, 5) of each."""
    scene = plan.scene(segment_seconds)
    last = int(scene.duration_seconds) - 1  # stays, where a segment is not full
    seconds = [min(second, last) for second in range(plan.num_segments * segment_seconds)]
    told = [_choose(scene, second) for second in seconds]
    posed = [
        describe_pose(scene.events[event], second) if event != NO_EVENT else (0.0,) * POSE_NUMBERS
        for event, second in zip(told, seconds, strict=True)
    ]
    kinds = torch.cat([describe_names([event.object for event in scene.events]), torch.tensor([_NOTHING])])
    spelled = [one_hot(kind, size) for kind, size in zip(kinds[told].T, OBJECT_SIZES, strict=True)]
    poses = torch.tensor(posed)
    return torch.cat([*spelled, poses], dim=1), torch.tensor(told), poses


def _choose(scene: Scene, second: int) -> int:
    """One of the events that are on, another one every second."""
    on = [number for number, event in enumerate(scene.events) if event.is_on(second)]
    return on[second % len(on)] if on else NO_EVENT
