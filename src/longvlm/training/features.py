"""Where the videos of a training come from: stored features, checked against the model, or videos encoded first."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from longvlm.errors import LongVLMError, one_line
from longvlm.index.extraction import FeatureFolders, extract
from longvlm.index.extraction_report import DAMAGED_FILE, FAILURES_FILE, Progress
from longvlm.index.extractor import extractor_of_model
from longvlm.index.video_folders import ListedVideo, is_file
from longvlm.pace import SECONDS_BETWEEN_LINES
from longvlm.pipeline import LongVLM
from longvlm.stages.tokens import count_segments, count_visual_tokens
from longvlm.training.curves import Say
from longvlm.types import Compression, Sampling, VideoInfo
from longvlm.video_index import UNKNOWN_FINGERPRINT, VideoIndex, require_known_times
from longvlm.whole_files import make_folder, write_whole


@dataclass(frozen=True)
class StoredVideo:
    """The features of one video, on disk, known to be what the model reads."""

    path: Path
    num_segments: int
    num_tokens: int


def find_features(folder: Path, ids: Iterable[str]) -> dict[str, Path]:
    """The feature files of those of the videos that have one in `folder`."""
    if not folder.is_dir():
        raise LongVLMError(f"There is no folder of features {folder}; make it with `longvlm extract`, or give another.")
    paths = {video: folder / f"{video}{VideoIndex.SUFFIX}" for video in ids}
    found = {video: path for video, path in paths.items() if is_file(path)}
    if not found and any(is_file(folder / f"{video}.pkl") for video in paths):
        raise LongVLMError(
            f"{folder} holds the reference's pickles, not {VideoIndex.SUFFIX} files; make these of them with `longvlm "
            "features import`, and give their folder."
        )
    return found


def inspect_features(
    path: Path,
    encoder_name: str,
    encoder_fingerprint: str,
    wanted: Compression,
    frames: Sampling | None = None,
    *,
    timestamps: bool = False,
) -> StoredVideo:
    """What a feature file holds, from its header alone, since a training has thousands of them.

    Raises LongVLMError, with both sides and the remedy, for features of another encoder, other settings, or, if given,
    another number or rate of `frames` than the model looks at (a video that has lost its end may have fewer), and for
    features without times where `timestamps` are to be written.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            num_segments = file.get_slice("local_features").get_shape()[0]
            settings = Compression.from_dict(json.loads(metadata["compression"]))
            found_name, found_fingerprint = metadata["encoder_name"], metadata["encoder_fingerprint"]
            lost_its_end = float(metadata["lost_seconds"]) > 0
            sampling = Sampling(**json.loads(metadata["sampling"]))
            video = VideoInfo(**json.loads(metadata["video"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, LongVLMError) as error:
        raise LongVLMError(f"{path} can't be read ({one_line(error)}); extract it again.") from error
    if found_fingerprint != encoder_fingerprint:
        remedy = "extract the features with this model, or train the model that made them"
        if found_fingerprint == UNKNOWN_FINGERPRINT:
            remedy = "import the features again, naming their encoder with --vision-tower (or --model)"
        raise LongVLMError(
            f"{path} was made by the encoder {found_name} ({found_fingerprint[:12]}), but the model has {encoder_name} "
            f"({encoder_fingerprint[:12]}); {remedy}."
        )
    if settings != wanted:
        raise _misfit(path, num_segments, settings, wanted)
    if timestamps:
        require_known_times(video)
    if frames is not None:
        _require_frames(path, sampling, frames, num_segments, wanted.frames_per_segment, lost_its_end=lost_its_end)
    return StoredVideo(path, num_segments, count_visual_tokens(num_segments, wanted))


def _require_frames(
    path: Path, found: Sampling, wanted: Sampling, num_segments: int, frames_per_segment: int, *, lost_its_end: bool
) -> None:
    rates = [(one.fps, one.max_frames) for one in (found, wanted)]
    if rates[0] != rates[1]:
        sides = [f"num_frames={one.num_frames}, fps={one.fps}, max_frames={one.max_frames}" for one in (found, wanted)]
        raise LongVLMError(
            f"{path} has frames by {sides[0]}, and the model looks at {sides[1]}; set these in the recipe's model to "
            "what the features have, or extract them again."
        )
    if wanted.num_frames is None:
        return
    expected = count_segments(wanted.num_frames, frames_per_segment)
    if num_segments != expected and not (lost_its_end and num_segments < expected):
        raise LongVLMError(
            f"{path} has {num_segments} segments of {frames_per_segment} frames, where {expected} are expected "
            f"(num_frames={wanted.num_frames}); set model.num_frames to what the features have, or extract them again."
        )


def _misfit(path: Path, num_segments: int, found: Compression, wanted: Compression) -> LongVLMError:
    """What to say of features that were made with other settings."""
    if found.tokens_per_segment != wanted.tokens_per_segment:
        rows = [num_segments * settings.tokens_per_segment for settings in (found, wanted)]
        return LongVLMError(
            f"{path} has {rows[0]} rows of local features ({num_segments} segments of {found.tokens_per_segment}), "
            f"where {rows[1]} ({num_segments} of {wanted.tokens_per_segment}) are expected; set "
            f"model.compression.tokens_per_segment={found.tokens_per_segment}, or extract the features again."
        )
    name = next(name for name in vars(wanted) if getattr(wanted, name) != getattr(found, name))
    return LongVLMError(
        f"{path} was made with {name}={getattr(found, name)}, but the model has {name}={getattr(wanted, name)}; "
        f"set model.compression.{name} to the former, or extract the features again."
    )


def claim_features(folder: Path, videos: Path) -> None:
    """Note in a folder of features whose videos' they are; raise LongVLMError where they are those of others."""
    note, wanted = folder / "videos.txt", str(videos.resolve())
    found = note.read_text(encoding="utf-8", errors="surrogateescape") if note.is_file() else wanted
    if found != wanted:
        raise LongVLMError(
            f"{folder} holds features of the videos in {found}, and those in {wanted} are wanted; choose another "
            "output, or remove that folder."
        )
    make_folder(folder)
    write_whole(note, wanted.encode("utf-8", "surrogateescape"))


def encode_videos(
    model: LongVLM,
    videos: dict[str, Path],
    folder: Path,
    sampling: Sampling,
    *,
    may_drop: bool,
    say: Say,
) -> None:
    """Write the features of every video into `folder`; what lies there already is kept.

    Raises LongVLMError in the end for the videos that can't be encoded, when the others are done, unless such videos
    `may_drop` out.
    """
    told_seconds = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told_seconds
        if time.monotonic() - told_seconds >= SECONDS_BETWEEN_LINES:
            told_seconds = time.monotonic()
            say(progress.describe())

    listed = [ListedVideo(video, str(path)) for video, path in sorted(videos.items())]
    report = extract(listed, extractor_of_model(model, sampling), FeatureFolders(indexes=folder), on_progress=tell)
    if report.failures:
        first, others = report.failures[0], folder / FAILURES_FILE
        told = (
            f"{len(report.failures)} of {len(listed)} videos can't be encoded, first of them {first.video}: "
            f"{first.reason} All are in {others}."
        )
        if not may_drop:
            raise LongVLMError(f"{told} Mend or remove them, or set missing: drop for these data; the others are kept.")
        say(told)
    if num_damaged := sum(seconds > 0 for seconds in report.lost_seconds.values()):
        say(
            f"{num_damaged} of {len(listed)} videos have an end that can't be decoded, and are learned from without "
            f"it; they are in {folder / DAMAGED_FILE}"
        )
