import numpy as np
import pytest
import torch

from longvlm.errors import LongVLMError
from longvlm.training.augmentation import Augmentation
from longvlm.training.drawn_blocks import (
    BlockPlan,
    DrawnBlocks,
    DrawnSegment,
    ShownObjects,
    describe_tokens,
    encode_blocks,
    find_sightings,
    plan_blocks,
    plan_whole_scenes,
)
from longvlm.training.encoder_heads import describe_pose
from longvlm.world.render import NO_EVENT
from longvlm.world.scene import max_events


def test_tokens_are_described_by_what_most_of_their_patches_show() -> None:
    assignment = torch.tensor([0, 0, 0, 1, 1, 2])  # of three frames with two patches each
    patch_events = torch.tensor([NO_EVENT, 1, 1, NO_EVENT, 1, 0])
    patch_poses = torch.arange(1.0, 7.0)[:, None].expand(6, 5) * (patch_events >= 0)[:, None]
    shown = ShownObjects(patch_events, patch_poses, num_frames=3)
    events, poses, frames = describe_tokens(assignment, shown, 3)
    assert events.tolist() == [1, NO_EVENT, 0]
    assert poses[:, 0].tolist() == [2.5, 0.0, 6.0]
    assert frames.tolist() == [0.5, 1.0, 2.0]
    events, poses, frames = describe_tokens(assignment, shown, 3, background_weight=0.5)
    assert events.tolist() == [1, 1, 0]
    assert poses[:, 0].tolist() == [2.5, 5.0, 6.0]
    nothing = ShownObjects(torch.full((6,), NO_EVENT), torch.zeros(6, 5), num_frames=3)
    for weight in (0.0, 1.0):
        events, poses, frames = describe_tokens(assignment, nothing, 3, background_weight=weight)
        assert events.tolist() == [NO_EVENT] * 3
        assert not poses.any()
        assert frames.tolist() == pytest.approx([1 / 3, 1.5, 2.0])


def test_sightings_are_the_frames_of_the_patches_that_show_the_tokens_object() -> None:
    assignment = torch.tensor([0, 0, 0, 1, 1, 2, 0, 1])  # of four frames with two patches each
    patch_events = torch.tensor([1, 0, 1, NO_EVENT, NO_EVENT, 0, 1, 1])
    shown = ShownObjects(patch_events, torch.zeros(8, 5), num_frames=4)
    events, _, _ = describe_tokens(assignment, shown, 3)
    assert events.tolist() == [1, NO_EVENT, 0]
    expected = [[True, True, False, True], [False] * 4, [False, False, True, False]]
    assert find_sightings(assignment, shown, events).tolist() == expected


def test_patches_are_named_where_the_drawn_object_is() -> None:
    plan = next(plan for plan in plan_blocks(24, [1], first_seed=900_000, segment_seconds=10.0) if plan.num_events)
    (segment,) = DrawnBlocks([plan], 112, 14, 10, 1.0)[0]
    scene = plan.scene(10.0)
    shown = segment.shown.events.view(10, 8, 8)
    for i, time_seconds in enumerate(segment.frames.times_seconds):
        on_screen = {k for k, event in enumerate(scene.events) if event.pose(time_seconds).visible}
        assert set(shown[i].unique().tolist()) - {NO_EVENT} == on_screen
        for k in on_screen:
            pose = scene.events[k].pose(time_seconds)
            rows, columns = torch.nonzero(shown[i] == k, as_tuple=True)
            centre = ((columns.float().mean() + 0.5) / 8, (rows.float().mean() + 0.5) / 8)
            assert centre == pytest.approx((pose.x, pose.y), abs=0.1)
            described = segment.shown.poses.view(10, 8, 8, 5)[i][shown[i] == k]
            assert torch.equal(described, torch.tensor([describe_pose(scene.events[k], time_seconds)] * len(described)))
        assert not segment.shown.poses.view(10, 8, 8, 5)[i][shown[i] == NO_EVENT].any()


def test_blocks_are_worn_as_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = plan_blocks(1, [1], first_seed=900_000, segment_seconds=10.0)
    drawn = []
    for worn in (Augmentation(), Augmentation(scale=0.5)):
        monkeypatch.setattr("longvlm.training.drawn_blocks.draw_augmentation", lambda rng, worn=worn: worn)
        (segment,) = DrawnBlocks(plans, 56, 14, 10, 1.0)[0]
        drawn.append(segment.frames.pixels.permute(0, 2, 3, 1).numpy())
    for clean, blurred in zip(*drawn, strict=True):
        assert np.array_equal(Augmentation(scale=0.5).apply(clean), blurred)
    assert not np.array_equal(*drawn)


def _mean_pixels(block: list[DrawnSegment]) -> tuple[torch.Tensor, ...]:
    return torch.stack([segment.frames.pixels.float().mean((1, 2, 3)) for segment in block]), torch.tensor(len(block))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_blocks_come_in_order_from_any_number_of_processes(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    plans = plan_blocks(7, [1, 2], first_seed=900_000, segment_seconds=10.0)
    blocks = DrawnBlocks(plans, 28, 14, 10, 1.0)
    encoded = list(encode_blocks(blocks, _mean_pixels, "testing"))
    assert [int(count) for _, count in encoded] == [plan.num_segments for plan in plans]
    for (means, _), number in zip(encoded, range(len(plans)), strict=True):
        assert torch.equal(means, _mean_pixels(blocks[number])[0])


def test_a_short_last_segment_repeats_its_frames() -> None:
    plan = BlockPlan(900_003, num_segments=2, num_events=2, short_by_seconds=7.0)
    first, last = DrawnBlocks([plan], 56, 14, 10, 1.0)[0]
    assert (first.frames.num_distinct, last.frames.num_distinct) == (10, 3)
    assert last.frames.times_seconds == (10, 10, 10, 10, 11, 11, 11, 12, 12, 12)
    scene = plan.scene(10.0)
    assert scene.duration_seconds == 13.0
    shown = last.shown.events.view(10, -1)
    for place, time_seconds in enumerate(last.frames.times_seconds):
        assert torch.equal(last.frames.pixels[place], last.frames.pixels[last.frames.times_seconds.index(time_seconds)])
        assert torch.equal(shown[place], shown[last.frames.times_seconds.index(time_seconds)])
        on_screen = {k for k, event in enumerate(scene.events) if event.pose(time_seconds).visible}
        assert set(shown[place].tolist()) - {NO_EVENT} <= on_screen
    assert not torch.equal(last.frames.pixels[0], last.frames.pixels[4])


def test_whole_scenes_are_as_evaluation_draws_them() -> None:
    plans = plan_whole_scenes(300, (3, 12), first_seed=900_000, segment_seconds=10.0)
    assert {plan.num_segments for plan in plans} == set(range(3, 13)) and all(plan.is_whole for plan in plans)
    assert sum(plan.num_segments <= 6 for plan in plans) == pytest.approx(150, abs=40)  # log-uniformly
    for plan in plans:
        scene = plan.scene(10.0)
        assert 10 * (plan.num_segments - 1) < scene.duration_seconds <= 10 * plan.num_segments
        assert 2 <= len(scene.events) == plan.num_events <= max_events(scene.duration_seconds)
    assert plan_whole_scenes(2, (3, 12), first_seed=900_000, segment_seconds=10.0) == plans[:2]
    (*_, last) = DrawnBlocks([BlockPlan(1, 3, 3, 9.5, is_whole=True)], 28, 14, 10, 1.0)[0]
    assert last.frames.times_seconds == (20.0,) * 10  # a file of 20.5 s has a frame there, too
    assert last.frames.num_distinct == 1
    short = plan_whole_scenes(50, (2, 3), first_seed=0, segment_seconds=5.0)
    assert min(plan.num_events for plan in short) == 1  # a video of 5.5 s has room for no more


def test_short_segments_end_where_an_event_still_fits() -> None:
    plans = plan_blocks(200, [1, 2], first_seed=0, segment_seconds=5.0)
    assert {plan.short_by_seconds for plan in plans if plan.num_segments == 1} == {0}
    assert max(plan.short_by_seconds for plan in plans) == 4
    assert all(plan.scene(5.0).duration_seconds == 5 * plan.num_segments - plan.short_by_seconds for plan in plans)
    with pytest.raises(LongVLMError, match="A segment of 4 s has no room for an event"):
        plan_blocks(1, [1], first_seed=0, segment_seconds=4.0)
