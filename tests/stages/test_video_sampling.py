"""Which frames are taken: the paper's rule, rates, spans, keyframes, and how they fill segments."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from media import barcode, read_barcode, write_video

from longvlm.errors import LongVLMError
from longvlm.stages.video import Sampling, open_video, parse_time, sample_indices

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "frame_indices.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['total_frames']}-{case['num_frames']}")
def test_sample_indices_equal_the_golden_ones(case):
    assert sample_indices(case["total_frames"], case["num_frames"]) == case["indices"]


def test_fewer_frames_than_wanted_are_repeated():
    assert sample_indices(3, 8) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sample_indices(1, 4) == [0, 0, 0, 0]
    with pytest.raises(LongVLMError, match="Can't sample 4 of 0 frames"):
        sample_indices(0, 4)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("83", 83),
        ("83.5", 83.5),
        (83.5, 83.5),
        (7, 7),
        (0.1 + 0.2 - 0.3, 0.1 + 0.2 - 0.3),
        ("1:23.5", 83.5),
        ("1:02:03.5", 3723.5),
        (" 0:05 ", 5),
        ("90:00", 5400),
    ],
)
def test_parse_time(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "abc", "-3", "1:60", "1:75:00", "1:2:3:4", "nan", "1e3", "5s"])
def test_parse_time_refuses_everything_else(text):
    with pytest.raises(LongVLMError, match="is not a time"):
        parse_time(text)


@pytest.fixture(scope="module")
def video_path(tmp_path_factory):
    """60 frames at 25 a second, keyframes every 12."""
    return write_video(tmp_path_factory.mktemp("video") / "short.mp4", 60)


def read(source, sampling, frames_per_segment=10, **options):
    with open_video(source, **options) as video:
        planned = video.planned_times(sampling)
        segments = list(video.segments(sampling, frames_per_segment=frames_per_segment, image_size=48, fit="squash"))
    return planned, segments


def numbers(segments):
    return [read_barcode(pixels) for segment in segments for pixels in segment.pixels]


def test_segments_are_filled_in_time_order_and_the_last_one_by_repetition(video_path):
    planned, segments = read(video_path, Sampling(num_frames=13))
    indices = sample_indices(60, 13)
    assert planned == [index / 25 for index in indices]
    last = [indices[10 + place * 3 // 10] for place in range(10)]
    assert numbers(segments) == indices[:10] + last
    assert [t for s in segments for t in s.times_seconds] == [i / 25 for i in indices[:10] + last]
    assert [(s.num_distinct, s.pixels.shape, s.pixels.dtype) for s in segments] == [
        (10, (10, 3, 48, 48), torch.uint8),
        (3, (10, 3, 48, 48), torch.uint8),
    ]


def test_a_video_with_fewer_frames_than_wanted_repeats_them(tmp_path):
    path = write_video(tmp_path / "tiny.mp4", 7)
    planned, segments = read(path, Sampling(num_frames=20))
    assert numbers(segments) == sample_indices(7, 20)
    assert planned == [index / 25 for index in sample_indices(7, 20)]
    assert [segment.num_distinct for segment in segments] == [4, 4]


def test_num_frames_counts_the_frames_within_the_span(video_path):
    sampling = Sampling(num_frames=6, start_seconds=0.4, end_seconds=1.2)  # frames 10 to 29
    _, segments = read(video_path, sampling, frames_per_segment=6)
    assert numbers(segments) == [10 + index for index in sample_indices(20, 6)]


def test_a_span_between_two_frames_shows_the_earlier_one():
    slides = np.stack([barcode(number) for number in range(3)])
    sampling = Sampling(num_frames=2, start_seconds=12, end_seconds=18)
    planned, segments = read(slides, sampling, frames_per_segment=2, fps=0.1)
    assert (planned, numbers(segments)) == ([10.0, 10.0], [1, 1])


def test_fps_takes_the_frame_shown_at_each_target_time_once(video_path):
    sampling = Sampling(num_frames=None, fps=7, start_seconds=0.5)
    shown = [int((0.5 + i / 7) * 25 + 1e-9) for i in range(14)]
    planned, segments = read(video_path, sampling, frames_per_segment=7)
    assert numbers(segments) == shown
    assert planned == [number / 25 for number in shown]
    _, every_frame = read(video_path, Sampling(num_frames=None, fps=100))
    assert numbers(every_frame) == list(range(60))


def test_max_frames_thins_evenly_over_the_whole_span(video_path):
    sampling = Sampling(num_frames=None, fps=25, max_frames=6)
    _, segments = read(video_path, sampling, frames_per_segment=6)
    assert numbers(segments) == sample_indices(60, 6)


def test_keyframe_mode_takes_the_nearest_keyframes_at_their_true_times(video_path):
    planned, segments = read(video_path, Sampling(num_frames=8, mode="keyframe"), frames_per_segment=8)
    expected = [min(range(0, 60, 12), key=lambda k, i=i: abs(k - i)) for i in sample_indices(60, 8)]
    assert numbers(segments) == expected
    assert planned == [number / 25 for number in expected]
    _, by_rate = read(video_path, Sampling(num_frames=None, fps=25, mode="keyframe"), frames_per_segment=5)
    assert numbers(by_rate) == [0, 12, 24, 36, 48]


def test_keyframe_mode_stays_in_its_span_and_is_exact_where_that_has_no_keyframe(video_path):
    within = Sampling(num_frames=4, start_seconds=0.2, end_seconds=1.2, mode="keyframe")
    assert set(numbers(read(video_path, within)[1])) == {12, 24}
    between = Sampling(num_frames=4, start_seconds=0.56, end_seconds=0.9, mode="keyframe")
    assert numbers(read(video_path, between, 4)[1]) == [14 + index for index in sample_indices(9, 4)]


def test_frames_that_are_not_evenly_apart_are_taken_by_their_true_times(tmp_path):
    times = [0.0, 0.04, 0.05, 0.2] + [0.3 + number * number / 1000 for number in range(56)]
    path = write_video(tmp_path / "uneven.mp4", pts_milliseconds=[round(1000 * time) for time in times])
    by_rate = Sampling(num_frames=None, fps=4, end_seconds=2.9)
    shown = [max(i for i, time in enumerate(times) if time <= k / 4 + 1e-9) for k in range(12)]
    assert len(set(shown)) == 12
    planned, segments = read(path, by_rate, frames_per_segment=12)
    assert (numbers(segments), planned) == (shown, pytest.approx([times[i] for i in shown]))

    within = [i for i, time in enumerate(times) if 0.5 < time < 2]
    _, segments = read(path, Sampling(num_frames=5, start_seconds=0.5, end_seconds=2), frames_per_segment=5)
    assert numbers(segments) == [within[index] for index in sample_indices(len(within), 5)]

    _, segments = read(path, Sampling(num_frames=8, mode="keyframe"), frames_per_segment=8)
    nearest = [min(range(0, 60, 12), key=lambda k, i=i: abs(times[k] - times[i])) for i in sample_indices(60, 8)]
    by_number = [min(range(0, 60, 12), key=lambda k, i=i: abs(k - i)) for i in sample_indices(60, 8)]
    assert numbers(segments) == nearest != by_number


def test_start_after_the_end_is_an_error_that_names_both(video_path):
    with pytest.raises(LongVLMError, match=r"start \(9 s\) is after the end of short.mp4, which lasts 2.4 s"):
        read(video_path, Sampling(start_seconds=9))


def test_fps_is_for_sources_without_times_of_their_own(video_path):
    with pytest.raises(
        LongVLMError, match=r"short.mp4 carries its own frame times, .*rate of 3 .*Leave the frame rate out"
    ):
        open_video(video_path, fps=3)


def test_more_moments_than_memory_holds_are_refused(tmp_path):
    path = write_video(tmp_path / "slow.mkv", 2, pts_milliseconds=[0, 20_000_000_000])
    with open_video(path) as video:
        with pytest.raises(LongVLMError, match=r"1 frames a second from 0 s to 2.*e\+07 s are more than 10,000,000"):
            video.planned_times(Sampling(num_frames=None, fps=1))
        assert len(video.planned_times(Sampling(num_frames=2))) == 2
