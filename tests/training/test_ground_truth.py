import random

import pytest
import torch

from longvlm.training.ground_truth import (
    RECALL_SIZES,
    STATE_SIZES,
    NameFinder,
    describe_motions,
    describe_names,
    describe_recalls,
    describe_sightings,
    describe_states,
    find_events,
    find_latest,
    list_names,
)
from longvlm.training.untrained_model import build_tokenizer
from longvlm.world.render import NO_EVENT
from longvlm.world.scene import ACTIONS, COLOURS, MAX_EVENTS, SHAPES, Event, Scene, make_scene

NONE = (len(COLOURS), len(SHAPES))
NO_ACTION = len(ACTIONS)


def kind_of(event: Event) -> tuple[int, int]:
    return list(COLOURS).index(event.colour), SHAPES.index(event.shape)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(3, 60.0, num_events=3)


def test_states_are_what_was_shown_so_far(scene: Scene) -> None:
    a, b, c = map(kind_of, scene.events)
    does = [ACTIONS.index(event.action) for event in scene.events]
    # The third object is seen before the second, which began earlier: the third stays the newest.
    shown, segments = torch.tensor([NO_EVENT, 0, NO_EVENT, 2, 1, 0]), torch.tensor([0, 1, 2, 3, 7, 10_000])
    states = describe_states(scene, shown, segments)
    assert [tuple(row) for row in states.tolist()] == [
        (*NONE, *NONE, *NONE, *NONE, NO_ACTION, 0, 0),
        (*a, *a, *NONE, *a, does[0], 1, 4),
        (*NONE, *a, *NONE, *a, NO_ACTION, 1, 6),
        (*c, *c, *a, *a, does[2], 2, 8),
        (*b, *c, *b, *a, does[1], 3, 12),
        (*a, *c, *b, *a, does[0], 3, 39),
    ]
    assert all(int(column.max()) < size for column, size in zip(states.unbind(1), STATE_SIZES, strict=True))


def test_motions_are_how_a_pose_differs_from_those_before() -> None:
    shown = torch.tensor([NO_EVENT, 0, 0, 1, 0, NO_EVENT, 0])
    frames = torch.tensor([0.0, 0.0, 0.2, 1.0, 1.5, 2.0, 9.0])
    poses = torch.tensor([0.0, 1.0, 3.0, 7.0, 5.0, 0.0, 2.0])[:, None] * torch.arange(1.0, 6.0)
    motions = describe_motions(shown, poses, frames)
    one_pose = torch.arange(1.0, 6.0)
    nothing = torch.zeros(5)
    expected = [
        (nothing, nothing, nothing, 0.0),
        (one_pose, nothing, nothing, 0.0),
        (3 * one_pose, 2.5 * 2 * one_pose, nothing, 0.0),  # of the same frame: there is a mean, and no frame before
        (7 * one_pose, nothing, nothing, 0.0),
        (5 * one_pose, 2.5 * 3 * one_pose, 2.5 * 3 * one_pose, 1.4),  # both of the frame before count
        (nothing, nothing, nothing, 0.0),
        (2 * one_pose, -2.5 * one_pose, -2.5 * 3 * one_pose, 4.0),  # at most 4 frames
    ]
    rows = [torch.cat([*pose_and_changes, torch.tensor([since])]) for *pose_and_changes, since in expected]
    torch.testing.assert_close(motions, torch.stack(rows))


def test_sightings_add_up_within_a_segment_and_gaps_in_it_and_over_all() -> None:
    """The first object is gone in the second frame of four; the second one stays, though its last token comes early."""
    shown = torch.tensor([NO_EVENT, 0, 1, 0, 1, NO_EVENT, 1, 0])
    segments = torch.tensor([0, 1, 1, 1, 1, 1, 2, 2])
    frames = [[], [0], [0, 2], [2, 3], [1, 3], [], [0], [0]]
    sightings = torch.tensor([[frame in those for frame in range(4)] for those in frames])
    seen, were_gone = describe_sightings(shown, segments, sightings)
    so_far = [[], [0], [0, 2], [0, 2, 3], [0, 1, 2, 3], [], [0], [0]]
    assert [row.nonzero().flatten().tolist() for row in seen] == so_far
    in_segment, in_video = were_gone.unbind(1)
    assert in_segment.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert in_video.tolist() == [0, 0, 0, 1, 0, 0, 0, 1]


def test_the_latest_are_those_of_the_last_frame_that_is_not_this_one() -> None:
    earlier = torch.ones(4, 4, dtype=torch.bool).tril(-1)
    latest = find_latest(earlier, torch.tensor([0.0, 2.0, 2.25, 3.0]))
    assert torch.nonzero(latest).tolist() == [[1, 0], [2, 0], [3, 1], [3, 2]]


def test_recalls_are_what_the_whole_video_says_of_a_name(scene: Scene) -> None:
    a, b, c = map(kind_of, scene.events)
    does = [ACTIONS.index(event.action) for event in scene.events]
    names = [scene.events[i].object for i in (2, 0, 1)]
    absent = next(f"{x} {y}" for x in COLOURS for y in SHAPES if f"{x} {y}" not in names)
    rows = describe_recalls(scene, [*names, absent]).tolist()
    assert [tuple(row[:-2]) for row in rows] == [
        (1, *NONE, *b, does[2]),
        (1, *b, *NONE, does[0]),
        (1, *c, *a, does[1]),
        (0, *NONE, *NONE, NO_ACTION),
    ]
    for event, third in ((scene.events[2], rows[0][-2]), (scene.events[0], rows[1][-2])):
        whole = [k for k in range(3) if 20 * k <= event.start_seconds and event.end_seconds <= 20 * (k + 1)]
        assert third == (whole[0] if whole else 3)
    assert rows[3][-2] == 3
    assert [row[-1] for row in rows] == [2, 0, 1, MAX_EVENTS]
    assert describe_recalls(scene, []).shape == (0, len(RECALL_SIZES))


def test_all_objects_that_appear_are_among_the_names(scene: Scene) -> None:
    there = {event.object for event in scene.events}
    for seed in range(20):
        names = list_names(scene, random.Random(seed))
        assert len(set(names)) == len(names) == 12
        assert there < set(names)


def test_names_are_described_by_their_events_colours_and_shapes(scene: Scene) -> None:
    names = [scene.events[1].object, scene.events[0].object, "no such"]
    assert find_events(scene, names).tolist() == [1, 0, NO_EVENT]
    assert describe_names(names[:2]).tolist() == [list(kind_of(scene.events[1])), list(kind_of(scene.events[0]))]
    assert find_events(scene, []).shape == (0,) and describe_names([]).shape == (0, 2)


def test_names_are_found_where_they_end() -> None:
    tokenizer = build_tokenizer()
    text = "What appears after the red circle? A blue star, then a pink heart. red, star circle"
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    is_name, names = NameFinder(tokenizer).find(ids)
    assert names == ["red circle", "blue star", "pink heart"]
    assert tokenizer.convert_ids_to_tokens(ids[is_name].tolist()) == ["circle", "star", "heart"]
