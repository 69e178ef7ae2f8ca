"""From an index to what a language model reads: global tokens, then local ones in time order."""

from __future__ import annotations

import math

import torch

from longvlm.types import Compression, VideoTokens
from longvlm.video_index import VideoIndex


def count_segments(num_frames: int, frames_per_segment: int) -> int:
    """S; the last one may be short of frames."""
    return math.ceil(num_frames / frames_per_segment)


def count_visual_tokens(num_segments: int, compression: Compression) -> int:
    """G + S·M, the visual tokens of a video: 5 + 10·30 = 305 in the paper's setting.

    A short last segment counts like any other: its frames are repeated to fill it.
    """
    return compression.global_layers + num_segments * compression.tokens_per_segment


def assemble(index: VideoIndex) -> VideoTokens:
    """The visual tokens of an index, before the projector, each with the span of time it speaks of.

    A global token speaks of all that the index covers (of a slice, the slice), a local one of its segment.
    """
    global_features = average_globals(index.segment_globals, index.frames_distinct)
    segment_spans = index.segment_spans_seconds
    whole_span = torch.stack([segment_spans[0, 0], segment_spans[-1, 1]])
    return VideoTokens(
        features=torch.cat([global_features, index.local_features.flatten(0, 1)]),
        time_spans_seconds=torch.cat(
            [
                whole_span.expand(len(global_features), 2),
                segment_spans.repeat_interleave(index.local_features.shape[1], dim=0),
            ]
        ),
        segment_spans_seconds=segment_spans,
        num_global_tokens=len(global_features),
    )


def average_globals(segment_globals: torch.Tensor, frames_distinct: torch.Tensor) -> torch.Tensor:
    """Means over segments' frames (S, L, D), `frames_distinct` (S,) each -> the mean over all frames, (L, D).

    What a segment repeats does not count, so a short last one weighs less; a frame that two segments share counts in
    both. The mean is taken in float32 at least.
    """
    weights = frames_distinct.to(segment_globals.device, torch.promote_types(segment_globals.dtype, torch.float32))
    mean = torch.einsum("s,sld->ld", weights / weights.sum(), segment_globals.to(weights.dtype))
    return mean.to(segment_globals.dtype)


def format_timestamp(seconds: float) -> str:
    """Seconds as a player's clock shows them, whole seconds begun: 10.9 -> "0:10", 3723 -> "1:02:03"."""
    # Rounding to milliseconds first keeps a time that is 10 s but for float error from reading 0:09.
    minutes, second = divmod(int(round(seconds, 3)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
