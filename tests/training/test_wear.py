import random

import numpy as np
import pytest

from longvlm.training.wear import Wear, draw_wear
from longvlm.world.render import render_frame
from longvlm.world.scene import make_scene


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return render_frame(make_scene(3, 30.0), 8.0, 112, 112)


def test_an_unworn_picture_is_as_it_was(picture: np.ndarray) -> None:
    assert np.array_equal(Wear().apply(picture), picture)


def test_each_wear_changes_the_picture_a_little(picture: np.ndarray) -> None:
    for wear in (Wear(scale=0.6), Wear(quality=25)):
        worn = wear.apply(picture)
        assert (worn.shape, worn.dtype) == (picture.shape, np.uint8)
        assert 0.3 < np.abs(worn.astype(float) - picture).mean() < 12


def test_a_mark_is_white_and_stays_in_its_corner(picture: np.ndarray) -> None:
    worn = Wear(mark=("NEWS", 0.8, 0.06, 0.08)).apply(picture)
    rows, columns = np.nonzero((worn != picture).any(-1))
    assert rows.max() < 0.15 * 112 and columns.min() > 0.55 * 112
    assert worn[rows, columns].max() > 230


def test_wear_is_drawn_from_the_seed_and_all_kinds_occur() -> None:
    drawn = [draw_wear(random.Random(seed)) for seed in range(300)]
    assert drawn == [draw_wear(random.Random(seed)) for seed in range(300)]
    for kind in ("scale", "quality", "mark"):
        assert 20 < sum(getattr(wear, kind) is not None for wear in drawn) < 200
    assert Wear() in drawn
