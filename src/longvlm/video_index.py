"""VideoIndex: a video's tokens, times and provenance as one value, saved as one versioned safetensors file.

Features are kept as they are *before* the projector, so that one index serves every state of a projector.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from longvlm.errors import LongVLMError, one_line
from longvlm.types import (
    Compression,
    Sampling,
    Timings,
    VideoInfo,
    _PrintsShapes,
)
from longvlm.whole_files import replacing

FORMAT_VERSION = 1
UNKNOWN_FINGERPRINT = "unknown"  # of an encoder or a video that nobody named when reference features were imported
_GAP_SECONDS = 1e-6  # what rounding may leave between two segments
_FORMAT = "longvlm-video-index"
_ENCODE_AGAIN = "Encode the video again with this model (`longvlm encode`, or `longvlm extract` for many)"

# Name: number of axes, and the dtype it is kept in (None: the encoder's).
TENSORS: dict[str, tuple[int, torch.dtype | None]] = {
    "local_features": (3, None),
    "sizes": (2, torch.int32),
    "assignment": (2, torch.int16),
    "segment_globals": (3, None),
    "frame_times_seconds": (2, torch.float64),
    "frames_distinct": (1, torch.int32),
    "segment_spans_seconds": (2, torch.float64),
}


class OtherVersionError(LongVLMError):
    """An index that only another version of longvlm reads."""


@dataclass(frozen=True, repr=False, eq=False)
class VideoIndex(_PrintsShapes):
    """An encoded video.

    local_features (S, M, D): merged tokens, in the encoder's dtype; sizes (S, M): patches behind each;
    assignment (S, N): output token of every patch; segment_globals (S, L, D): each layer's [CLS], averaged
    over a segment's distinct frames; frame_times_seconds (S, K), segment_spans_seconds (S, 2): true times,
    counted from the first presented frame; frames_distinct (S,): frames of a segment that are no repetitions.

    `encoder_name` and `encoder_fingerprint` say what encoded it, `compression` and `sampling` how;
    `lost_seconds` is the length of a damaged tail that could not be decoded; `timings`, not saved, how long
    encoding took.
    """

    SUFFIX: ClassVar[str] = ".longvlm"

    local_features: torch.Tensor
    sizes: torch.Tensor
    assignment: torch.Tensor
    segment_globals: torch.Tensor
    frame_times_seconds: torch.Tensor
    frames_distinct: torch.Tensor
    segment_spans_seconds: torch.Tensor
    video: VideoInfo
    sampling: Sampling
    compression: Compression
    encoder_name: str
    encoder_fingerprint: str
    lost_seconds: float = 0.0
    timings: Timings = field(default_factory=Timings, compare=False)

    def __post_init__(self) -> None:
        for name, (axes, _) in TENSORS.items():
            tensor = getattr(self, name)
            if tensor.ndim != axes or len(tensor) != self.num_segments or self.num_segments == 0:
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)}: want {axes} axes, {self.num_segments or 'some'} segments first"
                )
        self._require_agreement()
        for name, (_, dtype) in TENSORS.items():
            if dtype is not None:
                object.__setattr__(self, name, getattr(self, name).to(dtype))

    def _require_agreement(self) -> None:
        """Raise ValueError unless K, L, M and N are the same in all tensors, and as the settings say."""
        settings, num_patches = self.compression, self.assignment.shape[1]
        frames, tokens = settings.frames_per_segment, settings.tokens_per_segment
        widths = {
            "local_features": tokens,
            "sizes": tokens,
            "segment_globals": settings.global_layers,
            "frame_times_seconds": frames,
            "segment_spans_seconds": 2,
        }
        for name, width in widths.items():
            shape = tuple(getattr(self, name).shape)
            if shape[1] != width:
                raise ValueError(f"{name} is {shape}: want (S, {width}, …) by its settings")
        if num_patches < tokens:
            raise ValueError(f"assignment is {tuple(self.assignment.shape)}: want (S, N), N ≥ {tokens}")
        ranges = {
            "sizes": (1, num_patches),
            "assignment": (0, min(tokens - 1, torch.iinfo(torch.int16).max)),
            "frames_distinct": (1, frames),
        }
        for name, (lowest, highest) in ranges.items():
            least, most = (int(value) for value in getattr(self, name).aminmax())
            if least < lowest or most > highest:
                raise ValueError(f"{name} reaches from {least} to {most}: want {lowest} to {highest}")
        if bool((self.sizes.sum(1) != num_patches).any()):
            raise ValueError(f"sizes don't add up to the {num_patches} patches in assignment")

    def __eq__(self, other: object) -> bool:
        """Equal values, bit by bit; how long the encoding took does not count."""
        if not isinstance(other, VideoIndex):
            return NotImplemented
        for part in dataclasses.fields(self):
            mine, theirs = getattr(self, part.name), getattr(other, part.name)
            if part.name in TENSORS:
                if mine.dtype != theirs.dtype or not torch.equal(mine, theirs):
                    return False
            elif part.compare and mine != theirs:
                return False
        return True

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what a language model reads of it: equal for a reloaded copy, different for a slice."""
        digest = hashlib.sha256(self.encoder_fingerprint.encode())
        digest.update(self.compression.to_json().encode())
        for name in ("local_features", "segment_globals", "frames_distinct", "segment_spans_seconds"):
            tensor = getattr(self, name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def num_segments(self) -> int:
        return len(self.local_features)

    @property
    def num_frames(self) -> int:
        """Distinct frames that were encoded."""
        return len(self.frame_times)

    @property
    def frame_times(self) -> list[float]:
        """Presentation time in seconds of every distinct frame, in order."""
        return self.frame_times_seconds.unique().tolist()

    def slice(self, start_seconds: float = 0.0, end_seconds: float | None = None) -> VideoIndex:
        """The segments that overlap [start, end); whole segments, since merging can't be undone.

        Raises LongVLMError where the end does not come after the start, or no segment overlaps.
        """
        spans = self.segment_spans_seconds
        end = float("inf") if end_seconds is None else end_seconds
        if end <= start_seconds:
            raise LongVLMError(f"end ({end:g} s) must be later than start ({start_seconds:g} s); swap or widen them.")
        # A segment without length (a video of few frames, repeated) is inside where its moment is.
        keep = ((spans[:, 1] > start_seconds) | (spans[:, 0] >= start_seconds)) & (spans[:, 0] < end)
        if not bool(keep.any()):
            raise LongVLMError(
                f"No part of {self.video.name} lies {'after' if end_seconds is None else 'between'} {start_seconds:g} s"
                f"{'' if end_seconds is None else f' and {end:g} s'}; "
                f"the index covers {float(spans[0, 0]):g} s to {float(spans[-1, 1]):g} s."
            )
        if bool(keep.all()):
            return self
        kept: dict[str, Any] = {name: getattr(self, name)[keep] for name in TENSORS}
        return dataclasses.replace(self, **kept, sampling=self._sampling_of(keep))

    def _sampling_of(self, keep: torch.Tensor) -> Sampling:
        """What the segments that a mask (S,) keeps were sampled as: a part must not pass for the whole."""
        spans = self.segment_spans_seconds[keep]
        start = self.sampling.start_seconds if keep[0] else float(spans[0, 0])
        end = self.sampling.end_seconds if keep[-1] else float(spans[-1, 1])
        by_number = self.sampling.num_frames is not None
        return dataclasses.replace(
            self.sampling,
            num_frames=int(self.frames_distinct[keep].sum()) if by_number else None,
            start_seconds=start,
            end_seconds=end if end is None or end > start else None,
        )

    @property
    def has_gaps(self) -> bool:
        """Whether something between its first and its last segment is left out."""
        return bool((self.segment_spans_seconds[1:, 0] - self.segment_spans_seconds[:-1, 1] > _GAP_SECONDS).any())

    def append(self, later: VideoIndex) -> VideoIndex:
        """This index followed by one of a later part of the same timeline (a growing recording, a stream).

        A recording that grows changes its content and so its fingerprint: what tells that both are of one
        video is its name alone. The joined index speaks of the video as it was when the later part was
        encoded, and its sampling reaches from this one's start to the later one's end.
        Raises LongVLMError where the other is of another name, was encoded or sampled differently, or does
        not start after this one's end.
        """
        later.require_same_encoding(self.encoder_name, self.encoder_fingerprint, self.compression)
        if later.video.name != self.video.name:
            raise LongVLMError(
                f"Can't append: the second index is of {later.video.name}, the first one of {self.video.name}. "
                "Parts of one video carry one name; ask about different videos one by one."
            )
        own_end = float(self.segment_spans_seconds[-1, 1])
        # The first frame shown in a part may have begun a moment before that part.
        later_start = max(float(later.segment_spans_seconds[0, 0]), later.sampling.start_seconds)
        if later_start < own_end - _GAP_SECONDS:
            raise LongVLMError(
                f"Can't append: the second index starts at {_to_the_microsecond(later_start)} s, before the first one "
                f"ends ({_to_the_microsecond(own_end)} s). Encode the later part from there on."
            )
        joined: dict[str, Any] = {name: torch.cat([getattr(self, name), getattr(later, name)]) for name in TENSORS}
        joined["segment_spans_seconds"][self.num_segments :].clamp_(min=later_start)
        return dataclasses.replace(
            self,
            **joined,
            video=later.video,
            sampling=_join_samplings(self.sampling, later.sampling),
            lost_seconds=later.lost_seconds,
        )

    def require_same_encoding(self, encoder_name: str, encoder_fingerprint: str, compression: Compression) -> None:
        """Raise LongVLMError, naming both sides and the remedy, unless the encoder and the settings are the same."""
        if encoder_fingerprint != self.encoder_fingerprint:
            remedy = f"{_ENCODE_AGAIN}, or use the model that encoded it"
            if self.encoder_fingerprint == UNKNOWN_FINGERPRINT:
                remedy = "Import the features again, naming their encoder with --vision-tower (or --model)"
            raise LongVLMError(
                f"The index of {self.video.name} was made by encoder {self.encoder_name} "
                f"({self.encoder_fingerprint[:12]}), but {encoder_name} ({encoder_fingerprint[:12]}) "
                f"is wanted here. {remedy}."
            )
        for setting in dataclasses.fields(Compression):
            ours, theirs = getattr(self.compression, setting.name), getattr(compression, setting.name)
            if ours != theirs:
                counts = self._row_counts(compression) if setting.name == "tokens_per_segment" else ""
                raise LongVLMError(
                    f"The index of {self.video.name} was made with {setting.name}={ours}, but "
                    f"{setting.name}={theirs} is wanted here{counts}. {_ENCODE_AGAIN}."
                )

    def _row_counts(self, wanted: Compression) -> str:
        held, expected = (self.num_segments * one.tokens_per_segment for one in (self.compression, wanted))
        return f": it has {held} rows of local features (visual tokens), where {expected} are expected"

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the old file, if any, stays whole until the new one is complete."""
        path = Path(path)
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in TENSORS}
        metadata = {
            "format": _FORMAT,
            "format_version": str(FORMAT_VERSION),
            "video": json.dumps(dataclasses.asdict(self.video)),
            "sampling": json.dumps(dataclasses.asdict(self.sampling)),
            "compression": self.compression.to_json(),
            "encoder_name": self.encoder_name,
            "encoder_fingerprint": self.encoder_fingerprint,
            "lost_seconds": repr(self.lost_seconds),
        }
        metadata["checksum"] = _checksum(tensors, metadata)
        if not path.parent.is_dir():
            raise LongVLMError(f"Can't write {path}: the folder {path.parent} does not exist; create it first.")
        try:
            with replacing(path) as whole:
                save_file(tensors, whole, metadata)
        except (OSError, SafetensorError) as error:
            reason = one_line(error)
            raise LongVLMError(
                f"Can't write {path} ({reason}); choose a place with room that you may write to."
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> VideoIndex:
        """Read a file that `save` wrote. Raises LongVLMError on anything else, naming the file."""
        path = Path(path)
        try:
            if not path.is_file():
                raise LongVLMError(f"No such index file: {path}. Make one with `longvlm encode VIDEO -o {path}`.")
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                _require_readable_format(path, metadata)
                tensors = {name: file.get_tensor(name) for name in TENSORS}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise _unreadable(path, error) from error
        try:
            index = cls(
                **tensors,
                video=VideoInfo(**json.loads(metadata["video"])),
                sampling=Sampling(**json.loads(metadata["sampling"])),
                compression=Compression(**json.loads(metadata["compression"])),
                encoder_name=metadata["encoder_name"],
                encoder_fingerprint=metadata["encoder_fingerprint"],
                lost_seconds=float(metadata["lost_seconds"]),
            )
            if metadata["checksum"] != _checksum(tensors, metadata):
                raise ValueError("its content is damaged: the checksum differs")
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError, RuntimeError, LongVLMError) as error:
            raise _unreadable(path, error) from error
        return index


def _unreadable(path: Path, error: Exception) -> LongVLMError:
    reason = one_line(error).rstrip(".")
    return LongVLMError(f"{path} is not a readable video index ({reason}); make it again with `longvlm encode`.")


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """A hash of everything in the file: the tensors' bytes, and the metadata but for this hash itself."""
    digest = hashlib.sha256(json.dumps({**metadata, "checksum": ""}, sort_keys=True).encode())
    for name in TENSORS:
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to_the_microsecond(seconds: float) -> str:
    """As exactly as parts must fit together."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def _join_samplings(earlier: Sampling, later: Sampling) -> Sampling:
    """The sampling of two parts as one. Raises LongVLMError where rate or mode differ.

    Parts that were sampled by their number of frames state no rate: their numbers add up.
    """
    for setting in ("fps", "mode"):
        ours, theirs = getattr(earlier, setting), getattr(later, setting)
        if ours != theirs:
            raise LongVLMError(
                f"Can't append: the first index was sampled with {setting}={ours}, the second one with "
                f"{setting}={theirs}. Encode the later part like the first."
            )
    limits = earlier.max_frames, later.max_frames
    return dataclasses.replace(
        earlier,
        num_frames=None if earlier.num_frames is None else earlier.num_frames + (later.num_frames or 0),
        max_frames=None if limits[0] is None or limits[1] is None else limits[0] + limits[1],
        end_seconds=later.end_seconds,
    )


def _require_readable_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != _FORMAT:
        raise LongVLMError(f"{path} holds tensors, but no video index; make one with `longvlm encode`.")
    version = int(metadata["format_version"])
    if not 1 <= version <= FORMAT_VERSION:
        raise OtherVersionError(
            f"{path} has index format {version}, and this version of longvlm reads up to {FORMAT_VERSION}. "
            "Upgrade longvlm, or encode the video again."
        )


def require_known_times(video: VideoInfo) -> None:
    """Raise LongVLMError, before times are written for a language model, where nobody knows them."""
    if video.fingerprint == UNKNOWN_FINGERPRINT:
        raise LongVLMError(
            f"The features of {video.name} were imported without its video, so that its times are not known, but "
            "timestamps are on; import them again with --videos, or leave timestamps off."
        )
