"""Video reading: any source as a stream of K-frame segments, every frame with its true presentation time.

Times count in seconds from the first presented frame, as a player's clock does. Only the segment being
filled is in memory, already fitted to the encoder's square.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice, repeat
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch

from longvlm.errors import LongVLMError
from longvlm.stages.video_access import display_name, kind_of_path, local_path, printable, source_scheme
from longvlm.stages.video_container import ContainerSource
from longvlm.stages.video_fitting import fit_picture
from longvlm.stages.video_pictures import IMAGE_SUFFIXES, ArraySource, ImageSource, PictureSource
from longvlm.types import MOST_FRAMES, Fit, Frames, Sampling, VideoInfo, fill_places

_Frame = TypeVar("_Frame")

VideoSource = str | Path | Sequence[str | Path] | np.ndarray


def sample_indices(total_frames: int, num_frames: int) -> list[int]:
    """Positions of `num_frames` frames spread evenly over a video of `total_frames`, by LongVLM's rule.

    With w = (N - 1) / T, frame i is (round(w·i) + round(w·(i+1))) // 2, rounding half to even. A video with
    fewer frames than wanted repeats them: place j takes frame ⌊j·N/T⌋. Raises LongVLMError for counts below
    1. Source: the sampling of the LongVLM paper's reference (arXiv 2404.03384).
    """
    if total_frames < 1 or num_frames < 1:
        raise LongVLMError(f"Can't sample {num_frames} of {total_frames} frames; both must be at least 1.")
    if total_frames < num_frames:
        return fill_places(total_frames, num_frames)
    width = (total_frames - 1) / num_frames
    return [(round(width * i) + round(width * (i + 1))) // 2 for i in range(num_frames)]


def parse_time(text: str | float) -> float:
    """Seconds from a number, or from `ss`, `mm:ss` or `hh:mm:ss` with an optional fraction of a second."""
    if not isinstance(text, str):
        return float(text)
    match = re.fullmatch(r"\s*(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)\s*", text)
    if not match or (match[2] and float(match[3]) >= 60) or (match[1] and int(match[2]) >= 60):
        raise LongVLMError(f"{text!r} is not a time; write seconds (83.5), mm:ss (1:23.5) or hh:mm:ss (0:01:23.5).")
    return int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + float(match[3])


def open_video(source: VideoSource, *, fps: float | None = None, allow_references: bool = False) -> VideoReader:
    """Open a file, an address (file, http, https, rtsp), a folder or list of images, or RGB frames in memory.

    `fps` is the frame rate of images and of frames in memory, a numpy array (T, H, W, 3) uint8; 1.0 where
    not given. Files and addresses carry their own times. A playlist, or any container that refers to other
    files, is refused unless `allow_references`. Use the reader in a `with` block. Raises LongVLMError for a
    source that is no video.
    """
    pictures_fps = 1.0 if fps is None else fps
    opened: ContainerSource | PictureSource
    if isinstance(source, np.ndarray):
        opened = ArraySource(source, pictures_fps)
    elif not isinstance(source, str | Path):
        if not isinstance(source, Sequence) or not all(isinstance(path, str | Path) for path in source):
            raise LongVLMError(
                f"A {type(source).__name__} is no video; give a path or an address, a list of images' paths, or RGB "
                "frames as a numpy array of shape (T, H, W, 3) and type uint8."
            )
        paths = [local_path(str(path)) for path in source]
        if not paths:
            raise LongVLMError("The list of images is empty; give at least one image.")
        others = f" and {len(paths) - 1} more" if paths[1:] else ""
        opened = ImageSource(printable(paths[0].name) + others, paths, pictures_fps)
    else:
        path = local_path(str(source))
        is_local = source_scheme(str(source)) == "file"
        if is_local and kind_of_path(path) == "folder":
            opened = ImageSource.from_folder(path, pictures_fps)
        elif is_local and path.suffix.lower() in IMAGE_SUFFIXES:
            opened = ImageSource(printable(path.name), [path], pictures_fps)
        else:
            if fps is not None:
                raise LongVLMError(
                    f"{display_name(str(source))} carries its own frame times, and a frame rate of {fps:g} can't be "
                    "set for it: that is for images and frames in memory. Leave the frame rate out; how many frames "
                    "are looked at is the sampling's matter."
                )
            opened = ContainerSource(str(source), allow_references=allow_references)
    return VideoReader(opened)


class VideoReader:
    """An opened video: what is known of it, and its sampled frames as segments. Made by `open_video`."""

    def __init__(self, source: ContainerSource | PictureSource) -> None:
        self._source = source
        self._is_closed = False
        self.info: VideoInfo = source.info

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._is_closed = True
        self._source.close()

    @property
    def lost_seconds(self) -> float:
        """Length of a damaged or missing tail that can't be decoded, 0.0 if sound; certain after reading."""
        return self._source.lost_seconds

    def planned_times(self, sampling: Sampling) -> list[float]:
        """Times in seconds of the frames that `segments` will read, without decoding them.

        Raises LongVLMError where `start` lies after the end, and for a live stream, whose frames can't be
        known.
        """
        positions = self._positions(sampling)
        times = self._source.times_seconds
        assert times is not None
        return times[positions].tolist()

    def segments(self, sampling: Sampling, *, frames_per_segment: int, image_size: int, fit: Fit) -> Iterator[Frames]:
        """Yield segments of K = `frames_per_segment` frames fitted to (3, R, R), R = `image_size`.

        A short last segment is filled up by repetition: place j of K takes frame ⌊j·n/K⌋ of its n. A
        damaged tail yields fewer frames (see `lost_seconds`). Raises LongVLMError where nothing can be
        sampled.
        """
        frames = self._fitted(sampling, image_size, fit)
        while batch := list(islice(frames, frames_per_segment)):
            filled = [batch[place] for place in fill_places(len(batch), frames_per_segment)]
            times = tuple(time for time, _ in filled)
            yield Frames(torch.stack([pixels for _, pixels in filled]), times, num_distinct=len(set(times)))

    def _fitted(self, sampling: Sampling, image_size: int, fit: Fit) -> Iterator[tuple[float, torch.Tensor]]:
        """(time, pixels (3, R, R)) of each sampled frame; a repeated frame is read and fitted once."""

        def prepare(picture: np.ndarray) -> torch.Tensor:
            return fit_picture(picture, image_size, fit, self._source.pixel_aspect)

        repetitions: Iterable[int]
        if isinstance(self._source, ContainerSource) and self._source.times_seconds is None and sampling.fps:
            repetitions, frames = repeat(1), self._source.read_live(_live_targets(self.info.name, sampling), prepare)
        else:
            positions = Counter(self._positions(sampling))
            repetitions, frames = positions.values(), self._source.read(list(positions), prepare)
        is_empty = True
        for number, frame in zip(repetitions, self._while_open(frames), strict=False):  # a damaged video yields fewer
            yield from repeat(frame, number)
            is_empty = False
        if is_empty:
            raise LongVLMError(
                f"No frame of {self.info.name} could be read from {sampling.start_seconds:g} s on; "
                "choose another start."
            )

    def _while_open(self, frames: Iterator[_Frame]) -> Iterator[_Frame]:
        while True:
            if self._is_closed:
                raise LongVLMError(f"The reader of {self.info.name} is closed; read segments within its `with` block.")
            try:
                frame = next(frames)
            except StopIteration:
                return
            yield frame

    def _positions(self, sampling: Sampling) -> list[int]:
        """Which of the presented frames are wanted, in ascending order; repeated ones appear repeatedly."""
        times = self._source.times_seconds
        if times is None:
            raise LongVLMError(
                f"{self.info.name} is a live stream of unknown length; sample it with --fps and either "
                "--max-frames or --end (fps=, max_frames=, end=)."
            )
        start = sampling.start_seconds
        first = int(np.searchsorted(times, start, side="left"))
        last = len(times) if sampling.end_seconds is None else int(np.searchsorted(times, sampling.end_seconds))
        duration = self.info.duration_seconds or 0.0
        if start >= duration and start > 0:
            raise LongVLMError(
                f"start ({start:g} s) is after the end of {self.info.name}, which lasts {duration:g} s; start earlier."
            )
        readable_end = duration - self._source.lost_seconds
        if start >= readable_end and start > 0:
            raise LongVLMError(
                f"start ({start:g} s) lies in the damaged end of {self.info.name}, which can be decoded up to "
                f"{readable_end:.1f} s; start earlier."
            )
        if sampling.fps is not None:
            positions = _positions_by_rate(times, sampling, readable_end)
        else:
            if first == last:  # no frame begins within the span: one from before it is shown throughout
                first -= 1
            positions = [first + index for index in sample_indices(last - first, sampling.num_frames or 1)]
        if sampling.mode == "keyframe":
            positions = _nearest_keyframes(times, positions, self._source.keyframe_positions, first, last)
        return positions if sampling.fps is None else sorted(set(positions))


def _positions_by_rate(times: np.ndarray, sampling: Sampling, readable_end_seconds: float) -> list[int]:
    """The frame shown at each time start + i/fps, each once; more than max_frames are thinned evenly."""
    assert sampling.fps is not None
    end = min(readable_end_seconds, sampling.end_seconds if sampling.end_seconds is not None else math.inf)
    num_targets = _count_moments(sampling, end)
    targets = sampling.start_seconds + np.arange(num_targets) / sampling.fps
    # A hair of tolerance, so that rounding doesn't show the frame before the one that begins at the target.
    positions = np.unique(np.searchsorted(times, targets + 1e-9, side="right") - 1)
    if sampling.max_frames is not None and len(positions) > sampling.max_frames:
        positions = positions[sample_indices(len(positions), sampling.max_frames)]
    return positions.tolist()


def _count_moments(sampling: Sampling, end_seconds: float) -> int:
    """How many times start + i/fps lie before the end. Raises LongVLMError where they fill the memory."""
    assert sampling.fps is not None
    moments = (end_seconds - sampling.start_seconds) * sampling.fps
    if moments > MOST_FRAMES:
        raise LongVLMError(
            f"{sampling.fps:g} frames a second from {sampling.start_seconds:g} s to {end_seconds:g} s are more than "
            f"{MOST_FRAMES:,}; look at fewer with num_frames, a lower fps, or an earlier end."
        )
    return max(1, math.ceil(moments - 1e-9))


def _nearest_keyframes(
    times: np.ndarray, positions: list[int], keyframes: np.ndarray, first: int, last: int
) -> list[int]:
    """The span's keyframe nearest to each wanted frame; the frames themselves where the span has none."""
    candidates = keyframes[(keyframes >= first) & (keyframes < last)]
    if not len(candidates):
        return positions
    wanted = times[positions]
    after = np.clip(np.searchsorted(times[candidates], wanted), 0, len(candidates) - 1)
    before = np.maximum(after - 1, 0)
    nearer_before = wanted - times[candidates[before]] <= times[candidates[after]] - wanted
    return candidates[np.where(nearer_before, before, after)].tolist()


def _live_targets(name: str, sampling: Sampling) -> Iterator[float]:
    """The times start + i/fps at which a live stream is looked at; thinned evenly where an end is given."""
    assert sampling.fps is not None
    if sampling.mode == "keyframe":
        raise LongVLMError(f"{name} is a live stream, whose keyframes can't be known ahead; sample it exactly.")
    fps, start = sampling.fps, sampling.start_seconds
    if sampling.end_seconds is not None:
        num_targets = _count_moments(sampling, sampling.end_seconds)
        wanted = min(num_targets, sampling.max_frames or num_targets)
        return (start + index / fps for index in sample_indices(num_targets, wanted))
    if sampling.max_frames is None:
        raise LongVLMError(f"{name} is a live stream and may never end; limit it with --max-frames or --end.")
    return (start + index / fps for index in islice(count(), sampling.max_frames))
