import random

import numpy as np
import pytest

from longvlm.training.augmentation import Augmentation, draw_augmentation
from longvlm.world.render import render_frame
from longvlm.world.scene import make_scene


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return render_frame(make_scene(3, 30.0), 8.0, 112, 112)


def test_an_unchanged_picture_is_as_it_was(picture: np.ndarray) -> None:
    assert np.array_equal(Augmentation().apply(picture), picture)


def test_each_augmentation_changes_the_picture_a_little(picture: np.ndarray) -> None:
    for augmentation in (Augmentation(scale=0.6), Augmentation(quality=25)):
        augmented = augmentation.apply(picture)
        assert (augmented.shape, augmented.dtype) == (picture.shape, np.uint8)
        assert 0.3 < np.abs(augmented.astype(float) - picture).mean() < 12


def test_a_mark_is_white_and_stays_in_its_corner(picture: np.ndarray) -> None:
    augmented = Augmentation(mark=("NEWS", 0.8, 0.06, 0.08)).apply(picture)
    rows, columns = np.nonzero((augmented != picture).any(-1))
    assert rows.max() < 0.15 * 112 and columns.min() > 0.55 * 112
    assert augmented[rows, columns].max() > 230


def test_augmentations_are_drawn_from_the_seed_and_all_kinds_occur() -> None:
    drawn = [draw_augmentation(random.Random(seed)) for seed in range(300)]
    assert drawn == [draw_augmentation(random.Random(seed)) for seed in range(300)]
    for kind in ("scale", "quality", "mark"):
        assert 20 < sum(getattr(augmentation, kind) is not None for augmentation in drawn) < 200
    assert Augmentation() in drawn
