"""IndexBuilder: segments lie where their frames do, and repeated frames count once."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from longvlm.errors import LongVLMError
from longvlm.index_builder import IndexBuilder
from longvlm.types import Compression, FrameFeatures, MergedSegments, Sampling, VideoInfo
from longvlm.video_index import VideoIndex

PATCHES, TOKENS, LAYERS, WIDTH = 3, 2, 2, 8
COMPRESSION = Compression(frames_per_segment=2, tokens_per_segment=TOKENS, global_layers=LAYERS)
VIDEO = VideoInfo("film.mp4", 64, 48, 60.0, 600, 10.0, "v" * 64)


def build(
    times: list[list[float]],
    video: VideoInfo = VIDEO,
    lost_seconds: float = 0.0,
    first_feature: float = 0.0,
    **settings: object,
) -> VideoIndex:
    builder = IndexBuilder()
    for number, row in enumerate(times):
        layers = torch.arange(len(row) * LAYERS * WIDTH).view(len(row), LAYERS, WIDTH).float() + number
        features = FrameFeatures(torch.zeros(len(row), PATCHES, WIDTH), layers, tuple(row), len(set(row)))
        patches = len(row) * PATCHES
        builder.add(
            features,
            MergedSegments(
                torch.full((1, TOKENS, WIDTH), float(number) + first_feature),
                torch.full((1, TOKENS), patches // TOKENS),
                torch.arange(patches).remainder(TOKENS)[None],
            ),
        )
    return builder.build(
        video=video,
        sampling=Sampling(**settings),
        lost_seconds=lost_seconds,
        compression=dataclasses.replace(COMPRESSION, frames_per_segment=len(times[0])),
        encoder_name="clip of tiny",
        encoder_fingerprint="e" * 64,
    )


def test_repeated_frames_count_once() -> None:
    index = build([[0.0, 0.0, 5.0, 5.0]])
    layers = torch.arange(4 * LAYERS * WIDTH).view(4, LAYERS, WIDTH).float()
    assert torch.equal(index.segment_globals[0], (layers[0] + layers[2]) / 2)
    assert index.frames_distinct.tolist() == [2]
    assert index.frame_times == [0.0, 5.0]


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(LongVLMError, match=r"numbers of film\.mp4 that are not finite; .* choose float32"):
        build([[0.0, 1.0]], first_feature=float("nan"))


def test_spans_of_a_file() -> None:
    index = build([[1.0, 2.0], [3.0, 4.0]])
    assert index.segment_spans_seconds.tolist() == [[0.0, 3.0], [3.0, 60.0]]
    assert index.slice(0.0, 1.0).segment_spans_seconds.tolist() == [[0.0, 3.0]]


def test_spans_of_a_cut_file() -> None:
    index = build([[1.0, 2.0], [3.0, 4.0]], lost_seconds=50.0)
    assert index.segment_spans_seconds.tolist() == [[0.0, 3.0], [3.0, 10.0]]
    index = build([[1.0, 2.0], [3.0, 4.0]], lost_seconds=59.0)
    assert index.segment_spans_seconds.tolist() == [[0.0, 3.0], [3.0, 4.0]]


def test_spans_of_a_part() -> None:
    index = build([[1.0, 2.0], [3.0, 4.0]], start_seconds=0.75, end_seconds=4.5)
    assert index.segment_spans_seconds.tolist() == [[0.75, 3.0], [3.0, 4.5]]
    shown_before = build([[0.9, 2.0]], start_seconds=1.0)
    assert shown_before.segment_spans_seconds.tolist() == [[0.9, 60.0]]


def test_spans_of_a_stream_end_one_distance_after_its_last_frame() -> None:
    live = dataclasses.replace(VIDEO, duration_seconds=None)
    assert build([[1.0, 2.0], [3.0, 5.0]], live).segment_spans_seconds[-1].tolist() == [
        3.0,
        pytest.approx(5 + 4 / 3),
    ]
    assert build([[1.0, 1.0]], live).segment_spans_seconds.tolist() == [[0.0, 1.1]]
