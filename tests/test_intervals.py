import numpy as np
import pytest

from longvlm.intervals import clustered_interval, interval_of_share


def test_the_interval_is_clustered_by_video() -> None:
    rng = np.random.RandomState(0)
    by_video = rng.rand(40) < 0.6  # all ten answers about a video are right, or none
    values, clusters = np.repeat(by_video, 10).astype(float), np.repeat(np.arange(40), 10)
    low, high = clustered_interval(values, clusters)
    share = by_video.mean()
    spread = 1.96 * np.sqrt(share * (1 - share) / 40)
    assert (low, high) == pytest.approx((share - spread, share + spread), abs=0.03)
    alone = clustered_interval(values, np.arange(400))
    assert alone[1] - alone[0] < 0.5 * (high - low)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_where_all_are_right_or_none_the_interval_has_a_width(share: float) -> None:
    values, clusters = np.full(240, share), np.repeat(np.arange(120), 2)
    low, high = interval_of_share(values, clusters)
    assert (1 - low if share else high) == pytest.approx(0.031, abs=0.001)  # Wilson's, of 120
    assert (high if share else low) == share
    values[0] = 1 - share
    assert interval_of_share(values, clusters) == clustered_interval(values, clusters)


def test_where_all_videos_have_the_same_share_the_interval_has_a_width() -> None:
    values, clusters = np.array([1.0, 0.0] * 60), np.repeat(np.arange(60), 2)  # who always says yes
    assert interval_of_share(values, clusters) == pytest.approx((0.3774, 0.6226), abs=0.0001)  # Wilson's, of 60


def test_one_video_tells_little_of_others() -> None:
    values, clusters = np.array([1.0, 1.0, 1.0, 0.0]), np.zeros(4)
    low, high = interval_of_share(values, clusters)
    assert (low, high) == pytest.approx((0.1179, 0.9854), abs=0.0001)  # Wilson's, of 1
    assert np.isnan(clustered_interval(values, clusters)).all()
