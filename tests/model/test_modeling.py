"""The model by itself: both ways to give it a video, batches, generation, caches, training and saving."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
)
from transformers.generation.streamers import BaseStreamer

from longvlm.index_builder import IndexBuilder
from longvlm.model import LongVLMConfig, LongVLMForConditionalGeneration
from longvlm.stages.merging import merge_tokens
from longvlm.stages.tokens import assemble, count_visual_tokens
from longvlm.stages.vision import VisionEncoder
from longvlm.types import Frames, Sampling, VideoInfo

VIDEO = 49
COMPRESSION = {"frames_per_segment": 4, "tokens_per_segment": 3, "global_layers": 2, "merge_heads": 4}
WIDTH = 16
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def make_model(**settings: object) -> LongVLMForConditionalGeneration:
    torch.manual_seed(0)
    tower = {"intermediate_size": 32, "num_hidden_layers": 3, "image_size": 28, "patch_size": 7}
    text = {"intermediate_size": 48, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 50}
    config = LongVLMConfig(
        vision_config=CLIPVisionConfig(hidden_size=WIDTH, num_attention_heads=4, **tower),
        text_config=LlamaConfig(
            hidden_size=32, num_attention_heads=4, initializer_range=0.3, eos_token_id=None, **text
        ),
        video_token_index=VIDEO,
        compression=COMPRESSION,
        **settings,
    )
    return LongVLMForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def model() -> LongVLMForConditionalGeneration:
    return make_model()


def prompt(num_visual: int, *words: int) -> list[int]:
    return [1, *[VIDEO] * num_visual, *words]


def left_pad(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("num_frames", [4, 8, 7, 2])
def test_pixels_and_ready_made_tokens_are_the_same_numbers(model, num_frames):
    """Encoded segment by segment and assembled, or given as pixels: equal bit by bit."""
    pixels = torch.randint(0, 256, (num_frames, 3, 28, 28), dtype=torch.uint8)
    settings = model.config.compression_settings
    encoder = VisionEncoder(
        model.model.vision_tower,
        feature_layer=-2,
        select_strategy="default",
        global_layers=settings.global_layers,
        image_mean=MEAN,
        image_std=STD,
    )
    size, builder = settings.frames_per_segment, IndexBuilder()
    for start in range(0, num_frames, size):
        count = min(size, num_frames - start)
        frames = [start + place * count // size for place in range(size)]
        features = encoder(Frames(pixels[frames], tuple(map(float, frames)), count))
        merged = merge_tokens(features.patches.flatten(0, 1)[None], tokens_per_segment=3, heads=4)
        builder.add(features, merged)
    index = builder.build(
        video=VideoInfo("v", 28, 28, float(num_frames), num_frames, 1.0, "f"),
        sampling=Sampling(num_frames),
        compression=settings,
        encoder_name="tiny",
        encoder_fingerprint=encoder.fingerprint,
        lost_seconds=0.0,
    )
    tokens = assemble(index)
    assert tokens.num_tokens == count_visual_tokens(-(-num_frames // size), settings)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    normalised = (pixels.float() / 255 - mean) / std
    ids = torch.tensor([prompt(tokens.num_tokens, 5, 6)])
    with torch.no_grad():
        from_pixels = model(input_ids=ids, pixel_values_videos=normalised[None]).logits
        from_tokens = model(input_ids=ids, visual_tokens=tokens.features).logits
    assert torch.equal(from_pixels, from_tokens)


def test_visual_tokens_may_come_in_any_form(model):
    features = torch.randn(2, 5, WIDTH)
    ids = torch.tensor([prompt(5, 7, 8), prompt(5, 9, 3)])
    with torch.no_grad():
        expected = model(input_ids=ids, visual_tokens=features).logits
        for form in (features.flatten(0, 1), list(features)):
            assert torch.equal(model(input_ids=ids, visual_tokens=form).logits, expected)


def test_embed_places_projected_tokens_in_order(model):
    features = torch.randn(5, WIDTH)
    ids = torch.tensor([[1, VIDEO, VIDEO, 4], [VIDEO, 2, VIDEO, VIDEO]])
    with torch.no_grad():
        embedded = model.model.embed(ids, features)
        projected = model.model.multi_modal_projector(features)
        expected = model.get_input_embeddings()(ids)
        expected[ids == VIDEO] = projected
        assert torch.equal(embedded, expected)
        by_embeds = model(inputs_embeds=embedded).logits
        assert torch.equal(by_embeds, model(input_ids=ids, visual_tokens=features).logits)


def test_left_padded_batch_equals_single_runs(model):
    """Rows of different lengths, one of them without any video."""
    rows = [prompt(5, 7, 8, 9), [1, 4, 6], prompt(3, 7)]
    visual = [torch.randn(5, WIDTH), torch.randn(3, WIDTH)]
    alone = [visual[:1], None, visual[1:]]
    together = model.generate(**left_pad(rows), visual_tokens=visual, max_new_tokens=6, do_sample=False)
    for row, ids, features in zip(together, rows, alone, strict=True):
        single = model.generate(
            input_ids=torch.tensor([ids]), visual_tokens=features, max_new_tokens=6, do_sample=False
        )
        assert row[-6:].tolist() == single[0, -6:].tolist()


@pytest.mark.parametrize("use_cache", [True, False])
def test_beams_keep_their_own_rows_videos(model, use_cache):
    """Also where one row has no video and another two: each beam needs its row's tokens."""
    rows = [[1, 4, 6], [1, VIDEO, VIDEO, 5, VIDEO, 7], [1, VIDEO, 8]]
    features = torch.randn(4, WIDTH)
    how = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "use_cache": use_cache}
    together = model.generate(**left_pad(rows), visual_tokens=features, **how)
    for row, ids, own in zip(together, rows, (None, features[:3], features[3:]), strict=True):
        single = model.generate(input_ids=torch.tensor([ids]), visual_tokens=own, **how)
        assert row[-5:].tolist() == single[0, -5:].tolist()
    pixels = torch.randn(2, 4, 3, 28, 28)
    ids = torch.tensor([prompt(5, 7), prompt(5, 8)])
    with torch.no_grad():
        features = model.model.get_video_features(pixels)
    by_pixels = model.generate(input_ids=ids, pixel_values_videos=pixels, **how)
    assert torch.equal(by_pixels, model.generate(input_ids=ids, visual_tokens=features, **how))


def test_follow_up_turn_continues_a_cache(model):
    """The second turn, computed on the first turn's cache, equals the whole conversation computed afresh."""
    features = torch.randn(5, WIDTH)
    first = torch.tensor([prompt(5, 7, 8)])
    answered = model.generate(
        input_ids=first,
        visual_tokens=features,
        past_key_values=DynamicCache(config=model.config.get_text_config()),
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
    )
    conversation = torch.cat([answered.sequences, torch.tensor([[9, 3, 2]])], dim=1)
    continued = model.generate(
        input_ids=conversation, past_key_values=answered.past_key_values, max_new_tokens=5, do_sample=False
    )
    afresh = model.generate(input_ids=conversation, visual_tokens=features, max_new_tokens=5, do_sample=False)
    assert continued.tolist() == afresh.tolist()


def test_without_cache_the_same_text(model):
    features, ids = torch.randn(5, WIDTH), torch.tensor([prompt(5, 7, 8)])
    how = {"input_ids": ids, "visual_tokens": features, "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**how), model.generate(**how, use_cache=False))


def test_streamer_receives_every_token(model):
    class Collector(BaseStreamer):
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ids.append(-1)

    collector = Collector()
    ids = torch.tensor([prompt(5, 7, 8)])
    output = model.generate(
        input_ids=ids,
        visual_tokens=torch.randn(5, WIDTH),
        max_new_tokens=4,
        do_sample=False,
        streamer=collector,
    )
    assert collector.ids == [*output[0].tolist(), -1]


def test_wrong_inputs_are_refused(model):
    ids, features = torch.tensor([prompt(5, 7)]), torch.randn(4, WIDTH)
    with pytest.raises(ValueError, match="4 visual tokens for 5 video tokens"):
        model(input_ids=ids, visual_tokens=features)
    with pytest.raises(ValueError, match="no visual_tokens"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="either pixel_values_videos or visual_tokens"):
        model(input_ids=ids, visual_tokens=features, pixel_values_videos=torch.zeros(1, 4, 3, 28, 28))
    with pytest.raises(ValueError, match="inputs_embeds stand alone"):
        model(inputs_embeds=torch.zeros(1, 3, 32), visual_tokens=features)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


def test_loss_and_its_gradients_reach_the_projector_and_the_tower():
    model = make_model().train()
    ids = torch.tensor([prompt(5, 7, 8, 9)])
    labels = torch.tensor([[-100] * 6 + [7, 8, 9]])
    output = model(input_ids=ids, labels=labels, pixel_values_videos=torch.randn(1, 4, 3, 28, 28))
    logits, targets = output.logits[0, :-1], labels[0, 1:]
    learned = targets >= 0
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(logits[learned], targets[learned]))
    output.loss.backward()
    tower_layer = model.model.vision_tower.encoder.layers[0].mlp.fc1
    for part in (model.model.multi_modal_projector.linear_1, tower_layer):
        assert part.weight.grad.abs().sum() > 0


def test_gradient_checkpointing_changes_no_gradient():
    ids, features = torch.tensor([prompt(5, 7, 8, 9)]), torch.randn(5, WIDTH)
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=ids, labels=ids, visual_tokens=features).loss.backward()
        gradients.append([p.grad for p in model.model.language_model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize(
    "settings", [{"projector_num_layers": 1}, {"projector_num_layers": 2}, {"tie_word_embeddings": True}]
)
def test_saves_in_shards_and_loads_the_same_bits(tmp_path, settings):
    model = make_model(timestamps=True, default_fps=2.0, default_num_frames=None, **settings)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert AutoConfig.from_pretrained(tmp_path).to_json_string() == model.config.to_json_string()
    loaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map="cpu", output_loading_info=True)
    assert type(loaded) is LongVLMForConditionalGeneration
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_attention_implementations_agree(tmp_path):
    make_model().save_pretrained(tmp_path)
    torch.manual_seed(0)
    ids, features = torch.tensor([prompt(5, 7, 8)]), torch.randn(5, WIDTH)
    logits = []
    for name in ("eager", "sdpa"):
        model = LongVLMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=name)
        assert model.model.language_model.config._attn_implementation == name
        with torch.no_grad():
            logits.append(model(input_ids=ids, visual_tokens=features).logits)
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
def test_same_logits_on_cuda(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    on_cuda = LongVLMForConditionalGeneration.from_pretrained(tmp_path, device_map="auto")
    ids, pixels = torch.tensor([prompt(5, 7, 8)]), torch.randn(1, 4, 3, 28, 28)
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values_videos=pixels).logits
        actual = on_cuda(input_ids=ids.cuda(), pixel_values_videos=pixels.cuda()).logits
    torch.testing.assert_close(actual.cpu(), expected, atol=1e-3, rtol=0)
