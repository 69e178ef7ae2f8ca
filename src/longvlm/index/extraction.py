"""Extraction: many videos in, one feature file a video out; what is done is skipped, what fails is listed.

Videos are decoded ahead of the encoder, which takes a batch of segments at a time, of several videos where their ends
and the decoders' pace make it so. By default it is a single segment on a processor, where more are slower: then
features are those that `LongVLM.encode` gives, to the last bit.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from longvlm.errors import LongVLMError
from longvlm.index.decoding_ahead import DecodingVideo, VideoFailed, decode_ahead
from longvlm.index.extraction_report import (
    DAMAGED_FILE,
    FAILURES_FILE,
    Failure,
    Progress,
    Report,
    as_written,
    read_damaged,
    read_failures,
    write_damaged,
    write_failures,
)
from longvlm.index.extractor import Building, Extractor
from longvlm.index.feature_pickles import read_pickled_array
from longvlm.index.reference_features import write_reference_features
from longvlm.index.video_folders import ListedVideo, video_id
from longvlm.stages.tokens import count_segments
from longvlm.stages.video import VideoReader, open_video
from longvlm.stages.video_access import display_source
from longvlm.types import Frames
from longvlm.video_index import OtherVersionError, VideoIndex
from longvlm.whole_files import make_folder

DEFAULT_DECODERS = 2
_REMEDY = "Write to another folder, or remove that file."
_LONGEST_FILE_NAME = 255  # bytes, on nearly all systems
_TOO_LONG = "its name is too long for one of a file of features; rename it."


@dataclass(frozen=True)
class FeatureFolders:
    """Where features go: `.longvlm` files, and the reference's two kinds of pickles; at least one kind.

    Raises LongVLMError where none is given, only one of the two for pickles, or one for both of them.
    """

    indexes: Path | None = None
    local_pickles: Path | None = None
    memory_pickles: Path | None = None

    def __post_init__(self) -> None:
        if (self.local_pickles is None) != (self.memory_pickles is None):
            raise LongVLMError("Reference features need two folders, for local and for memory features; give both.")
        if self.local_pickles and self.memory_pickles and self.local_pickles.resolve() == self.memory_pickles.resolve():
            raise LongVLMError(
                f"Local and memory features can't both go to {self.local_pickles}: their files have the same names."
            )
        if not self.folders:
            raise LongVLMError("There is nowhere to write to; give a folder for indexes, or two for pickles.")

    @property
    def folders(self) -> list[Path]:
        return [path for path in (self.indexes, self.local_pickles, self.memory_pickles) if path is not None]

    def index_file(self, video_id: str) -> Path | None:
        return None if self.indexes is None else self.indexes / f"{video_id}{VideoIndex.SUFFIX}"

    def pickle_files(self, video_id: str) -> tuple[Path, Path] | None:
        if self.local_pickles is None or self.memory_pickles is None:
            return None
        return self.local_pickles / f"{video_id}.pkl", self.memory_pickles / f"{video_id}.pkl"

    def hold(self, video_id: str, extractor: Extractor, *, lost_its_end: bool = False) -> bool:
        """Whether all files of a video are there; a damaged file counts as missing and is made again.

        A video that `lost_its_end` has fewer segments.
        Raises LongVLMError where its index was made with other settings than the `extractor`'s, or by a newer
        version, and where pickles have another shape than they would get; they say nothing of other settings.
        """
        index_file, pickles = self.index_file(video_id), self.pickle_files(video_id)
        are_there = []  # each is looked at, since what is made otherwise must not be written over
        if pickles is not None:
            local_path, memory_path = pickles
            require_local_rows = partial(_require_local_rows, at_most=lost_its_end)
            are_there.append(_holds_features(local_path, extractor, require_local_rows))
            are_there.append(_holds_features(memory_path, extractor, _require_memory_rows))
        if index_file is not None:
            are_there.append(_holds_index(index_file, extractor))
        return all(are_there)

    def save(self, video_id: str, index: VideoIndex, extractor: Extractor) -> None:
        """Write a video's files, the index last. Raises LongVLMError where there is no room."""
        index_file, pickles = self.index_file(video_id), self.pickle_files(video_id)
        if pickles is not None:
            write_reference_features(index, *pickles)
        if index_file is not None:
            narrow_globals(index, extractor.compression.global_layers).save(index_file)


def _holds_index(path: Path, extractor: Extractor) -> bool:
    if not path.is_file():
        return False
    try:
        index = VideoIndex.load(path)
    except OtherVersionError:
        raise
    except LongVLMError:
        return False
    _require_same_extraction(path, index, extractor)
    return True


def _holds_features(path: Path, extractor: Extractor, require_rows: Callable[[Path, int, Extractor], None]) -> bool:
    if not path.is_file():
        return False
    try:
        features = read_pickled_array(path)
    except LongVLMError:
        return False
    width = extractor.encoder.feature_width
    if features.ndim != 2 or features.shape[1] != width:
        raise LongVLMError(
            f"{path} is there already, but its array is {features.shape}, and {extractor.encoder.name} gives width "
            f"{width}. {_REMEDY}"
        )
    require_rows(path, len(features), extractor)
    return True


def _require_local_rows(path: Path, num_rows: int, extractor: Extractor, *, at_most: bool) -> None:
    """As many as the frames make, or `at_most` so many; how many those are, only `num_frames` says beforehand."""
    num_frames, compression = extractor.sampling.num_frames, extractor.compression
    each = compression.tokens_per_segment
    expected = None if num_frames is None else count_segments(num_frames, compression.frames_per_segment) * each
    if expected is not None and num_rows != expected and not (at_most and num_rows < expected):
        raise LongVLMError(
            f"{path} is there already, but has {num_rows} rows, where {num_frames} frames in segments of "
            f"{compression.frames_per_segment} give {expected}. {_REMEDY}"
        )
    if num_rows % each:
        raise LongVLMError(
            f"{path} is there already, but has {num_rows} rows, which is no multiple of the {each} that a segment "
            f"gives. {_REMEDY}"
        )


def _require_memory_rows(path: Path, num_rows: int, extractor: Extractor) -> None:
    expected = extractor.encoder.global_layers
    if num_rows != expected:
        raise LongVLMError(
            f"{path} is there already, but has {num_rows} rows of [CLS] features, and {extractor.encoder.name} gives "
            f"{expected}. {_REMEDY}"
        )


def _require_same_extraction(path: Path, index: VideoIndex, extractor: Extractor) -> None:
    if index.sampling != extractor.sampling or index.has_gaps:
        raise LongVLMError(
            f"{path} is there already, but of other frames ({index.sampling}, and {extractor.sampling} is wanted). "
            f"{_REMEDY}"
        )
    try:
        index.require_same_encoding(extractor.encoder.name, extractor.encoder.fingerprint, extractor.compression)
    except LongVLMError as misfit:
        raise LongVLMError(f"{path} is there already. {misfit} {_REMEDY}") from misfit


def narrow_globals(index: VideoIndex, global_layers: int) -> VideoIndex:
    """The same index with the [CLS] of only the last `global_layers` layers."""
    first = index.compression.global_layers - global_layers
    return dataclasses.replace(
        index,
        segment_globals=index.segment_globals[:, first:].contiguous(),
        compression=dataclasses.replace(index.compression, global_layers=global_layers),
    )


def default_batch_segments(device: torch.device) -> int:
    """How many segments are encoded at once: on a processor one, whose frames alone are more than its caches hold."""
    return 1 if device.type == "cpu" else 8


def extract(
    videos: Sequence[ListedVideo],
    extractor: Extractor,
    folders: FeatureFolders,
    *,
    known_failures: Sequence[Failure] = (),
    num_decoders: int = DEFAULT_DECODERS,
    batch_segments: int | None = None,
    frame_rate: float | None = None,
    allow_references: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Write the features of each video, unless they are there already; a video that fails stops no other.

    The videos' ids must be distinct (`find_videos`). Failures, with those `known` before, are also written to
    `failures.json` in the first of the folders, a JSON list of `{"video", "reason"}`, beside those of earlier
    extractions of videos with other ids; there is no such file where nothing failed.
    `frame_rate` and `allow_references` are those of `open_video`. `batch_segments`: how many segments are encoded at
    once, `default_batch_segments` if None; with more than one, features are those of `LongVLM.encode` up to rounding,
    which may also decide between merges that are nearly alike.
    Videos with a damaged end, and how many seconds of it were lost, are kept in `damaged.json` beside it, by id.
    Raises LongVLMError where a folder can't be written to, what is written stays whole, and where features are
    there that were made in another way, as `FeatureFolders.hold` tells.
    """
    if num_decoders < 1:
        raise LongVLMError(f"num_decoders is {num_decoders}; at least one video must be decoded at a time.")
    if batch_segments is None:
        batch_segments = default_batch_segments(extractor.encoder.tower.device)
    if batch_segments < 1:
        raise LongVLMError(f"batch_segments is {batch_segments}; at least one segment must be encoded at a time.")
    for folder in folders.folders:
        make_folder(folder)
    report = Report(failures=list(known_failures))
    failures_path, damaged_path = (folders.folders[0] / name for name in (FAILURES_FILE, DAMAGED_FILE))
    read_failures(failures_path)  # another's file is refused, not replaced
    damaged = {
        video: seconds
        for folder in folders.folders  # an earlier extraction may have had other folders beside this one
        for video, seconds in read_damaged(folder / DAMAGED_FILE).items()
    }
    named_well = [video for video in videos if _can_be_named(video)]
    report.failures += [Failure(display_source(v.source), _TOO_LONG) for v in videos if not _can_be_named(v)]
    waiting = [v for v in named_well if not folders.hold(v.id, extractor, lost_its_end=v.id in damaged)]
    report.num_skipped = len(named_well) - len(waiting)
    there_already = {video.id for video in named_well} - {video.id for video in waiting}
    report.lost_seconds = {
        display_source(video.source): damaged[video.id]
        for video in named_well
        if video.id in damaged and video.id in there_already
    }
    not_reached = {display_source(video.source) for video in waiting}
    pace = _Pace(len(waiting), on_progress)

    def open_reader(video: ListedVideo) -> VideoReader:
        return open_video(video.source, fps=frame_rate, allow_references=allow_references)

    decoding_videos = decode_ahead(waiting, open_reader, extractor.read, num_threads=num_decoders)
    try:
        for video, outcome in _encode(decoding_videos, extractor, batch_segments, pace):
            name = display_source(video.source)
            if isinstance(outcome, LongVLMError) and not (report.num_written or report.num_skipped):
                raise outcome  # no video is to blame, as far as can be told
            if isinstance(outcome, VideoFailed | LongVLMError):
                report.failures.append(Failure(name, str(outcome)))
            else:
                lost_seconds = outcome.lost_seconds
                if damaged.get(video.id, 0.0) != lost_seconds:  # noted before its features, which may be fewer
                    write_damaged(damaged_path, read_damaged(damaged_path) | {video.id: lost_seconds})
                folders.save(video.id, outcome, extractor)
                report.num_written += 1
                if lost_seconds > 0:
                    report.lost_seconds[name] = lost_seconds
            not_reached.discard(name)
            pace.count_video()
    finally:
        decoding_videos.close()
        named = {display_source(video.source): place for place, video in enumerate(videos)}
        report.failures.sort(key=lambda failure: named.get(failure.video, -1))
        report.lost_seconds = dict(sorted(report.lost_seconds.items(), key=lambda lost: named[lost[0]]))
        known_ids = {as_written(video.id) for video in videos if display_source(video.source) not in not_reached}
        earlier = [one for one in read_failures(failures_path) if video_id(one.video) not in known_ids]
        write_failures(failures_path, [*earlier, *report.failures])
    return report


def _can_be_named(video: ListedVideo) -> bool:
    return len(os.fsencode(f"{video.id}{VideoIndex.SUFFIX}")) <= _LONGEST_FILE_NAME


def _encode(
    decoding_videos: Iterable[DecodingVideo], extractor: Extractor, batch_segments: int, pace: _Pace
) -> Iterator[tuple[ListedVideo, VideoIndex | VideoFailed | LongVLMError]]:
    """Each video with its index, or why there is none, as soon as it is known: a LongVLMError where what the encoder
    makes of it is no index.
    """
    buildings: dict[DecodingVideo, Building] = {}
    batch: list[tuple[DecodingVideo, Frames]] = []
    read_through: list[DecodingVideo] = []

    def encode_batch() -> None:
        extractor.encode([(buildings[decoding], frames) for decoding, frames in batch])
        pace.count_frames(sum(frames.num_distinct for _, frames in batch))
        batch.clear()

    def finish_encoded() -> Iterator[tuple[ListedVideo, VideoIndex | LongVLMError]]:
        unencoded = {decoding for decoding, _ in batch}
        for decoding in [one for one in read_through if one not in unencoded]:
            read_through.remove(decoding)
            try:
                outcome: VideoIndex | LongVLMError = buildings.pop(decoding).finish(
                    decoding.info, decoding.lost_seconds
                )
            except LongVLMError as error:
                outcome = error
            yield decoding.video, outcome

    for decoding in decoding_videos:
        buildings.setdefault(decoding, extractor.start())
        try:
            batch.append((decoding, next(decoding)))
        except StopIteration:
            read_through.append(decoding)
        except VideoFailed as failure:
            del buildings[decoding]
            batch = [segment for segment in batch if segment[0] is not decoding]
            yield decoding.video, failure
        if len(batch) >= batch_segments:
            encode_batch()
        yield from finish_encoded()
    if batch:
        encode_batch()
    yield from finish_encoded()


class _Pace:
    """Counts what is done, and tells it."""

    def __init__(self, videos_total: int, tell: Callable[[Progress], None] | None) -> None:
        self._videos_total, self._tell_progress = videos_total, tell
        self._videos_done = self._frames_encoded = 0
        self._began = time.perf_counter()

    def count_frames(self, count: int) -> None:
        self._frames_encoded += count
        self._tell()

    def count_video(self) -> None:
        self._videos_done += 1
        self._tell()

    def _tell(self) -> None:
        if self._tell_progress is not None:
            elapsed = time.perf_counter() - self._began
            self._tell_progress(Progress(self._videos_done, self._videos_total, self._frames_encoded, elapsed))
