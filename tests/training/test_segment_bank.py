import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from longvlm.stages.tokens import average_globals
from longvlm.stages.vision import VisionEncoder
from longvlm.training.drawn_blocks import BlockPlan, plan_blocks, plan_whole_scenes
from longvlm.training.segment_bank import SegmentBank
from longvlm.types import Compression
from longvlm.world.render import NO_EVENT
from longvlm.world.scene import ACTIONS, Scene, make_scene

COMPRESSION = Compression(frames_per_segment=10, tokens_per_segment=4, global_layers=2, merge_heads=2)


@pytest.fixture(scope="module")
def bank() -> SegmentBank:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    encoder = VisionEncoder(
        CLIPVisionModel(config),
        feature_layer=-2,
        select_strategy="default",
        global_layers=COMPRESSION.global_layers,
        image_mean=(0.5,) * 3,
        image_std=(0.25,) * 3,
    )
    plans = plan_blocks(24, [1, 1, 2, 3], first_seed=900_000, segment_seconds=10.0)
    return SegmentBank.encode(plans, encoder, COMPRESSION)


def test_a_block_has_the_segments_and_events_that_were_planned(bank: SegmentBank) -> None:
    assert len(bank.local) == len(bank.layer_globals) == sum(plan.num_segments for plan in bank.plans)
    for plan, scene in zip(bank.plans, bank.scenes, strict=True):
        assert scene.duration_seconds == 10.0 * plan.num_segments - plan.short_by_seconds
        assert len(scene.events) == plan.num_events
    assert {plan.num_events for plan in bank.plans} >= {0, 1, 2}


def test_a_joined_video_is_its_blocks_one_after_another(bank: SegmentBank) -> None:
    eventful = [i for i, plan in enumerate(bank.plans) if plan.num_events]
    ends = {i: bank.plans[i].short_by_seconds for i in eventful}
    blocks = [next(i for i in eventful if not ends[i]), next(i for i in eventful if ends[i])]
    video = bank._join(blocks)
    scene = video.scene
    first, second = (bank.scenes[block] for block in blocks)
    assert scene.duration_seconds == first.duration_seconds + second.duration_seconds
    starts = [event.start_seconds for event in first.events]
    starts += [event.start_seconds + first.duration_seconds for event in second.events]
    assert [event.start_seconds for event in scene.events] == pytest.approx(starts)
    rows = [row for b in blocks for row in range(bank.first_segment[b], bank.first_segment[b + 1])]
    weights = torch.ones(len(rows))
    weights[-1] = 1 - ends[blocks[1]] / 10
    global_tokens = average_globals(bank.layer_globals[rows], weights)
    assert torch.equal(video.visual_tokens, torch.cat([global_tokens, *bank.local[rows]]))


def test_the_events_of_a_joined_videos_tokens_are_those_of_its_scene(bank: SegmentBank) -> None:
    shows = [(bank.token_events[a:b] != NO_EVENT).any() for a, b in pairwise(bank.first_segment)]
    several = [i for i, plan in enumerate(bank.plans) if plan.num_segments > 1 and shows[i]][:2]
    video = bank._join(several)
    names = [None if i == NO_EVENT else video.scene.events[i].object for i in video.token_events.tolist()]
    expected: list[str | None] = [None] * COMPRESSION.global_layers
    for block in several:
        rows = bank.token_events[bank.first_segment[block] : bank.first_segment[block + 1]].flatten().tolist()
        expected += [None if i == NO_EVENT else bank.scenes[block].events[i].object for i in rows]
    assert names == expected
    assert len(set(expected)) > 1
    rows = torch.cat([torch.arange(bank.first_segment[b], bank.first_segment[b + 1]) for b in several])
    assert torch.equal(video.token_poses[COMPRESSION.global_layers :], bank.token_poses[rows].flatten(0, 1))
    assert not video.token_poses[: COMPRESSION.global_layers].any()
    frames = [10 * i + frame for i, row in enumerate(bank.token_frames[rows].tolist()) for frame in row]
    assert video.token_frames.tolist() == pytest.approx([0.0] * COMPRESSION.global_layers + frames)
    assert bank.token_sightings is not None and video.token_sightings is not None
    assert torch.equal(video.token_sightings[COMPRESSION.global_layers :], bank.token_sightings[rows].flatten(0, 1))
    assert not video.token_sightings[: COMPRESSION.global_layers].any()
    assert torch.equal(bank.token_sightings.any(2), bank.token_events != NO_EVENT)


@pytest.mark.parametrize("num_segments", [1, 3, 7])
def test_composed_videos_have_the_length_asked_for_and_no_object_twice(bank: SegmentBank, num_segments: int) -> None:
    for seed in range(5):
        video = bank.compose(num_segments, random.Random(seed))
        scene, tokens = video.scene, video.visual_tokens
        assert len(video.token_events) == len(tokens)
        numbers = [i + 1 for i in range(num_segments) for _ in range(4)]
        assert video.token_segments.tolist() == [0] * COMPRESSION.global_layers + numbers
        assert 10.0 * (num_segments - 1) < scene.duration_seconds <= 10.0 * num_segments
        assert tokens.shape == (2 + 4 * num_segments, 32)
        objects = [event.object for event in scene.events]
        assert len(objects) == len(set(objects))


def test_a_saved_bank_composes_the_same_videos(bank: SegmentBank, tmp_path: Path) -> None:
    bank.save(tmp_path / "bank.safetensors")
    again = SegmentBank.load(tmp_path / "bank.safetensors")
    video, same = bank.compose(5, random.Random(1)), again.compose(5, random.Random(1))
    assert video.scene == same.scene
    assert torch.equal(video.visual_tokens, same.visual_tokens)
    for name in ("token_events", "token_poses", "token_frames", "token_segments", "token_sightings"):
        assert torch.equal(getattr(video, name), getattr(same, name))
    joined = SegmentBank.join([bank, again])
    assert joined.token_sightings is not None and len(joined.token_sightings) == 2 * len(bank.local)


def test_a_bank_need_not_know_of_sightings(bank: SegmentBank, tmp_path: Path) -> None:
    known = (bank.local, bank.layer_globals, bank.token_events, bank.token_poses, bank.token_frames)
    SegmentBank(bank.plans, *known, segment_seconds=10.0, frames_per_segment=10).save(tmp_path / "bank.safetensors")
    again = SegmentBank.load(tmp_path / "bank.safetensors")
    assert again.token_sightings is None
    assert again.compose(5, random.Random(1)).leave_out_empty(2, 10.0, random.Random(1)).token_sightings is None


def test_a_part_of_the_bank_has_the_same_segments(bank: SegmentBank) -> None:
    part = bank.with_actions(ACTIONS)
    empty = [plan for plan, scene in zip(bank.plans, bank.scenes, strict=True) if not scene.events]
    assert part.plans == [plan for plan in bank.plans if plan not in empty[1::2]]
    for block, plan in enumerate(part.plans):
        whole = bank.plans.index(plan)
        rows, same = (range(b.first_segment[i], b.first_segment[i + 1]) for b, i in ((part, block), (bank, whole)))
        for name in ("local", "layer_globals", "token_events", "token_poses", "token_frames", "token_sightings"):
            assert torch.equal(getattr(part, name)[rows], getattr(bank, name)[same]), name


def test_empty_segments_are_left_out_and_the_others_keep_their_places(bank: SegmentBank) -> None:
    for seed in range(20):
        video = bank.compose(30, random.Random(seed))
        shown = video.leave_out_empty(12, 10.0, random.Random(seed))
        assert (video.num_segments, shown.num_places) == (30, video.num_places)
        numbers = shown.token_segments.unique().tolist()
        assert numbers[0] == 0 and shown.num_segments == len(numbers) - 1
        busy = {
            n
            for n in range(1, 31)
            if any(e.start_seconds < 10 * n and e.end_seconds > 10 * n - 10 for e in video.scene.events)
        }
        assert busy <= set(numbers) and shown.num_segments == max(12, len(busy))
        assert shown.scene is video.scene
        assert torch.equal(shown.visual_tokens, video.visual_tokens[shown.token_places])
        for name in ("token_events", "token_poses", "token_frames", "token_segments", "token_sightings"):
            assert torch.equal(getattr(shown, name), getattr(video, name)[shown.token_places]), name
    whole = video.leave_out_empty(30, 10.0, random.Random(0))
    assert torch.equal(whole.token_places, torch.arange(whole.num_places))


def test_noise_falls_on_local_tokens_as_wide_as_is_said(bank: SegmentBank) -> None:
    assert torch.equal(bank.feature_spread, bank.local.reshape(-1, 32).std(0))
    video, spread = bank.compose(60, random.Random(0)), torch.linspace(0, 2, 32)
    noisy = video.add_noise(spread, random.Random(1))
    noise = noisy.visual_tokens - video.visual_tokens
    num_globals = COMPRESSION.global_layers
    assert not noise[:num_globals].any()
    torch.testing.assert_close(noise[num_globals:].std(0), spread, rtol=0.2, atol=1e-6)
    assert noise.mean().abs() < 0.1
    again, other = (video.add_noise(spread, random.Random(seed)) for seed in (1, 2))
    assert torch.equal(again.visual_tokens, noisy.visual_tokens)
    assert not torch.equal(other.visual_tokens, noisy.visual_tokens)


def undrawn(plans: list[BlockPlan]) -> SegmentBank:
    shape = (sum(plan.num_segments for plan in plans), 1)
    zeros = torch.zeros(*shape, 2), torch.zeros(*shape, 2), torch.full(shape, NO_EVENT), torch.zeros(*shape, 5)
    return SegmentBank(plans, *zeros, torch.zeros(shape), segment_seconds=10.0, frames_per_segment=10)


BLOCK_LENGTHS = [1, 1, 2, 2, 3, 4, 6]


@pytest.fixture(scope="module")
def large_bank() -> SegmentBank:
    """Of blocks that nobody has drawn."""
    return undrawn(plan_blocks(1500, BLOCK_LENGTHS, first_seed=900_000, segment_seconds=10.0))


def test_most_videos_of_some_lengths_are_whole_scenes(large_bank: SegmentBank, tmp_path: Path) -> None:
    scenes = plan_whole_scenes(400, (3, 12), first_seed=950_000, segment_seconds=10.0)
    bank = undrawn([*large_bank.plans, *scenes])
    bank.save(tmp_path / "bank.safetensors")
    assert SegmentBank.load(tmp_path / "bank.safetensors").plans == bank.plans

    def lasting_beyond_a_segment(some: list[Scene]) -> float:
        events = [event for scene in some for event in scene.events]
        return sum(event.start_seconds // 10 < (event.end_seconds - 1e-6) // 10 for event in events) / len(events)

    for segments in (3, 6, 12, 13):
        composed = [bank.compose(segments, random.Random(seed)) for seed in range(200)]
        assert all(video.num_segments == segments for video in composed)
        whole = [video.scene.seed >= 950_000 for video in composed]
        assert sum(whole) / len(whole) == pytest.approx(0.0 if segments == 13 else 0.7, abs=0.08)
    joined = [large_bank.compose(6, random.Random(seed)).scene for seed in range(200)]
    drawn = [make_scene(seed, 57.0) for seed in range(200)]
    own = [bank.compose(6, random.Random(seed)).scene for seed in range(200)]
    shares = [lasting_beyond_a_segment(some) for some in (joined, own, drawn)]
    assert shares[0] < 0.6 * shares[2] and shares[1] > 0.75 * shares[2]


@pytest.mark.parametrize("seconds", [30, 60, 180, 600])
def test_joined_videos_have_as_many_events_as_drawn_ones_and_as_long(large_bank: SegmentBank, seconds: int) -> None:
    joined = [large_bank.compose(seconds // 10, random.Random(seed)).scene for seed in range(150)]
    drawn = [make_scene(seed, float(seconds)) for seed in range(150)]
    counts, others = (torch.tensor([float(len(scene.events)) for scene in some]) for some in (joined, drawn))
    assert counts.mean() == pytest.approx(others.mean().item(), abs=0.9)
    assert counts.std() == pytest.approx(others.std().item(), rel=0.25)
    assert (counts.min(), counts.max()) == (2, others.max())
    lengths, other_lengths = (
        torch.tensor([event.duration_seconds for scene in some for event in scene.events]) for some in (joined, drawn)
    )
    assert lengths.log().mean().exp() == pytest.approx(other_lengths.log().mean().exp().item(), rel=0.25)
    whole = [scene.duration_seconds % 10 == 0 for scene in joined]
    assert sum(whole) / len(whole) == pytest.approx(0.1, abs=0.1)
