"""Scenes keep their promises: the same by seed, in range, some events at the same time, none hidden."""

from __future__ import annotations

import math
import random
from itertools import groupby, pairwise

import pytest

from longvlm.errors import LongVLMError
from longvlm.world.scene import (
    ACTIONS,
    COLOURS,
    MAX_EVENTS,
    MAX_SIZE,
    MIN_EVENT_SECONDS,
    MIN_SIZE,
    SHAPES,
    SHAPES_THAT_DO_NOT_SPIN,
    TEXTURES,
    Event,
    Scene,
    make_scene,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(1)
    return [make_scene(seed, rng.choice((10.0, 30.0, 77.7, 200.0, 900.0))) for seed in range(300)]


def test_same_seed_same_scene() -> None:
    assert make_scene(5, 60.0) == make_scene(5, 60.0)
    assert make_scene(5, 60.0) != make_scene(6, 60.0)
    assert make_scene(5, 60.0).events[0].object == "green square", "videos made earlier must stay what they were"


def test_the_world_is_as_large_as_promised(scenes: list[Scene]) -> None:
    """What the model card and the documents say of the world; scores mean nothing beside another one's."""
    assert (len(COLOURS), len(SHAPES), MIN_EVENT_SECONDS, MAX_EVENTS) == (8, 10, 4.0, 12)
    assert (MIN_SIZE, MAX_SIZE) == (0.15, 0.45)
    events = [event for scene in scenes for event in scene.events]
    assert {event.colour for event in events} == set(COLOURS)
    assert {event.shape for event in events} == set(SHAPES)
    assert {event.action for event in events} == set(ACTIONS)
    assert {len(scene.events) for scene in scenes} == set(range(2, MAX_EVENTS + 1))
    assert {background.texture for scene in scenes for background in scene.backgrounds} == set(TEXTURES)


def test_most_long_scenes_have_distractors(scenes: list[Scene]) -> None:
    grounds = [background for scene in scenes if scene.duration_seconds >= 200 for background in scene.backgrounds]
    patches = [patch for background in grounds for patch in background.patches]
    flashes = [flash for background in grounds for flash in background.flashes]
    assert len(patches) > len(grounds) / 2 and len(flashes) > len(grounds) / 4
    for one in (*patches, *flashes):
        assert one.start_seconds < one.end_seconds
        assert one.end_seconds > 0 and one.start_seconds < 900.0, "it is to be seen"
    assert all(abs(flash.gain - 1) > 0.1 for flash in flashes)
    assert all((patch.start_x, patch.start_y) != (patch.end_x, patch.end_y) for patch in patches)


def test_events_are_within_bounds(scenes: list[Scene]) -> None:
    for scene in scenes:
        events = scene.events
        assert 2 <= len(events) <= 12
        assert [event.start_seconds for event in events] == sorted(event.start_seconds for event in events)
        assert len({event.object for event in events}) == len(events)
        for event in events:
            assert 0 < event.start_seconds < event.end_seconds < scene.duration_seconds
            assert event.duration_seconds >= MIN_EVENT_SECONDS - 1e-9
            assert all(MIN_SIZE <= size <= MAX_SIZE for size in (event.size, event.end_size))
            assert event.action != "spin" or event.shape not in SHAPES_THAT_DO_NOT_SPIN


def test_actions_do_what_they_say(scenes: list[Scene]) -> None:
    for event in (event for scene in scenes for event in scene.events):
        first, last = event.pose(event.start_seconds), event.pose(event.end_seconds - 1e-6)
        assert first.visible and last.visible
        across, down = last.x - first.x, last.y - first.y
        expected = {
            "left": across < -0.3 and down == 0,
            "right": across > 0.3 and down == 0,
            "up": down < -0.3 and across == 0,
            "down": down > 0.3 and across == 0,
            None: across == down == 0,
        }
        assert expected[event.direction]
        assert (last.size > 1.5 * first.size) == (event.action == "grow")
        assert (last.size < first.size / 1.5) == (event.action == "shrink")
        assert (abs(last.angle_radians - first.angle_radians) > 1.5) == (event.action == "spin")
        moments = [event.pose(event.start_seconds + i / 10) for i in range(int(10 * event.duration_seconds))]
        changes = sum(a.visible != b.visible for a, b in pairwise(moments))
        assert changes >= 2 if event.action == "blink" else changes == 0


def test_one_frame_a_second_catches_every_blink() -> None:
    for tenths in range(40, 240):
        blinking = Event("red", "star", "blink", 0.0, tenths / 10, 0.5, 0.5, 0.5, 0.5, 0.2, 0.2)
        moments = [blinking.pose(i / 100) for i in range(10 * tenths)]
        gone = [len(list(run)) for visible, run in groupby(pose.visible for pose in moments) if not visible]
        assert min(gone) >= 100 - 1, f"{tenths / 10} s"


def test_objects_stay_inside_the_picture(scenes: list[Scene]) -> None:
    for event in (event for scene in scenes for event in scene.events):
        for moment in (event.start_seconds, event.end_seconds - 1e-6):
            pose = event.pose(moment)
            assert pose.size / 2 < pose.x < 1 - pose.size / 2
            assert pose.size / 2 < pose.y < 1 - pose.size / 2


def test_a_fifth_of_the_scenes_overlap_and_nothing_is_hidden(scenes: list[Scene]) -> None:
    assert 0.2 <= sum(any(a.overlaps(b) for a, b in pairwise(scene.events)) for scene in scenes) / len(scenes) <= 0.5
    for scene in scenes:
        for earlier, later in pairwise(scene.events):
            moment, end = later.start_seconds, min(earlier.end_seconds, later.end_seconds)
            while moment < end:
                assert sum(event.is_on(moment) for event in scene.events) <= 2
                one, other = earlier.pose(moment), later.pose(moment)
                apart = math.hypot(one.x - other.x, one.y - other.y)  # in a square; on the long side it is more
                assert 2 * apart > 0.9 * (one.size + other.size), f"{scene.seed}: {earlier.object}, {later.object}"
                moment += 0.1


def test_backgrounds_follow_one_another(scenes: list[Scene]) -> None:
    assert any(len(scene.backgrounds) > 1 for scene in scenes)
    for scene in scenes:
        edges = [0.0]
        for background in scene.backgrounds:
            assert background.start_seconds == edges[-1]
            edges.append(background.end_seconds)
            assert scene.background_at(background.start_seconds) is background
        assert edges[-1] == scene.duration_seconds


@pytest.mark.parametrize(
    ("duration", "num_events"),
    [(3.0, None), (9.0, None), (float("nan"), None), (-1.0, 1), (30.0, 7), (30.0, 0)],
)
def test_impossible_scenes_are_refused(duration: float, num_events: int | None) -> None:
    with pytest.raises(LongVLMError, match=r"duration is|num_events is"):
        make_scene(0, duration, num_events)


def test_a_single_event_can_be_asked_for() -> None:
    assert len(make_scene(0, 10.0, 1).events) == 1
    assert len(make_scene(0, 60.0, 12).events) == 12
