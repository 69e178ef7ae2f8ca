import random
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from longvlm.stages.tokens import average_globals
from longvlm.stages.vision import VisionEncoder
from longvlm.training.segment_bank import SegmentBank, plan_blocks
from longvlm.types import Compression

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
        assert scene.duration_seconds == 10.0 * plan.num_segments
        assert len(scene.events) == plan.num_events
    assert {plan.num_events for plan in bank.plans} >= {0, 1, 2}


def test_a_joined_video_is_its_blocks_one_after_another(bank: SegmentBank) -> None:
    blocks = next([a, b] for a in range(20) for b in range(20) if bank.plans[a].num_events and bank.plans[b].num_events)
    scene, tokens = bank._join_scenes(blocks), bank._join_tokens(blocks)
    first, second = (bank.scenes[block] for block in blocks)
    assert scene.duration_seconds == first.duration_seconds + second.duration_seconds
    starts = [event.start_seconds for event in first.events]
    starts += [event.start_seconds + first.duration_seconds for event in second.events]
    assert [event.start_seconds for event in scene.events] == pytest.approx(starts)
    rows = [row for b in blocks for row in range(bank.first_segment[b], bank.first_segment[b + 1])]
    global_tokens = average_globals(bank.layer_globals[rows], torch.ones(len(rows)))
    assert torch.equal(tokens, torch.cat([global_tokens, *bank.local[rows]]))


@pytest.mark.parametrize("num_segments", [1, 3, 7])
def test_composed_videos_have_the_length_asked_for_and_no_object_twice(bank: SegmentBank, num_segments: int) -> None:
    for seed in range(5):
        scene, tokens = bank.compose(num_segments, random.Random(seed))
        assert scene.duration_seconds == 10.0 * num_segments
        assert tokens.shape == (2 + 4 * num_segments, 32)
        objects = [event.object for event in scene.events]
        assert len(objects) == len(set(objects))


def test_a_saved_bank_composes_the_same_videos(bank: SegmentBank, tmp_path: Path) -> None:
    bank.save(tmp_path / "bank.safetensors")
    again = SegmentBank.load(tmp_path / "bank.safetensors")
    scene, tokens = bank.compose(5, random.Random(1))
    same_scene, same_tokens = again.compose(5, random.Random(1))
    assert scene == same_scene
    assert torch.equal(tokens, same_tokens)
