"""Numbers from answers: the offline judge's exact match and token F1, and means with their intervals.

The offline judge is the same on every machine and in every year; a language model that judges is not.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longvlm.intervals import RESAMPLES, clustered_interval, interval_of_share

_ARTICLES = {"a", "an", "the"}
_SMALL_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_SMALL_NUMBERS)}


def normalise(text: str) -> list[str]:
    """The words of a text that count: lower case, without punctuation and articles, small numbers as digits."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower().replace("'", "").replace("’", ""))
    return [_DIGITS.get(word, word) for word in words if word not in _ARTICLES]


def exact_match(prediction: str, answer: str) -> float:
    """1 if both say the same words in the same order, else 0."""
    return float(normalise(prediction) == normalise(answer))


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of the shares of words in common, as in SQuAD; 1 for two texts without words."""
    ours, theirs = normalise(prediction), normalise(answer)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values; `low` and `high` bound its 95 % interval. All are NaN where n is 0, and the bounds of other
    means than of shares where the values are of one video.
    """

    n: int
    mean: float
    low: float
    high: float


def estimate(values: Sequence[float], videos: Sequence[str]) -> Estimate:
    """The mean of `values`, with an interval that is clustered by video: a seeded bootstrap over videos."""
    if not values:
        return Estimate(0, *[float("nan")] * 3)
    low, high = clustered_interval(np.array(values, dtype=float), np.array(videos))
    return Estimate(len(values), float(np.mean(values)), low, high)


def estimate_share(shares: Sequence[float], videos: Sequence[str]) -> Estimate:
    """The mean of values from 0 to 1, such as the share of right answers, in percent; with Wilson's interval for as
    many videos where all videos have the same mean, as one alone has.
    """
    if not shares:
        return estimate([], [])
    low, high = interval_of_share(np.array(shares, dtype=float), np.array(videos))
    return Estimate(len(shares), 100.0 * float(np.mean(shares)), 100.0 * low, 100.0 * high)


def estimate_mean_of_means(parts: Sequence[tuple[Sequence[float], Sequence[str]]]) -> Estimate:
    """The mean of several means, each of (values, videos); videos that they share are drawn together."""
    names, member = np.unique([video for _, videos in parts for video in videos], return_inverse=True)
    drawn = np.random.RandomState(0).randint(0, len(names), (RESAMPLES, len(names)))
    means, begin = [], 0
    for values, videos in parts:
        here = member[begin : begin + len(videos)]
        begin += len(videos)
        totals, sizes = (np.bincount(here, weights=one, minlength=len(names)) for one in (values, None))
        with np.errstate(invalid="ignore"):  # a draw may hold no video of a small part
            means.append(totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.nanpercentile(np.mean(means, axis=0), [2.5, 97.5]) if len(names) > 1 else [float("nan")] * 2
    return Estimate(
        sum(len(values) for values, _ in parts),
        float(np.mean([np.mean(values) for values, _ in parts])),
        float(low),
        float(high),
    )
