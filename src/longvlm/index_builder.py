"""IndexBuilder: a video's encoded and merged segments, one after another, to a VideoIndex."""

from __future__ import annotations

from typing import Any

import torch

from longvlm.errors import LongVLMError
from longvlm.types import FrameFeatures, MergedSegments, Sampling, VideoInfo
from longvlm.video_index import TENSORS, VideoIndex


class IndexBuilder:
    """Collects an index segment by segment, holding nothing but what the index keeps.

    `build` joins the segments and then holds them twice for a moment.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[torch.Tensor]] = {}

    def add(self, features: FrameFeatures, merged: MergedSegments) -> None:
        """Append one segment: its frames' features, and their patches merged (S = 1)."""
        times = features.times_seconds
        kept = {
            "local_features": merged.features,
            "sizes": merged.sizes,
            "assignment": merged.assignment,
            "segment_globals": features.mean_globals[None],
            "frame_times_seconds": torch.tensor([times], dtype=torch.float64),
            "frames_distinct": torch.tensor([features.num_distinct]),
        }
        for name, tensor in kept.items():
            dtype = TENSORS[name][1] or tensor.dtype
            self._parts.setdefault(name, []).append(tensor.to("cpu", dtype))

    def build(self, *, video: VideoInfo, sampling: Sampling, lost_seconds: float, **provenance: Any) -> VideoIndex:
        """The index of all segments; `provenance` is the rest of VideoIndex's fields.

        A segment lasts from its first frame to the next segment's, the first one from the start of what was
        looked at, the last one to its end: where `end` was set, or what can be decoded ends.
        Raises LongVLMError for features that are not finite.
        """
        tensors: dict[str, Any] = {name: torch.cat(parts) for name, parts in self._parts.items()}
        if not all(bool(tensors[name].isfinite().all()) for name in ("local_features", "segment_globals")):
            raise LongVLMError(
                f"The encoder makes numbers of {video.name} that are not finite; its weights or its image settings are "
                "damaged, or --dtype is too narrow for it: choose float32."
            )
        times = tensors["frame_times_seconds"]
        starts, last_time = times[:, 0].clone(), float(times[-1, -1])
        starts[0] = starts[0].clamp(max=sampling.start_seconds)
        if video.duration_seconds is None:  # live: one mean distance between frames after the last one
            distances = times.unique().diff()
            last_length = float(distances.mean()) if len(distances) else 1 / (video.average_fps or 1.0)
            end = last_time + last_length
        else:
            end = video.duration_seconds - lost_seconds
        if sampling.end_seconds is not None:
            end = min(end, sampling.end_seconds)
        ends = torch.cat([starts[1:], starts.new_tensor([max(end, last_time)])])
        return VideoIndex(
            **tensors,
            segment_spans_seconds=torch.stack([starts, ends], dim=1),
            video=video,
            sampling=sampling,
            lost_seconds=lost_seconds,
            **provenance,
        )
