"""Counting, assembling and timing of a video's visual tokens."""

from __future__ import annotations

import pytest
import torch

from longvlm.stages.tokens import assemble, average_globals, count_visual_tokens, format_timestamp
from longvlm.types import Compression, Sampling, VideoInfo
from longvlm.video_index import VideoIndex

SPANS = torch.tensor([[0.0, 10.0], [10.0, 20.0], [20.0, 23.5]], dtype=torch.float64)


def make_index(
    compression: Compression, spans: torch.Tensor, width: int = 6, dtype: torch.dtype = torch.float32
) -> VideoIndex:
    """An index of random features whose last segment is short: 2 of its frames are distinct."""
    generator = torch.Generator().manual_seed(0)
    num_segments, frames, tokens = len(spans), compression.frames_per_segment, compression.tokens_per_segment
    distinct = torch.full((num_segments,), frames)
    distinct[-1] = 2
    shape = (num_segments, compression.global_layers, width)
    return VideoIndex(
        local_features=torch.randn(num_segments, tokens, width, generator=generator).to(dtype),
        sizes=torch.ones(num_segments, tokens),
        assignment=torch.zeros(num_segments, tokens),
        segment_globals=torch.randn(shape, generator=generator).to(dtype),
        frame_times_seconds=torch.zeros(num_segments, frames),
        frames_distinct=distinct,
        segment_spans_seconds=spans,
        video=VideoInfo("film.mp4", 64, 48, 23.5, 235, 10.0, "f"),
        sampling=Sampling(),
        compression=compression,
        encoder_name="tower",
        encoder_fingerprint="e",
    )


def test_the_papers_setting_has_305_tokens() -> None:
    assert count_visual_tokens(10, Compression()) == 305


@pytest.mark.parametrize("global_layers", [0, 1, 5])
def test_assemble_puts_globals_first_and_keeps_time_order(global_layers: int) -> None:
    compression = Compression(frames_per_segment=4, tokens_per_segment=3, global_layers=global_layers)
    index = make_index(compression, SPANS)

    tokens = assemble(index)

    assert tokens.num_tokens == count_visual_tokens(len(SPANS), compression)
    assert tokens.num_global_tokens == global_layers
    weighted = sum(n * g for n, g in zip([4, 4, 2], index.segment_globals, strict=True)) / 10
    torch.testing.assert_close(tokens.features[:global_layers], weighted)
    assert torch.equal(tokens.features[global_layers:], index.local_features.reshape(9, 6))
    expected_spans = [[0.0, 23.5]] * global_layers + [span for span in SPANS.tolist() for _ in range(3)]
    assert tokens.time_spans_seconds.tolist() == expected_spans
    assert torch.equal(tokens.segment_spans_seconds, SPANS)


def test_a_slice_is_assembled_on_its_own() -> None:
    index = make_index(Compression(frames_per_segment=4, tokens_per_segment=3, global_layers=2), SPANS)
    tokens = assemble(index.slice(10.0))
    assert tokens.time_spans_seconds[0].tolist() == [10.0, 23.5]
    weighted = (4 * index.segment_globals[1] + 2 * index.segment_globals[2]) / 6
    torch.testing.assert_close(tokens.features[:2], weighted)


def test_the_mean_of_globals_is_that_of_all_distinct_frames() -> None:
    frames = torch.randn(7, 5, 8, generator=torch.Generator().manual_seed(2))  # 7 frames in segments of 3, 3 and 1
    segments = torch.stack([part.mean(0) for part in frames.split(3)])
    counts = torch.tensor([3, 3, 1], dtype=torch.int32)
    torch.testing.assert_close(average_globals(segments, counts), frames.mean(0))

    half = average_globals(segments.bfloat16(), counts)
    assert torch.equal(half, average_globals(segments.bfloat16().float(), counts).bfloat16())


def test_features_keep_the_indexs_dtype() -> None:
    index = make_index(Compression(frames_per_segment=4, tokens_per_segment=3), SPANS, dtype=torch.bfloat16)
    assert assemble(index).features.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (9.99999999, "0:10"),
        (10.9, "0:10"),
        (61, "1:01"),
        (3599.5, "59:59"),
        (3723.0, "1:02:03"),
        (36000, "10:00:00"),
    ],
)
def test_timestamps_read_like_a_players_clock(seconds: float, text: str) -> None:
    assert format_timestamp(seconds) == text
