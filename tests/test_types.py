"""What segments say of frames that are repeated."""

from __future__ import annotations

import torch

from longvlm.types import FrameFeatures, fill_places


def test_a_short_segment_is_filled_evenly() -> None:
    assert fill_places(3, 10) == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert fill_places(4, 4) == [0, 1, 2, 3]
    assert fill_places(1, 3) == [0, 0, 0]


def test_repeated_frames_do_not_weigh_in_the_mean() -> None:
    layer_globals = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [5.0, 10.0]])[:, None]  # of 2 frames, one layer
    features = FrameFeatures(torch.zeros(4, 1, 2), layer_globals, (7.0, 7.0, 7.0, 8.0), num_distinct=2)
    assert features.mean_globals.tolist() == [[3.0, 6.0]]
