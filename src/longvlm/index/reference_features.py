"""The reference's feature files: per video one pickle of local features, one of [CLS] features ("memory").

Local features are (S·M, D) float16, memory features (L, D) float16: the [CLS] of the embeddings' output and of
every layer (25 in CLIP ViT-L/14), averaged over the frames. Neither says what it was made from.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from longvlm.errors import LongVLMError
from longvlm.index.feature_pickles import read_pickled_array
from longvlm.index.video_folders import find_video_files, video_id
from longvlm.index_builder import IndexBuilder
from longvlm.stages.tokens import average_globals
from longvlm.stages.video import open_video
from longvlm.stages.vision import VisionEncoder
from longvlm.types import Compression, FrameFeatures, MergedSegments, Sampling, VideoInfo
from longvlm.video_index import UNKNOWN_FINGERPRINT, VideoIndex
from longvlm.whole_files import make_folder, write_whole

UNKNOWN_ENCODER = "unknown (imported reference features)"


def write_reference_features(index: VideoIndex, local_file: Path, memory_file: Path) -> None:
    """Write an index's features as the reference does; the index must have the [CLS] of every hidden state.

    The reference reads them with its numpy (1.24), and any later one. Raises LongVLMError where there is no room.
    """
    local = index.local_features.flatten(0, 1)
    memory = average_globals(index.segment_globals, index.frames_distinct)
    for path, features in ((local_file, local), (memory_file, memory)):
        array = features.to("cpu", torch.float16).numpy()
        # numpy 2 names a module that numpy 1 doesn't know; both know the older name, which protocol 3 writes as text.
        pickled = pickle.dumps(array, protocol=3).replace(b"cnumpy._core.", b"cnumpy.core.", 1)
        write_whole(path, pickled)


@dataclass(frozen=True)
class ImportSettings:
    """How reference features are read: settings and encoder they are taken to be from, and their videos' folder.

    Without an `encoder`, indexes say that it is unknown, and no model will answer from them. Without a
    `video_folder`, all times are 0.
    """

    compression: Compression = dataclasses.field(default_factory=Compression)
    num_segments: int = 10
    encoder: VisionEncoder | None = None
    video_folder: Path | None = None


def import_reference_features(
    local_folder: Path, memory_folder: Path, output: Path, settings: ImportSettings
) -> Iterator[tuple[int, int]]:
    """Write an index for each pair of pickles of one name; yields how many are done, and of how many.

    Raises LongVLMError, naming the file, where a pair is incomplete, a pickle is anything but a plain numeric
    array (nothing in it is run), or its shape is not the one expected, and where an index of that name holds other
    features; indexes written until then stay.
    """
    pairs = _pair_files(local_folder, memory_folder)
    ids = {video_id(local_file.name) for local_file, _ in pairs}
    videos = {} if settings.video_folder is None else find_video_files(settings.video_folder, ids)
    make_folder(output)
    for number, (local_file, memory_file) in enumerate(pairs, 1):
        name = video_id(local_file.name)
        if settings.video_folder is not None and name not in videos:
            raise LongVLMError(
                f"There is no video {name} in {settings.video_folder}, to take the times of {local_file} from; "
                "add it, or leave the folder of videos out."
            )
        index = read_reference_index(local_file, memory_file, settings, videos.get(name))
        target = output / f"{name}{VideoIndex.SUFFIX}"
        _require_no_others(target, index)
        index.save(target)
        yield number, len(pairs)


def _require_no_others(path: Path, index: VideoIndex) -> None:
    """What was imported before may get its encoder's name, or its times, by another import of the same pickles."""
    try:
        found = VideoIndex.load(path) if path.is_file() else index
    except LongVLMError:  # damaged, and made anew
        return
    if not torch.equal(found.local_features.float(), index.local_features.float()):
        raise LongVLMError(
            f"{path} is there already, with other features of that video; choose another folder with --output, or "
            "remove it."
        )


def _pair_files(local_folder: Path, memory_folder: Path) -> list[tuple[Path, Path]]:
    names = []
    for folder in (local_folder, memory_folder):
        if not folder.is_dir():
            raise LongVLMError(f"{folder} is not a folder; give one with the reference's .pkl files.")
        names.append({path.name for path in folder.glob("*.pkl") if not path.name.startswith(".")})
    if not names[0] | names[1]:
        raise LongVLMError(f"There are no .pkl files in {local_folder} and {memory_folder}; check their names.")
    for folder, other, lacking in ((memory_folder, local_folder, 0), (local_folder, memory_folder, 1)):
        alone = sorted(names[lacking] - names[1 - lacking])
        if alone:
            more = f", nor have {len(alone) - 1} others" if alone[1:] else ""
            raise LongVLMError(
                f"{other / alone[0]} has no counterpart in {folder}{more}; a video needs local and memory features: "
                "add what is missing, or take the file out."
            )
    return [(local_folder / name, memory_folder / name) for name in sorted(names[0])]


def read_reference_index(
    local_file: Path, memory_file: Path, settings: ImportSettings, video: Path | None = None
) -> VideoIndex:
    """The index of one video's two pickles, with times from the `video` itself where it is given.

    What the pickles don't say is filled in so that it can't be taken for knowledge: each token stands for itself
    alone, every segment has the whole video's global features, times are 0, the video's size is 0 × 0.
    Raises LongVLMError as `import_reference_features` does.
    """
    local = _read_local(local_file, settings)
    memory = _read_memory(memory_file, local.shape[2], settings)
    num_segments, num_frames = settings.num_segments, settings.compression.frames_per_segment
    sampling = Sampling(num_frames=num_segments * num_frames)
    info, times = _unknown_video(video_id(local_file.name)), [0.0] * (num_segments * num_frames)
    if video is not None:
        with open_video(str(video)) as reader:
            info, times = reader.info, reader.planned_times(sampling)
    builder = IndexBuilder()
    for segment in range(num_segments):
        segment_times = tuple(times[segment * num_frames : (segment + 1) * num_frames])
        distinct = num_frames if video is None else len(set(segment_times))
        builder.add(_segment_features(memory, segment_times, distinct), _unmerged(local[segment : segment + 1]))
    return builder.build(
        video=info,
        sampling=sampling,
        lost_seconds=0.0,
        compression=settings.compression,
        encoder_name=UNKNOWN_ENCODER if settings.encoder is None else settings.encoder.name,
        encoder_fingerprint=UNKNOWN_FINGERPRINT if settings.encoder is None else settings.encoder.fingerprint,
    )


def _read_local(path: Path, settings: ImportSettings) -> torch.Tensor:
    """(S·M, D) rows of a file as (S, M, D)."""
    array = _read_matrix(path)
    num_segments, tokens = settings.num_segments, settings.compression.tokens_per_segment
    rows, wanted = len(array), num_segments * tokens
    if rows != wanted:
        remedy = "pass --segments and --tokens-per-segment as they were made with, or extract the video again."
        if rows and rows % tokens == 0 and rows < wanted:
            remedy = (
                f"{rows // tokens} segments are what a video with a damaged end leaves; take its two files out, and "
                "make its index with `longvlm extract`, which notes what is lost."
            )
        elif rows and rows % num_segments == 0:
            remedy = (
                f"the reference's own extraction script merges to 20 tokens a segment, its training wants 30; "
                f"to import these, pass --tokens-per-segment {rows // num_segments}."
            )
        raise LongVLMError(
            f"{path} has {rows} rows, but {wanted} are expected ({num_segments} segments of {tokens} tokens): {remedy}"
        )
    encoder = settings.encoder
    if encoder is not None and array.shape[1] != encoder.feature_width:
        raise LongVLMError(
            f"{path} has features of width {array.shape[1]}, but {encoder.name} gives width {encoder.feature_width}: "
            "they are another encoder's. Name the one that made them."
        )
    return torch.from_numpy(array).unflatten(0, (num_segments, tokens))


def _read_memory(path: Path, width: int, settings: ImportSettings) -> torch.Tensor:
    """The last L rows of a file, (L, D)."""
    array, layers = _read_matrix(path), settings.compression.global_layers
    if array.shape[1] != width:
        raise LongVLMError(
            f"{path} has features of width {array.shape[1]}, but the local ones have width {width}: they are not of "
            "one encoder. Extract the video again."
        )
    if len(array) < layers:
        raise LongVLMError(
            f"{path} has {len(array)} rows, but the last {layers} layers are wanted; the reference writes one row a "
            "layer, 25 for CLIP ViT-L/14. Are the two folders swapped?"
        )
    return torch.from_numpy(array[len(array) - layers :].copy())


def _read_matrix(path: Path) -> np.ndarray:
    array = read_pickled_array(path)
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] == 0:
        raise LongVLMError(
            f"{path} holds an array of shape {array.shape} and type {array.dtype}; features are (rows, width) and of a "
            "floating type."
        )
    if not np.isfinite(array).all():
        raise LongVLMError(f"{path} holds numbers that are not finite; extract the video's features again.")
    return array


def _unknown_video(name: str) -> VideoInfo:
    return VideoInfo(
        name=name,
        width=0,
        height=0,
        duration_seconds=0.0,
        num_frames=None,
        average_fps=None,
        fingerprint=UNKNOWN_FINGERPRINT,
    )


def _segment_features(memory: torch.Tensor, times_seconds: tuple[float, ...], num_distinct: int) -> FrameFeatures:
    """A segment whose every frame has the whole video's global features (L, D), and no patches."""
    num_frames = len(times_seconds)
    return FrameFeatures(
        patches=memory.new_empty(num_frames, 0, memory.shape[1]),
        layer_globals=memory.expand(num_frames, *memory.shape),
        times_seconds=times_seconds,
        num_distinct=num_distinct,
    )


def _unmerged(features: torch.Tensor) -> MergedSegments:
    """(1, M, D) features of which nothing is known: each stands for itself."""
    places = torch.arange(features.shape[1])[None]
    return MergedSegments(features=features, sizes=torch.ones_like(places), assignment=places)
