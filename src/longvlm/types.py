"""The values that cross between stages: frozen, checked when built, printed as shapes instead of data.

The legend of axes, used by every shape comment in the package:

    V videos · S segments · K frames per segment · P patches per frame · N = K·P patches per segment
    M tokens per segment · G global tokens (= L layers whose [CLS] is kept) · D feature width
    H, W, R height, width, and side of the encoder's square, in pixels
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from longvlm.errors import LongVLMError

Fit = Literal["squash", "crop", "pad", "squash-nearest"]
SamplingMode = Literal["exact", "keyframe"]
MergeOrder = Literal["merge", "temporal"]

MOST_FRAMES, MOST_FPS = 10_000_000, 1000  # beyond them the plan alone fills the memory


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _whole_numbers(values: Any, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise LongVLMError(f"{name} is {values!r}; it must be a list of whole numbers.") from error


class _PrintsShapes:
    """Shows tensors as `shape dtype`, so that a value can be logged without flooding the log."""

    def __repr__(self) -> str:
        parts = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                value = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            elif isinstance(value, tuple) and len(value) > 6:
                value = f"<{len(value)} values>"
            parts.append(f"{field.name}={value}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are looked at.

    Either `num_frames` frames spread evenly (the paper's rule, 100) or `fps` frames a second, at most `max_frames`.
    `start_seconds` and `end_seconds` count from the first presented frame, as a player's clock does.
    """

    num_frames: int | None = 100
    fps: float | None = None
    max_frames: int | None = None
    start_seconds: float = 0.0
    end_seconds: float | None = None
    mode: SamplingMode = "exact"

    def __post_init__(self) -> None:
        if (self.num_frames is None) == (self.fps is None):
            raise LongVLMError("Give either num_frames or fps, not both and not neither.")
        if self.num_frames is not None and not 1 <= self.num_frames <= MOST_FRAMES:
            raise LongVLMError(f"num_frames is {self.num_frames}; it must be at least 1, and {MOST_FRAMES:,} at most.")
        if self.fps is not None and not 0 < self.fps <= MOST_FPS:
            raise LongVLMError(
                f"fps is {self.fps}; it must be a positive number of frames per second, {MOST_FPS} at most."
            )
        if self.max_frames is not None and self.fps is None:
            raise LongVLMError("max_frames limits sampling by fps; with num_frames, lower num_frames instead.")
        if self.max_frames is not None and self.max_frames < 1:
            raise LongVLMError(f"max_frames is {self.max_frames}; it must be at least 1.")
        if not 0 <= self.start_seconds < float("inf"):
            raise LongVLMError(f"start is {self.start_seconds} s; it must be 0 or later.")
        if self.end_seconds is not None and not self.end_seconds > self.start_seconds:
            raise LongVLMError(
                f"end ({self.end_seconds} s) must be later than start ({self.start_seconds} s); swap or widen them."
            )
        if self.mode not in ("exact", "keyframe"):
            raise LongVLMError(f"Unknown sampling mode {self.mode!r}; choose 'exact' or 'keyframe'.")


_MOST_TOKENS_PER_SEGMENT = 1 << 15  # patches' assignment to them is stored in 16 bits


@dataclass(frozen=True)
class Compression:
    """How segments become tokens (the paper: 10 frames to 30 tokens, 5 global tokens before them)."""

    frames_per_segment: int = 10
    tokens_per_segment: int = 30
    global_layers: int = 5
    merge_schedule: tuple[int, ...] | None = None
    merge_heads: int = 16
    merge_order: MergeOrder = "merge"
    frame_code: float = 0.0  # added to a segment's tokens, see `frame_codes`; only for models trained with it
    fit: Fit = "squash"

    def __post_init__(self) -> None:
        if self.merge_schedule is not None:
            object.__setattr__(self, "merge_schedule", _whole_numbers(self.merge_schedule, "merge_schedule"))
        for name, least in (
            ("frames_per_segment", 1),
            ("tokens_per_segment", 1),
            ("merge_heads", 1),
            ("global_layers", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise LongVLMError(f"{name} is {value!r}; it must be a whole number, at least {least}.")
        if self.tokens_per_segment > _MOST_TOKENS_PER_SEGMENT:
            raise LongVLMError(
                f"tokens_per_segment is {self.tokens_per_segment}; indexes number at most {_MOST_TOKENS_PER_SEGMENT}."
            )
        if not isinstance(self.frame_code, int | float):
            raise LongVLMError(f"frame_code is {self.frame_code!r}; it must be a number.")
        if self.merge_order not in ("merge", "temporal"):
            raise LongVLMError(f"Unknown merge_order {self.merge_order!r}; choose 'merge' or 'temporal'.")
        if self.fit not in ("squash", "crop", "pad", "squash-nearest"):
            raise LongVLMError(f"Unknown fit {self.fit!r}; choose squash, crop, pad or squash-nearest.")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Compression:
        """Build from a mapping; an unknown key is an error, since a misspelt setting must not pass unnoticed."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise LongVLMError(f"Unknown compression setting {unknown[0]!r}; known ones: {', '.join(sorted(known))}.")
        return cls(**settings)


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before a frame is decoded.

    `duration_seconds` runs from the first presented frame to the end, as a player shows it, a damaged tail
    included; it is None for a live stream. `num_frames` counts the frames that the file still holds, and is None
    where that can't be known; `width` and `height` are those a viewer sees, with square pixels and turned as the
    first frame is. `fingerprint` is a hash of the content, not of the name.
    """

    name: str
    width: int
    height: int
    duration_seconds: float | None
    num_frames: int | None
    average_fps: float | None
    fingerprint: str


@dataclass(frozen=True, repr=False)
class Frames(_PrintsShapes):
    """One segment's frames, fitted to the encoder's square.

    pixels (K, 3, R, R) uint8 RGB; times_seconds (K,) true presentation times, counted from the first presented frame.
    A short last segment is filled up by repeating frames (see `fill_places`), so K is always the same; `num_distinct`
    says how many of the K frames are different ones.
    """

    pixels: torch.Tensor
    times_seconds: tuple[float, ...]
    num_distinct: int

    def __post_init__(self) -> None:
        _require(
            self.pixels.ndim == 4 and self.pixels.shape[1] == 3, f"pixels {tuple(self.pixels.shape)}: want (K, 3, R, R)"
        )
        _require(self.pixels.dtype == torch.uint8, f"pixels are {self.pixels.dtype}: want uint8")
        _require(len(self.times_seconds) == len(self.pixels), "one time per frame is needed")
        _require(1 <= self.num_distinct <= len(self.pixels), f"num_distinct {self.num_distinct} of {len(self.pixels)}")


def fill_places(num_frames: int, size: int) -> list[int]:
    """Which of n frames stands at each of the K = `size` places of a segment: at place j frame ⌊j·n/K⌋."""
    return [place * num_frames // size for place in range(size)]


@dataclass(frozen=True, repr=False)
class FrameFeatures(_PrintsShapes):
    """One segment's features: patches (K, P, D) and the [CLS] of the last L layers, layer_globals (K, L, D')."""

    patches: torch.Tensor
    layer_globals: torch.Tensor
    times_seconds: tuple[float, ...]
    num_distinct: int

    def __post_init__(self) -> None:
        _require(self.patches.ndim == 3, f"patches {tuple(self.patches.shape)}: want (K, P, D)")
        _require(self.layer_globals.ndim == 3, f"layer_globals {tuple(self.layer_globals.shape)}: want (K, L, D)")
        _require(len(self.patches) == len(self.layer_globals) == len(self.times_seconds), "K differs between the parts")

    @property
    def mean_globals(self) -> torch.Tensor:
        """The mean of `layer_globals` over the frames that are no repetitions, (L, D')."""
        times = self.times_seconds
        is_first = torch.tensor([time not in times[:place] for place, time in enumerate(times)])
        return self.layer_globals[is_first].mean(0)


@dataclass(frozen=True, repr=False)
class MergedSegments(_PrintsShapes):
    """Merged tokens of S segments.

    features (S, M, D); sizes (S, M) int64, how many patches each token stands for; assignment (S, N) int64, the
    output token of every input patch. Counting the assignment gives the sizes.
    """

    features: torch.Tensor
    sizes: torch.Tensor
    assignment: torch.Tensor

    def __post_init__(self) -> None:
        _require(self.features.ndim == 3, f"features {tuple(self.features.shape)}: want (S, M, D)")
        _require(self.sizes.shape == self.features.shape[:2], f"sizes {tuple(self.sizes.shape)}: want (S, M)")
        _require(self.assignment.ndim == 2 and len(self.assignment) == len(self.features), "assignment: want (S, N)")

    def __getitem__(self, segments: slice) -> MergedSegments:
        """Those of some of the segments."""
        return MergedSegments(self.features[segments], self.sizes[segments], self.assignment[segments])


@dataclass(frozen=True, repr=False)
class VideoTokens(_PrintsShapes):
    """What a language model reads of a video, before the projector: global tokens, then local ones in time order.

    features (G + S·M, D); time_spans_seconds (G + S·M, 2) float64, the span each token speaks of (the whole video
    for a global token, its segment for a local one); segment_spans_seconds (S, 2) float64.
    """

    features: torch.Tensor
    time_spans_seconds: torch.Tensor
    segment_spans_seconds: torch.Tensor
    num_global_tokens: int

    def __post_init__(self) -> None:
        _require(self.features.ndim == 2, f"features {tuple(self.features.shape)}: want (G + S·M, D)")
        _require(self.time_spans_seconds.shape == (len(self.features), 2), "one time span per token is needed")

    @property
    def num_tokens(self) -> int:
        return len(self.features)

    @property
    def num_segments(self) -> int:
        return len(self.segment_spans_seconds)


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds by stage; a stage that did not run took 0."""

    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    merge_seconds: float = 0.0
    prefill_seconds: float = 0.0
    generate_seconds: float = 0.0
    total_seconds: float = 0.0


@dataclass(frozen=True)
class Answer:
    """A model's answer. `prompt_tokens` counts the whole prompt, of which `cached_tokens` were reused, not computed."""

    question: str
    text: str
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    finish_reason: Literal["stop", "length"]
    timings: Timings

    def __str__(self) -> str:
        return self.text
