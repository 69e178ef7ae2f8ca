import dataclasses

import pytest
import torch
from transformers import set_seed

from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.processing import LongVLMProcessor
from longvlm.training.default_model import RECIPE, load_recipe
from longvlm.training.examples import (
    IGNORED,
    branch_attention_mask,
    collate,
    describe_example,
    make_example,
    pack_conversations,
    restore_positions,
)
from longvlm.training.ground_truth import NameFinder
from longvlm.training.segment_bank import ComposedVideo
from longvlm.training.untrained_model import build_model, build_tokenizer
from longvlm.world.render import NO_EVENT
from longvlm.world.scene import make_scene

QUESTION = [("What appears first?", "a red circle")]
CONVERSATION = [("What appears last?", "a blue star"), ("And before that?", "a white heart")]
NAMES = [("red circle blue star", "")]


@pytest.fixture(scope="module")
def model() -> LongVLMForConditionalGeneration:
    set_seed(0)
    return build_model(load_recipe(RECIPE).model, build_tokenizer()).eval()


@pytest.fixture(scope="module")
def processor(model: LongVLMForConditionalGeneration) -> LongVLMProcessor:
    compression = model.config.compression
    return LongVLMProcessor(
        build_tokenizer(), image_mean=(0.5,) * 3, image_std=(0.5,) * 3, image_size=112, compression=compression
    )


def draw_tokens(processor: LongVLMProcessor, num_segments: int) -> torch.Tensor:
    compression = processor.compression_settings
    count = compression.global_layers + num_segments * compression.tokens_per_segment
    return torch.randn(count, 128, generator=torch.Generator().manual_seed(count))


def test_a_token_sees_the_video_and_its_own_branch_so_far() -> None:
    sees = branch_attention_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))
    assert sees[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


@torch.no_grad()
def test_packed_a_model_reads_each_conversation_as_if_it_were_alone(
    model: LongVLMForConditionalGeneration, processor: LongVLMProcessor
) -> None:
    videos = [draw_tokens(processor, 2), draw_tokens(processor, 3)]
    plans = [[QUESTION, CONVERSATION, NAMES], [CONVERSATION]]
    together = [pack_conversations(processor, plan, v, n) for plan, v, n in zip(plans, videos, (2, 3), strict=True)]
    batch = collate(together)
    labels, branches = batch.pop("labels"), [example["branches"] for example in together]
    logits = model(**batch).logits
    for row, (plan, video, num_segments) in enumerate(zip(plans, videos, (2, 3), strict=True)):
        for number, turns in enumerate(plan, start=1):
            alone = make_example(processor, turns, video, num_segments)
            places = torch.nonzero((branches[row] == 0) | (branches[row] == number)).flatten()
            assert torch.equal(batch["input_ids"][row, places], alone["input_ids"])
            assert torch.equal(batch["position_ids"][row, places], torch.arange(len(places)))
            assert torch.equal(labels[row, places], alone["labels"])
            one = {"input_ids": alone["input_ids"][None], "visual_tokens": video}
            torch.testing.assert_close(logits[row, places], model(**one).logits[0], rtol=1e-4, atol=1e-4)
    assert torch.all(labels[1, len(branches[1]) :] == IGNORED)


def test_what_is_left_out_of_a_video_keeps_its_place(processor: LongVLMProcessor) -> None:
    """Of three segments the second is left out: 16 places are skipped before the third and before what is asked."""
    kept = [*range(5 + 16), *range(5 + 32, 5 + 48)]
    video = ComposedVideo(
        scene=make_scene(0, 30.0),
        visual_tokens=draw_tokens(processor, 3)[kept],
        token_events=torch.full((37,), -1),
        token_poses=torch.zeros(37, 5),
        token_frames=torch.zeros(37),
        token_segments=torch.tensor([0] * 5 + [1] * 16 + [3] * 16),
        token_places=torch.tensor(kept),
        num_places=5 + 48,
    )
    plan = [QUESTION, CONVERSATION]
    example = pack_conversations(processor, plan, video.visual_tokens, video.num_segments)
    placed = restore_positions(example, video, processor.video_token_id)
    whole = pack_conversations(processor, plan, draw_tokens(processor, 3), 3)
    first = int((whole["input_ids"] == processor.video_token_id).nonzero()[0])
    rows = torch.cat(
        [torch.arange(first), first + torch.tensor(kept), torch.arange(first + 53, len(whole["input_ids"]))]
    )
    for name in ("input_ids", "labels", "branches", "position_ids"):
        assert torch.equal(placed[name], whole[name][rows]), name


def test_sightings_are_described_where_the_video_has_them(processor: LongVLMProcessor) -> None:
    """Beside all that is known anyway."""
    shown = torch.tensor([NO_EVENT, 0, 0])
    scene = dataclasses.replace(make_scene(5, 20.0), events=make_scene(5, 20.0).events[:1])
    flat = {"token_events": shown, "token_frames": torch.tensor([0.0, 1.0, 4.0])}
    video = ComposedVideo(
        scene,
        torch.zeros(3, 128),
        **flat,
        token_poses=torch.zeros(3, 5),
        token_segments=torch.tensor([0, 1, 1]),
        token_places=torch.arange(3),
        num_places=3,
    )
    finder, ids = NameFinder(processor.tokenizer), torch.tensor([1, 2])
    without = describe_example(ids, video, finder)
    assert not without.keys() & {"token_segments", "seen_frames", "were_gone"}
    sightings = torch.tensor([[False] * 4, [True, False, False, False], [False, False, True, True]])
    known = describe_example(ids, dataclasses.replace(video, token_sightings=sightings), finder)
    assert all(torch.equal(known[name], without[name]) for name in without)
    example = {"input_ids": ids, "labels": ids}
    batch = collate([{**example, **known}, {**example, **known}])
    assert batch["token_segments"].tolist() == [0, 1, 1] * 2
    assert batch["seen_frames"].tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 1]] * 2
    assert batch["were_gone"].tolist() == [[0, 0], [0, 0], [1, 1]] * 2


def test_without_branches_the_mask_tells_padding(processor: LongVLMProcessor) -> None:
    examples = [make_example(processor, turns, draw_tokens(processor, 1), 1) for turns in (QUESTION, CONVERSATION)]
    batch = collate(examples)
    lengths = [len(example["input_ids"]) for example in examples]
    assert batch["attention_mask"].tolist() == [[1] * n + [0] * (max(lengths) - n) for n in lengths]
    assert "branches" not in batch and "position_ids" not in batch
