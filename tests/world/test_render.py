"""Pictures agree with the events they show."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from longvlm.errors import LongVLMError
from longvlm.world.render import render_frame, render_labelled
from longvlm.world.scene import COLOURS, SHAPES, Background, Event, Flash, Patch, Scene, make_scene


def test_frames_depend_on_scene_and_time_alone() -> None:
    scene, other = make_scene(3, 40.0), make_scene(4, 40.0)
    times = [0.0, 3.2, 11.04, 25.6, 39.96]
    forwards = [render_frame(scene, time, 96, 64) for time in times]
    backwards = []
    for time in reversed(times):
        render_frame(other, time, 48, 48)
        backwards.append(render_frame(scene, time, 96, 64))
    for one, same in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(one, same)
    assert (forwards[0] != forwards[1]).any()


@pytest.mark.parametrize(("width", "height"), [(112, 112), (1, 1), (33, 70), (160, 90)])
def test_any_size(width: int, height: int) -> None:
    scene = make_scene(8, 30.0)
    frame, labels = render_labelled(scene, scene.events[0].start_seconds + 1, width, height)
    assert frame.shape == (height, width, 3) and frame.dtype == np.uint8
    assert labels.shape == (height, width) and labels.dtype == np.int16
    np.testing.assert_array_equal(frame, render_frame(scene, scene.events[0].start_seconds + 1, width, height))


def test_empty_pictures_are_refused() -> None:
    with pytest.raises(LongVLMError, match="0x10"):
        render_frame(make_scene(0, 20.0), 0.0, 0, 10)


def test_distractors_change_the_picture_and_are_not_labelled() -> None:
    """Each alone against the same scene without: a moving patch, a flash, and a cut to another background."""
    bare = dataclasses.replace(make_scene(0, 20.0), events=(), shake=0.0, noise_levels=0.0)
    ground = dataclasses.replace(bare.backgrounds[0], start_seconds=0.0, end_seconds=20.0, patches=(), flashes=())
    patch = Patch(5.0, 15.0, 0.3, 0.5, 0.7, 0.5, 0.1, 0.1, (250, 250, 250), 0.5)
    flashing = dataclasses.replace(ground, flashes=(Flash(9.0, 11.0, 1.6),))
    cut = (dataclasses.replace(ground, end_seconds=8.0), dataclasses.replace(ground, start_seconds=8.0, seed=99))
    plain = _frames(bare, (ground,))
    for grounds, changed in (
        ((dataclasses.replace(ground, patches=(patch,)),), (7.0, 10.0, 13.0)),
        ((flashing,), (10.0,)),
        (cut, (10.0, 13.0, 18.0)),
    ):
        frames = _frames(bare, grounds)
        assert [time for time in plain if (frames[time] != plain[time]).any()] == list(changed)
    with_patch = _frames(bare, (dataclasses.replace(ground, patches=(patch,)),))
    middles = [np.nonzero((with_patch[time] != plain[time]).any(axis=(0, 2)))[0].mean() for time in (7.0, 10.0, 13.0)]
    assert middles == sorted(middles) and middles[-1] - middles[0] > 15, "it moves"
    assert _frames(bare, (flashing,))[10.0].mean() > 1.2 * plain[10.0].mean()


@pytest.mark.parametrize("what", ["light", "camera", "tremble", "noise"])
def test_each_of_these_alone_changes_a_still_picture(what: str) -> None:
    """Drifting light, the camera's swing and its tremble, and the sensor's noise, against a scene with none of them."""
    still = dataclasses.replace(_still_life("star"), noise_levels=0.0)
    ground = dataclasses.replace(
        still.backgrounds[0], start_seconds=0.0, end_seconds=12.0, patches=(), flashes=(), light_strength=0.0
    )
    if what == "light":
        ground = dataclasses.replace(ground, light_strength=0.2, light_seconds=6.0)
    ground = dataclasses.replace(ground, pan_seconds=(8.0, 9.0) if what == "camera" else (1e9, 1e9))
    changes = {"tremble": {"shake": 0.03}, "noise": {"noise_levels": 5.0}}.get(what, {})

    def change(scene: Scene) -> np.ndarray:
        frames = [render_frame(scene, time, 96, 96).astype(float) for time in (1.0, 3.0)]
        return np.abs(frames[1] - frames[0])

    plain = dataclasses.replace(ground, light_strength=0.0, pan_seconds=(1e9, 1e9))
    assert change(dataclasses.replace(still, backgrounds=(plain,))).max() == 0
    changed = change(dataclasses.replace(still, backgrounds=(ground,), **changes)) > 0
    assert changed.mean() > (0.02 if what == "tremble" else 0.5)
    if what == "tremble":
        assert not changed[:10].any(), "of objects alone"


def _frames(scene: Scene, grounds: tuple[Background, ...]) -> dict[float, np.ndarray]:
    shown = dataclasses.replace(scene, backgrounds=grounds)
    drawn = {time: render_labelled(shown, time, 96, 72) for time in (2.0, 7.0, 10.0, 13.0, 18.0)}
    assert all((labels == -1).all() for _, labels in drawn.values())
    return {time: frame for time, (frame, _) in drawn.items()}


def test_labels_are_where_the_events_are() -> None:
    for seed in range(25):
        scene = make_scene(seed, 60.0)
        for time in np.arange(0.25, 60, 4.7):
            _, labels = render_labelled(scene, float(time), 112, 112)
            seen = {int(index) for index in np.unique(labels)} - {-1}
            assert seen == {i for i, event in enumerate(scene.events) if event.pose(float(time)).visible}
            for index in seen:
                pose = scene.events[index].pose(float(time))
                rows, columns = np.nonzero(labels == index)
                middle = (columns.min() + columns.max() + 1) / 224, (rows.min() + rows.max() + 1) / 224
                if len(seen) == 1:  # a neighbour may cover an edge
                    assert middle == pytest.approx((pose.x, pose.y), abs=0.03 + 0.12 * pose.size)
                    extent = max(np.ptp(rows), np.ptp(columns)) + 1
                    assert 0.75 * pose.size < extent / 112 < 1.25 * pose.size + 0.02


def test_labelled_pixels_have_the_object_s_colour() -> None:
    names, palette = list(COLOURS), np.array(list(COLOURS.values()), dtype=float)
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    right = total = 0
    for seed in range(30):
        scene = make_scene(seed, 60.0)
        for index, event in enumerate(scene.events):
            frame, labels = render_labelled(scene, event.start_seconds + 0.1, 112, 112)
            colour = frame[labels == index].mean(axis=0)
            right += names[int(np.argmax(palette @ (colour / np.linalg.norm(colour))))] == event.colour
            total += 1
    assert right / total > 0.97, "hues must survive light, tint and noise"


def _still_life(shape: str) -> Scene:
    event = Event("white", shape, "stay", 0.0, 10.0, 0.5, 0.5, 0.5, 0.5, 0.45, 0.45, rgb=(242, 242, 242))
    return dataclasses.replace(make_scene(0, 12.0), events=(event,), shake=0.0)


def test_shapes_differ_from_one_another() -> None:
    masks = [render_labelled(_still_life(shape), 1.0, 112, 112)[1] == 0 for shape in SHAPES]
    for i, one in enumerate(masks):
        assert one.sum() > 250
        for other in masks[:i]:
            assert (one & other).sum() / (one | other).sum() < 0.85


def test_a_squashed_picture_is_the_wide_picture_squashed() -> None:
    scene = _still_life("square")
    _, wide = render_labelled(scene, 1.0, 224, 112)
    _, squashed = render_labelled(scene, 1.0, 112, 112, display_aspect=2.0)
    assert (wide == 0).sum() == pytest.approx(2 * (squashed == 0).sum(), rel=0.05)
    assert (wide[:, ::2] != squashed).mean() < 0.01
