"""Numbers against ones worked out by hand."""

from __future__ import annotations

import math

import pytest

from longvlm.evaluation.metrics import estimate, estimate_mean_of_means, exact_match, normalise, token_f1


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


def test_an_estimate_is_the_mean_with_the_spread_between_videos() -> None:
    one = estimate([1, 1, 0, 0, 1, 1], ["a", "a", "b", "b", "c", "c"])
    assert (one.n, one.mean, one.low, one.high) == (6, pytest.approx(4 / 6), 0.0, 1.0)
    same = estimate([3.0, 3.0], ["a", "b"])
    assert (same.low, same.mean, same.high) == (3.0, 3.0, 3.0)
    none = estimate([], [])
    assert none.n == 0 and math.isnan(none.mean)


def test_the_mean_of_means_weighs_axes_alike() -> None:
    long, short = ([4.0] * 8, ["a", "b"] * 4), ([2.0], ["a"])
    both = estimate_mean_of_means([long, short])
    assert (both.n, both.mean) == (9, 3.0)
    assert (both.low, both.high) == (3.0, 3.0)
    values, videos = [1.0, 5.0, 2.0, 4.0], ["a", "b", "c", "d"]
    alone, twice = estimate(values, videos), estimate_mean_of_means([(values, videos)] * 2)
    assert (twice.mean, twice.low, twice.high) == pytest.approx((alone.mean, alone.low, alone.high))
