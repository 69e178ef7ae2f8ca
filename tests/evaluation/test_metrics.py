"""Numbers against ones worked out by hand."""

from __future__ import annotations

import math

import pytest

from longvlm.evaluation.metrics import (
    estimate,
    estimate_mean_of_means,
    estimate_share,
    exact_match,
    normalise,
    token_f1,
)


def test_words_that_count() -> None:
    assert normalise("The  Red-Circle, (a) two's!") == ["red", "circle", "twos"]
    assert normalise("Ten ﬁshes; 2 cafés") == ["10", "fishes", "2", "cafés"]


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "f1"),
    [
        ("A red circle.", "red circle", 1, 1),
        ("two", "2", 1, 1),
        ("red", "blue", 0, 0),
        ("a red circle moves", "red circle", 0, 0.8),  # 2 in common of 3 and 2
        ("circle red", "red circle", 0, 1),
        ("red red red", "red", 0, 0.5),  # a word counts as often as both have it
        ("", "red", 0, 0),
        ("the", "", 1, 1),
    ],
)
def test_exact_match_and_f1(prediction: str, answer: str, exact: float, f1: float) -> None:
    assert exact_match(prediction, answer) == exact
    assert token_f1(prediction, answer) == pytest.approx(f1)


def test_values_about_one_video_have_no_interval() -> None:
    for one in (estimate([1.0, 3.0], ["a", "a"]), estimate_mean_of_means([([1.0], ["a"]), ([3.0], ["a"])])):
        assert (one.n, one.mean) == (2, 2.0)
        assert math.isnan(one.low) and math.isnan(one.high)


def test_an_estimate_is_the_mean_with_the_spread_between_videos() -> None:
    one = estimate([1, 1, 0, 0, 1, 1], ["a", "a", "b", "b", "c", "c"])
    assert (one.n, one.mean, one.low, one.high) == (6, pytest.approx(4 / 6), 0.0, 1.0)
    same = estimate([3.0, 3.0], ["a", "b"])
    assert (same.low, same.mean, same.high) == (3.0, 3.0, 3.0)
    none = estimate([], [])
    assert none.n == 0 and math.isnan(none.mean)


def test_a_share_is_in_percent_and_has_a_width_where_all_are_right() -> None:
    one = estimate_share([True, True, False, False], ["a", "a", "b", "b"])
    assert (one.n, one.mean, one.low, one.high) == (4, 50.0, 0.0, 100.0)
    all_right = estimate_share([True] * 100, [str(video) for video in range(100)])
    assert (all_right.mean, all_right.high) == (100.0, 100.0) and all_right.low == pytest.approx(96.3, abs=0.05)
    none_right, f1 = (estimate_share([value] * 4, ["a", "b", "c", "c"]) for value in (0.0, 0.4))
    assert none_right.low == 0.0 and none_right.high == pytest.approx(
        56.2, abs=0.05
    )  # Wilson's interval for three videos
    assert f1.mean == pytest.approx(40.0) and f1.low < 40 < f1.high
    assert estimate_share([], []).n == 0


def test_the_mean_of_means_weighs_axes_alike() -> None:
    long, short = ([4.0] * 8, ["a", "b"] * 4), ([2.0], ["a"])
    both = estimate_mean_of_means([long, short])
    assert (both.n, both.mean) == (9, 3.0)
    assert (both.low, both.high) == (3.0, 3.0)
    values, videos = [1.0, 5.0, 2.0, 4.0], ["a", "b", "c", "d"]
    alone, twice = estimate(values, videos), estimate_mean_of_means([(values, videos)] * 2)
    assert (twice.mean, twice.low, twice.high) == pytest.approx((alone.mean, alone.low, alone.high))
