"""VideoIndex: a video's tokens, times and provenance as one value, saved as one versioned safetensors file.

Features are kept as they are *before* the projector, so that one index serves every training state of a projector.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from longvlm.errors import LongVLMError
from longvlm.types import Compression, Sampling, Timings, VideoInfo, _PrintsShapes

FORMAT_VERSION = 1

_TENSORS = {
    "local_features": None,
    "sizes": torch.int32,
    "assignment": torch.int16,
    "segment_globals": None,
    "frame_times_seconds": torch.float64,
    "frames_distinct": torch.int32,
    "segment_spans_seconds": torch.float64,
}


@dataclass(frozen=True, repr=False)
class VideoIndex(_PrintsShapes):
    """An encoded video.

    local_features (S, M, D): merged tokens; sizes (S, M): patches behind each; assignment (S, N): output token of every
    patch; segment_globals (S, L, D): each layer's [CLS], averaged over a segment's distinct frames;
    frame_times_seconds (S, K) and segment_spans_seconds (S, 2): true times, counted from the first presented frame;
    frames_distinct (S,): frames of a segment that are not repetitions.

    `encoder_name` and `encoder_fingerprint` say what encoded it, `compression` and `sampling` how; `lost_seconds` is
    the length of a damaged tail that could not be decoded.
    """

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
        for name, dtype in _TENSORS.items():
            tensor = getattr(self, name)
            if len(tensor) != self.num_segments:
                raise ValueError(f"{name} has {len(tensor)} segments, local_features {self.num_segments}")
            if dtype is not None and tensor.dtype != dtype:
                object.__setattr__(self, name, tensor.to(dtype))

    @property
    def num_segments(self) -> int:
        return len(self.local_features)

    @property
    def num_frames(self) -> int:
        """Distinct frames that were encoded."""
        return int(self.frames_distinct.sum())

    @property
    def frame_times(self) -> list[float]:
        """Presentation time in seconds of every distinct frame, in order."""
        return sorted({t for row in self.frame_times_seconds.tolist() for t in row})

    def slice(self, start_seconds: float = 0.0, end_seconds: float | None = None) -> VideoIndex:
        """The segments that overlap [start, end); whole segments, since merging can't be undone.

        Raises LongVLMError where no segment overlaps.
        """
        spans = self.segment_spans_seconds
        end = float("inf") if end_seconds is None else end_seconds
        keep = (spans[:, 1] > start_seconds) & (spans[:, 0] < end)
        if not bool(keep.any()):
            raise LongVLMError(
                f"No part of {self.video.name} lies between {start_seconds:g} s and {end:g} s; "
                f"the index covers {float(spans[0, 0]):g} s to {float(spans[-1, 1]):g} s."
            )
        return dataclasses.replace(self, **{name: getattr(self, name)[keep] for name in _TENSORS})

    def append(self, later: VideoIndex) -> VideoIndex:
        """This index followed by one of a later part of the same timeline (a growing recording, a live stream)."""
        self.require_same_encoding(later.encoder_name, later.encoder_fingerprint, later.compression)
        own_end, later_start = float(self.segment_spans_seconds[-1, 1]), float(later.segment_spans_seconds[0, 0])
        if later_start < own_end - 1e-6:
            raise LongVLMError(
                f"Can't append: the second index starts at {later_start:g} s, before the first one ends ({own_end:g} s)."
            )
        joined = {name: torch.cat([getattr(self, name), getattr(later, name)]) for name in _TENSORS}
        return dataclasses.replace(
            self, **joined, video=later.video, lost_seconds=self.lost_seconds + later.lost_seconds
        )

    def require_same_encoding(self, encoder_name: str, encoder_fingerprint: str, compression: Compression) -> None:
        """Raise LongVLMError, naming both sides, unless the encoder and the compression settings are the same."""
        if encoder_fingerprint != self.encoder_fingerprint:
            raise LongVLMError(
                f"The index of {self.video.name} was made by encoder {self.encoder_name} "
                f"({self.encoder_fingerprint[:12]}), but the model reads {encoder_name} ({encoder_fingerprint[:12]}). "
                "Encode the video again with this model, or ask with the model that encoded it."
            )
        for setting in dataclasses.fields(Compression):
            ours, theirs = getattr(self.compression, setting.name), getattr(compression, setting.name)
            if ours != theirs:
                raise LongVLMError(
                    f"The index of {self.video.name} has {setting.name}={ours}, the model {setting.name}={theirs}. "
                    "Encode the video again with this model's settings."
                )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the old file, if any, stays whole until the new one is complete."""
        path = Path(path)
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _TENSORS}
        metadata = {
            "format": "longvlm-video-index",
            "format_version": str(FORMAT_VERSION),
            "video": json.dumps(dataclasses.asdict(self.video)),
            "sampling": json.dumps(dataclasses.asdict(self.sampling)),
            "compression": self.compression.to_json(),
            "encoder_name": self.encoder_name,
            "encoder_fingerprint": self.encoder_fingerprint,
            "lost_seconds": repr(self.lost_seconds),
        }
        if not path.parent.is_dir():
            raise LongVLMError(f"Can't write {path}: the folder {path.parent} does not exist; create it first.")
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        os.close(handle)
        try:
            save_file(tensors, partial, metadata)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise

    @classmethod
    def load(cls, path: str | Path) -> VideoIndex:
        """Read a file that `save` wrote. Raises LongVLMError on anything else, naming the file."""
        path = Path(path)
        if not path.is_file():
            raise LongVLMError(f"No such index file: {path}. Make one with `longvlm encode VIDEO -o {path}`.")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != "longvlm-video-index":
                    raise LongVLMError(f"{path} is a safetensors file, but not a video index; make one with `longvlm encode`.")
                version = int(metadata["format_version"])
                if version > FORMAT_VERSION:
                    raise LongVLMError(
                        f"{path} has index format {version}; this version reads up to {FORMAT_VERSION}. Upgrade longvlm."
                    )
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
            return cls(
                **tensors,
                video=VideoInfo(**json.loads(metadata["video"])),
                sampling=Sampling(**json.loads(metadata["sampling"])),
                compression=Compression.from_dict(json.loads(metadata["compression"])),
                encoder_name=metadata["encoder_name"],
                encoder_fingerprint=metadata["encoder_fingerprint"],
                lost_seconds=float(metadata["lost_seconds"]),
            )
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise LongVLMError(f"{path} is not a readable video index ({reason}); encode the video again.") from error
