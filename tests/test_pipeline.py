"""The whole path on tiny random checkpoints and real video files: encode, ask, stream, chat, batch."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from longvlm import LongVLM, LongVLMError, VideoIndex
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.placement import choose_dtype
from longvlm.model.processing import LongVLMProcessor
from longvlm.pipeline import DamageWarning
from longvlm.stages.tokens import count_visual_tokens
from longvlm.video_index import UNKNOWN_FINGERPRINT

CONTEXT_LENGTH = 1024
QUESTIONS = ["What happens first?", "What happens last?", "Which colour has the circle?", "Why?", "hm"]
COMPRESSION = {"frames_per_segment": 4, "tokens_per_segment": 4, "global_layers": 2, "merge_heads": 4}


def make_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """One token a byte: a random model then writes broken UTF-8, the hardest case for streaming."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    return fast


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        initializer_factor=20.0,  # features that differ between frames
    )


def text_config(vocabulary_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.3,  # answers that depend on the whole prompt
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def save_longvlm(folder: Path, seed: int) -> Path:
    tokenizer = make_tokenizer("<vid_patch>", "<vid_start>", "<vid_end>")
    config = LongVLMConfig(
        vision_config=vision_config(),
        text_config=text_config(len(tokenizer)),
        video_token_index=tokenizer.convert_tokens_to_ids("<vid_patch>"),
        compression=COMPRESSION,
        default_num_frames=12,
        eos_token_id=1,
    )
    torch.manual_seed(seed)
    LongVLMForConditionalGeneration(config).save_pretrained(folder)
    LongVLMProcessor(tokenizer, image_size=28, compression=config.compression).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_longvlm(tmp_path_factory.mktemp("models") / "tiny-longvlm", seed=0)


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_longvlm(tmp_path_factory.mktemp("models") / "other-longvlm", seed=1)


@pytest.fixture(scope="session")
def llava_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    tokenizer = make_tokenizer("<image>")
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text_config(len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(2)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(images, tokenizer, patch_size=14, vision_feature_select_strategy="default").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> LongVLM:
    return LongVLM.from_pretrained(checkpoint, device="cpu", dtype="float32")


def write_video(path: Path, *, seed: int, num_frames: int = 40, fps: int = 10) -> Path:
    """Flat colours that change, four frames each, under a little noise."""
    random = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(num_frames):
            if number % 4 == 0:
                colour = random.integers(0, 256, 3)
            picture = (colour + random.integers(-20, 20, (48, 64, 3))).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "film.mp4", seed=0)


@pytest.fixture(scope="session")
def index(model: LongVLM, video: Path) -> VideoIndex:
    return model.encode(video)


@pytest.fixture(scope="session")
def other_index(model: LongVLM, tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return model.encode(write_video(tmp_path_factory.mktemp("videos") / "other.mp4", seed=1))


def fresh(model: LongVLM) -> LongVLM:
    """The same model with nothing computed: no KV cache is left from another question."""
    copy = LongVLM.from_pretrained(model.folder, device="cpu", dtype=model.dtype)
    copy.__dict__ |= {"encoder": model.encoder, "language_model": model.language_model}
    return copy


def generate_plainly(model: LongVLM, index: VideoIndex | None, messages: list[dict], **settings: object) -> str:
    """transformers' own generation, the oracle: one prefill, no cache from before."""
    from longvlm.stages.tokens import assemble

    num_segments = None if index is None else index.num_segments
    inputs = model.processor(model.processor.prompt(messages, num_segments=num_segments))
    visual = {} if index is None else {"visual_tokens": assemble(index).features}
    with torch.no_grad():
        ids = model.language_model.generate(**inputs, **visual, do_sample=False, **settings)
    return model.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def first_message(question: str) -> dict:
    return {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}


class TestEncode:
    def test_index_says_what_was_looked_at(self, model: LongVLM, video: Path, index: VideoIndex) -> None:
        assert (index.num_segments, index.num_frames) == (3, 12)
        assert tuple(index.local_features.shape) == (3, 4, 32)
        assert tuple(index.segment_globals.shape) == (3, 2, 32)
        assert tuple(index.assignment.shape) == (3, 16)
        assert index.local_features.dtype == torch.float32
        assert index.video.name == video.name
        assert index.compression == model.compression
        assert index.encoder_fingerprint == model.encoder.fingerprint
        assert index.lost_seconds == 0

    def test_segments_meet_and_the_last_ends_with_the_video(self, index: VideoIndex) -> None:
        spans = index.segment_spans_seconds
        assert spans[0, 0].item() == 0
        assert spans[1:, 0].tolist() == index.frame_times_seconds[1:, 0].tolist()
        assert spans[:-1, 1].tolist() == spans[1:, 0].tolist()
        assert spans[-1, 1].item() == pytest.approx(4.0)

    def test_a_part_ends_where_it_was_cut(self, model: LongVLM, video: Path) -> None:
        part = model.encode(video, start="0:01", end=2.5, fps=4)
        assert part.frame_times[0] == pytest.approx(1.0)
        assert part.segment_spans_seconds[-1, 1].item() == 2.5
        assert part.num_frames == 6

    def test_a_video_of_two_frames_repeats_them(self, model: LongVLM) -> None:
        index = model.encode(np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8))
        assert (index.num_segments, index.num_frames) == (3, 2)
        assert index.frames_distinct.tolist() == [1, 2, 1]
        assert index.slice(0.0, 0.5).num_segments == 2

    def test_timings_and_progress(self, model: LongVLM, video: Path) -> None:
        told: list[tuple[float, str]] = []
        timings = model.encode(video, on_progress=lambda *state: told.append(state)).timings
        parts = timings.decode_seconds, timings.encode_seconds, timings.merge_seconds
        assert all(part > 0 for part in parts)
        assert sum(parts) < timings.total_seconds
        fractions = [fraction for fraction, _ in told]
        assert fractions == sorted(fractions)
        assert 0 < fractions[0] < fractions[-1] <= 1
        assert [words for _, words in told] == [
            "Encoded up to 0:01",
            "Encoded up to 0:02",
            "Encoded up to 0:03",
        ]

    def test_opening_counts_to_decoding(self, model: LongVLM, tmp_path: Path) -> None:
        class SlowToList(list):
            def __iter__(self) -> Iterator[Path]:
                time.sleep(0.3)
                return super().__iter__()

        Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
        timings = model.encode(SlowToList([tmp_path / "one.png"])).timings
        assert 0.3 <= timings.decode_seconds < timings.total_seconds

    def test_frame_rate_of_pictures(self, model: LongVLM, video: Path) -> None:
        frames = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
        assert model.encode(frames, num_frames=4, frame_rate=2).video.duration_seconds == 4
        assert model.encode(frames, fps=1, frame_rate=2).frame_times == [0.0, 1.0, 2.0, 3.0]
        with pytest.raises(LongVLMError, match="carries its own"):
            model.encode(video, frame_rate=2)

    def test_damaged_tail_is_left_out_with_a_warning(self, model: LongVLM, tmp_path: Path) -> None:
        path = write_video(tmp_path / "film.mkv", seed=0, num_frames=100)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.warns(DamageWarning, match=r"film\.mkv is damaged: its last \d\.\d s"):
            index = model.encode(path)
        assert index.lost_seconds > 1
        assert index.segment_spans_seconds[-1, 1].item() <= 10 - index.lost_seconds + 0.1

    def test_language_model_is_never_loaded(self, checkpoint: Path, video: Path, tmp_path: Path) -> None:
        """A checkpoint that has nothing but the tower encodes all the same."""
        folder = shutil.copytree(checkpoint, tmp_path / "tower-only")
        with safe_open(folder / "model.safetensors", "pt") as file:
            tower = {name: file.get_tensor(name) for name in file.keys() if "vision_tower" in name}  # noqa: SIM118
        save_file(tower, folder / "model.safetensors", {"format": "pt"})
        model = LongVLM.from_pretrained(folder, device="cpu", dtype="float32")
        assert model.encode(video).num_segments == 3
        assert "language_model" not in vars(model)

    def test_opening_a_checkpoint_reads_no_weights(self, checkpoint: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(checkpoint, tmp_path / "no-weights")
        (folder / "model.safetensors").unlink()
        assert LongVLM.from_pretrained(folder).compression.tokens_per_segment == 4

    def test_the_tower_is_in_memory_once(self, checkpoint: Path, index: VideoIndex, video: Path) -> None:
        asked_first = LongVLM.from_pretrained(checkpoint, device="cpu", dtype="float32")
        asked_first.ask(None, "Why?", max_new_tokens=1)
        assert asked_first.encode(video) == index
        assert asked_first.language_model.model.vision_tower is asked_first.encoder.tower
        encoded_first = LongVLM.from_pretrained(checkpoint, device="cpu", dtype="float32")
        encoded_first.ask(index, "Why?", max_new_tokens=1)
        assert encoded_first.language_model.model.vision_tower is encoded_first.encoder.tower

    def test_another_tower_serves_whatever_is_loaded_first(
        self, checkpoint: Path, video: Path, index: VideoIndex, tmp_path: Path
    ) -> None:
        torch.manual_seed(3)
        CLIPVisionModel(vision_config()).save_pretrained(tmp_path / "tower")
        CLIPImageProcessor().save_pretrained(tmp_path / "tower")
        models = [
            LongVLM.from_pretrained(checkpoint, vision_tower=str(tmp_path / "tower"), device="cpu", dtype="float32")
            for _ in range(2)
        ]
        models[0].ask(None, "Why?", max_new_tokens=1)
        indexes = [model.encode(video) for model in models]
        assert indexes[0] == indexes[1]
        assert indexes[0].encoder_fingerprint != index.encoder_fingerprint
        answers = [model.ask(indexes[0], "Why?", max_new_tokens=12).text for model in models]
        assert answers[0] == answers[1]


class TestAsk:
    def test_stored_route_equals_direct_route(
        self, model: LongVLM, video: Path, index: VideoIndex, tmp_path: Path
    ) -> None:
        index.save(tmp_path / "film.longvlm")
        direct = model.ask(video, QUESTIONS[0], max_new_tokens=20)
        for asked in (index, VideoIndex.load(tmp_path / "film.longvlm"), tmp_path / "film.longvlm"):
            assert fresh(model).ask(asked, QUESTIONS[0], max_new_tokens=20).text == direct.text

    def test_pixels_give_the_same_answer_as_the_index(self, model: LongVLM, video: Path, index: VideoIndex) -> None:
        """The route of training: pixels into the model's forward."""
        from longvlm.stages.video import open_video

        with open_video(video) as reader:
            segments = list(reader.segments(index.sampling, frames_per_segment=4, image_size=28, fit="squash"))
        pixels = torch.cat([segment.pixels for segment in segments])
        text = model.processor.prompt([first_message("Why?")], num_segments=3)
        inputs = model.processor(text, videos=[pixels])
        ids = model.language_model.generate(**inputs, do_sample=False, max_new_tokens=20)
        expected = model.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert model.ask(index, "Why?", max_new_tokens=20).text == expected.strip()

    def test_equals_plain_generation_and_reuses_the_prefix(self, model: LongVLM, index: VideoIndex) -> None:
        asking = fresh(model)
        prefix = None
        for question in QUESTIONS[:4]:
            answer = asking.ask(index, question, max_new_tokens=16)
            assert answer.text == generate_plainly(model, index, [first_message(question)], max_new_tokens=16)
            assert answer.question == question
            if prefix is None:
                assert answer.cached_tokens == 0
                prefix = count_visual_tokens(index.num_segments, index.compression)
            else:
                assert prefix < answer.cached_tokens < answer.prompt_tokens

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_reused_prefix_gives_the_same_tokens_as_asking_afresh(
        self, checkpoint: Path, video: Path, dtype: str
    ) -> None:
        model = LongVLM.from_pretrained(checkpoint, device="cpu", dtype=dtype)
        index = model.encode(video)
        assert str(index.local_features.dtype) == f"torch.{dtype}"
        for question in QUESTIONS[:3]:
            reused = model.ask(index, question, max_new_tokens=8)
            assert reused.text == fresh(model).ask(index, question, max_new_tokens=8).text

    def test_prefix_is_never_taken_from_another_video(
        self, model: LongVLM, index: VideoIndex, other_index: VideoIndex
    ) -> None:
        answers = [model.ask(asked, "Why?", max_new_tokens=30) for asked in (index, other_index, index)]
        assert [answer.cached_tokens for answer in answers[1:]] == [0, 0]
        assert answers[0].text == answers[2].text != answers[1].text

    def test_answers_without_a_video(self, model: LongVLM) -> None:
        messages = [{"role": "user", "content": "Why?"}]
        answer = model.ask(None, "Why?", max_new_tokens=20)
        assert answer.text == generate_plainly(model, None, messages, max_new_tokens=20)

    def test_counts_and_timings(self, model: LongVLM, index: VideoIndex, video: Path) -> None:
        answer = model.ask(index, "Why?", max_new_tokens=5)
        assert (answer.new_tokens, answer.finish_reason) == (5, "length")
        assert answer.timings.prefill_seconds > 0
        assert answer.timings.generate_seconds > 0
        assert answer.timings.decode_seconds == 0
        from_file = model.ask(video, "Why?", max_new_tokens=5)
        assert from_file.timings.decode_seconds > 0
        assert from_file.timings.total_seconds > from_file.timings.generate_seconds

    def test_seed_repeats_a_sampled_answer(self, model: LongVLM, index: VideoIndex) -> None:
        sampled = [model.ask(index, "Why?", max_new_tokens=30, temperature=1.5, seed=seed).text for seed in (7, 7, 8)]
        assert sampled[0] == sampled[1] != sampled[2]

    def test_batch_equals_single_answers(self, model: LongVLM, index: VideoIndex, other_index: VideoIndex) -> None:
        videos = [index, None, other_index, index.slice(0.0, 1.0)]
        singles = [model.ask(asked, text, max_new_tokens=20) for asked, text in zip(videos, QUESTIONS, strict=False)]
        batch = model.ask(videos, QUESTIONS[:4], max_new_tokens=20)
        assert [answer.text for answer in batch] == [answer.text for answer in singles]
        assert [answer.new_tokens for answer in batch] == [answer.new_tokens for answer in singles]
        assert model.ask([], []) == []

    def test_a_long_neighbour_does_not_shorten_an_answer(self, model: LongVLM) -> None:
        overhead = model.ask(None, "w", max_new_tokens=1).prompt_tokens - 1
        questions = ["w" * (CONTEXT_LENGTH - overhead - 3), "Why?"]
        singles = [model.ask(None, text, max_new_tokens=12) for text in questions]
        batch = model.ask([None, None], questions, max_new_tokens=12)
        assert [answer.text for answer in batch] == [answer.text for answer in singles]
        assert [answer.new_tokens for answer in batch] == [answer.new_tokens for answer in singles] == [3, 12]
        assert [answer.finish_reason for answer in batch] == ["length"] * 2

    def test_within_inference_mode_and_after_it(self, checkpoint: Path, video: Path) -> None:
        model = LongVLM.from_pretrained(checkpoint, device="cpu", dtype="float32")
        with torch.inference_mode():
            inside = model.ask(model.encode(video), "Why?", max_new_tokens=3)
        assert model.ask(video, "Why?", max_new_tokens=3).text == inside.text

    def test_changed_weights_make_the_prefix_void(self, checkpoint: Path, index: VideoIndex) -> None:
        model = LongVLM.from_pretrained(checkpoint, device="cpu", dtype="float32")
        model.ask(index, "hm", max_new_tokens=2)
        assert model.ask(index, "Why?", max_new_tokens=2).cached_tokens > 0
        projector = list(model.language_model.model.multi_modal_projector.parameters())
        for weight in projector:
            weight.grad = torch.ones_like(weight)
        torch.optim.SGD(projector, lr=1.0).step()
        answer = model.ask(index, "Why?", max_new_tokens=12)
        assert answer.cached_tokens == 0
        assert answer.text == generate_plainly(model, index, [first_message("Why?")], max_new_tokens=12)

    def test_timestamps_are_written_between_the_segments(self, checkpoint: Path, index: VideoIndex) -> None:
        plain, timed = (
            LongVLM.from_pretrained(checkpoint, device="cpu", dtype="float32", timestamps=on) for on in (False, True)
        )
        lengths = [model.ask(index, "Why?", max_new_tokens=2).prompt_tokens for model in (plain, timed)]
        assert lengths[1] - lengths[0] == 3 * len(" 0:00 ")
        assert timed.ask(index, "hm", max_new_tokens=2).cached_tokens > 0
        imported = dataclasses.replace(index, video=dataclasses.replace(index.video, fingerprint=UNKNOWN_FINGERPRINT))
        assert plain.ask(imported, "Why?", max_new_tokens=2).prompt_tokens == lengths[0]
        with pytest.raises(LongVLMError, match=r"imported without its video, so that its times are not known"):
            timed.ask(imported, "Why?")

    def test_llava_checkpoint_answers(self, llava_checkpoint: Path, video: Path) -> None:
        model = LongVLM.from_pretrained(llava_checkpoint, dtype="float32", compression={"tokens_per_segment": 8})
        index = model.encode(video, num_frames=20)
        assert tuple(index.local_features.shape) == (2, 8, 32)
        assert tuple(index.segment_globals.shape[:2]) == (2, 0)
        answer = model.ask(index, "Why?", max_new_tokens=12)
        assert answer.text == generate_plainly(model, index, [first_message("Why?")], max_new_tokens=12)


class TestStream:
    def test_pieces_make_the_answer(self, model: LongVLM, index: VideoIndex) -> None:
        for question in QUESTIONS[:2]:
            for sampling in ({}, {"temperature": 2.0, "seed": 3}):
                stream = model.stream(index, question, max_new_tokens=20, **sampling)
                pieces = list(stream)
                expected = model.ask(index, question, max_new_tokens=20, **sampling)
                assert len(pieces) > 1
                assert all(pieces)
                assert "".join(pieces) == expected.text == stream.answer.text

    def test_a_listeners_pauses_are_not_counted(self, model: LongVLM, index: VideoIndex) -> None:
        stream, pauses_seconds = model.stream(index, "Why?", max_new_tokens=8), 0.0
        begin = time.perf_counter()
        for _ in stream:
            time.sleep(0.1)
            pauses_seconds += 0.1
        wall_seconds = time.perf_counter() - begin
        timings = stream.answer.timings
        assert pauses_seconds > 0
        assert timings.prefill_seconds + timings.generate_seconds == pytest.approx(timings.total_seconds)
        assert timings.total_seconds <= wall_seconds - pauses_seconds

    def test_stopping_early_leaves_the_prefix_usable(self, model: LongVLM, index: VideoIndex) -> None:
        asking = fresh(model)
        stream = asking.stream(index, "Why?", max_new_tokens=40)
        next(stream)
        stream.close()
        answer = asking.ask(index, "hm", max_new_tokens=20)
        assert answer.cached_tokens > 0
        assert answer.text == fresh(model).ask(index, "hm", max_new_tokens=20).text
        with pytest.raises(RuntimeError, match="closed before"):
            _ = stream.answer

    def test_streams_side_by_side_do_not_disturb_each_other(self, model: LongVLM, index: VideoIndex) -> None:
        expected = [model.ask(index, question, max_new_tokens=30).text for question in QUESTIONS[:2]]
        streams = [model.stream(index, question, max_new_tokens=30) for question in QUESTIONS[:2]]
        texts = ["", ""]
        pieces = [next(stream, None) for stream in streams]
        while any(pieces):
            texts = [text + (piece or "") for text, piece in zip(texts, pieces, strict=True)]
            pieces = [next(stream, None) for stream in streams]
        assert texts == expected

    def test_mistakes_are_told_before_the_first_piece(self, model: LongVLM, index: VideoIndex) -> None:
        with pytest.raises(LongVLMError, match="question is empty"):
            model.stream(index, " ")


class TestChat:
    def test_turns_equal_asking_the_conversation_afresh(self, model: LongVLM, index: VideoIndex) -> None:
        chat = fresh(model).chat(index)
        messages: list[dict] = []
        prompt_tokens_before = 0
        for question in QUESTIONS:
            turn = first_message(question) if not messages else {"role": "user", "content": question}
            messages.append(turn)
            answer = chat.ask(question, max_new_tokens=16)
            assert answer.text == generate_plainly(model, index, messages, max_new_tokens=16)
            assert answer.cached_tokens == prompt_tokens_before
            prompt_tokens_before = answer.prompt_tokens
            messages.append({"role": "assistant", "content": answer.text})
        assert [message["role"] for message in chat.messages] == ["user", "assistant"] * len(QUESTIONS)

    def test_another_question_in_between_changes_nothing(
        self, model: LongVLM, index: VideoIndex, other_index: VideoIndex
    ) -> None:
        undisturbed, disturbed = fresh(model).chat(index), fresh(model).chat(index)
        for question in QUESTIONS[:3]:
            expected = undisturbed.ask(question, max_new_tokens=16)
            disturbed.model.ask(other_index, "hm", max_new_tokens=4)
            assert disturbed.ask(question, max_new_tokens=16).text == expected.text

    def test_streamed_turn_is_remembered_when_it_is_complete(self, model: LongVLM, index: VideoIndex) -> None:
        chat = model.chat(index)
        broken_off = chat.stream("Why?", max_new_tokens=30)
        next(broken_off)
        broken_off.close()
        assert chat.messages == []
        text = "".join(chat.stream("Why?", max_new_tokens=30))
        assert chat.messages[-1]["content"][0]["text"] == text

    def test_a_conversation_that_is_too_long_is_to_blame(self, model: LongVLM, index: VideoIndex) -> None:
        chat = model.chat(index)
        chat.ask("w" * 500, max_new_tokens=2)
        with pytest.raises(LongVLMError, match=r"conversation so far takes up 5\d\d: start a new one \(/new"):
            chat.ask("w" * 500)
        with pytest.raises(LongVLMError, match="Ask a shorter question"):
            chat.ask("w" * CONTEXT_LENGTH)

    def test_without_a_video(self, model: LongVLM) -> None:
        chat = model.chat(None)
        chat.ask("Why?", max_new_tokens=4)
        first = {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
        assert chat.ask("hm", max_new_tokens=4).prompt_tokens > len(model.processor.prompt([first]))

    def test_a_reserved_word_in_an_answer_ends_no_chat(
        self, model: LongVLM, index: VideoIndex, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chat, word = model.chat(index), model.processor.video_token
        with monkeypatch.context() as patch:
            patch.setattr("longvlm.stages.answer.Answerer._decode", lambda *_: f"It says {word}.")
            stream = chat.stream("What is written there?", max_new_tokens=4)
            assert "".join(stream) == stream.answer.text == f"It says {word}."
        assert chat.messages[-1]["content"][0]["text"] == f"It says {word[0]} {word[1:]}."
        assert chat.ask("And then?", max_new_tokens=4).new_tokens > 0


class TestMistakes:
    def test_no_video_is_encoded_for_what_will_be_refused(
        self, model: LongVLM, video: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(LongVLM, "encode", lambda *_, **__: pytest.fail("it was encoded"))
        word = model.processor.video_token
        for refused in (lambda: model.ask(video, word), lambda: model.ask([video, video], ["Why?", word])):
            with pytest.raises(LongVLMError, match="which the model reserves"):
                refused()
        with pytest.raises(LongVLMError, match="empty"):
            model.ask([video, video], ["Why?", " "])

    @pytest.mark.parametrize("question", ["", "  \n"])
    def test_empty_question(self, model: LongVLM, index: VideoIndex, question: str) -> None:
        for ask in (model.ask, model.stream):
            with pytest.raises(LongVLMError, match="question is empty"):
                ask(index, question)
        with pytest.raises(LongVLMError, match="question is empty"):
            model.chat(index).ask(question)
        with pytest.raises(LongVLMError, match="question is empty"):
            model.ask([index, index], ["Why?", question])

    def test_one_question_for_many_indexes(self, model: LongVLM, index: VideoIndex) -> None:
        for indexes in ([index, index], ["a.longvlm", "b.longvlm"]):
            with pytest.raises(LongVLMError, match="One question for 2 videos"):
                model.ask(indexes, "Why?")

    def test_question_longer_than_the_context(self, model: LongVLM, index: VideoIndex) -> None:
        with pytest.raises(LongVLMError, match=rf"1\d\d\d tokens, 14 of them visual, .* holds {CONTEXT_LENGTH}"):
            model.ask(index, "why " * 250)

    def test_answer_ends_where_the_context_does(self, model: LongVLM) -> None:
        overhead = model.ask(None, "w", max_new_tokens=1).prompt_tokens - 1
        answer = model.ask(None, "w" * (CONTEXT_LENGTH - overhead - 3), max_new_tokens=50)
        assert answer.prompt_tokens + answer.new_tokens <= CONTEXT_LENGTH
        assert answer.new_tokens <= 3

    def test_index_of_another_encoder(self, other_checkpoint: Path, index: VideoIndex) -> None:
        model = LongVLM.from_pretrained(other_checkpoint, device="cpu", dtype="float32")
        with pytest.raises(LongVLMError, match=r"tiny-longvlm.*but.*other-longvlm.*Encode the video again"):
            model.ask(index, "Why?")
        assert "language_model" not in vars(model)

    def test_index_of_other_settings(self, checkpoint: Path, index: VideoIndex) -> None:
        model = LongVLM.from_pretrained(checkpoint, dtype="float32", compression={"tokens_per_segment": 3})
        with pytest.raises(LongVLMError, match="tokens_per_segment=4, but tokens_per_segment=3"):
            model.ask(index, "Why?")

    @pytest.mark.parametrize("token", ["<s>", "</s>", "<vid_patch>", "<vid_end>"])
    def test_control_tokens_in_a_question(self, model: LongVLM, index: VideoIndex, token: str) -> None:
        for asked in (None, index):
            with pytest.raises(LongVLMError, match=f"contains '{token}'"):
                model.ask(asked, f"Why {token} so?")

    def test_bytes_that_are_no_text(self, model: LongVLM) -> None:
        with pytest.raises(LongVLMError, match="not valid Unicode"):
            model.ask(None, "caf\udce9")

    def test_an_address_is_no_index_file(self, model: LongVLM) -> None:
        with pytest.raises(LongVLMError, match=r"Can't reach http://127\.0\.0\.1:9/film\.longvlm"):
            model.ask("http://127.0.0.1:9/film.longvlm", "Why?")

    def test_unequal_lists(self, model: LongVLM, index: VideoIndex) -> None:
        with pytest.raises(LongVLMError, match="2 questions for 1 videos"):
            model.ask([index], ["Why?", "hm"])
        with pytest.raises(LongVLMError, match="2 questions for 1 videos"):
            model.ask(index, ["Why?", "hm"])

    def test_settings_that_do_not_exist(self, checkpoint: Path) -> None:
        for settings, words in (
            ({"device": "abacus"}, "Unknown device 'abacus'"),
            ({"device": "cuda:99"}, "no device 'cuda:99'"),
            ({"dtype": "float7"}, "Unknown dtype 'float7'"),
            ({"dtype": torch.int8}, "Unknown dtype 'int8'"),
            ({"compression": {"tokens": 3}}, "Unknown compression setting 'tokens'"),
        ):
            with pytest.raises(LongVLMError, match=words):
                LongVLM.from_pretrained(checkpoint, **settings)

    def test_decoding_that_does_not_exist(self, model: LongVLM, index: VideoIndex) -> None:
        with pytest.raises(LongVLMError, match="temperature is -1"):
            model.ask(index, "Why?", temperature=-1)
        with pytest.raises(LongVLMError, match="max_new_tokens is 0"):
            model.ask(index, "Why?", max_new_tokens=0)

    def test_no_such_video_or_index(self, model: LongVLM) -> None:
        for name in ("nowhere.mp4", "nowhere.longvlm"):
            with pytest.raises(LongVLMError, match=f"nowhere.{name.rpartition('.')[2]}"):
                model.ask(name, "Why?")

    def test_sampling_twice(self, model: LongVLM, video: Path) -> None:
        with pytest.raises(LongVLMError, match="either num_frames or fps"):
            model.encode(video, num_frames=3, fps=1.0)


def test_a_checkpoints_own_sampling_is_taken_unless_another_is_asked_for(
    model: LongVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"default_num_frames": None, "default_fps": 2.0, "default_max_frames": 5}.items():
        monkeypatch.setattr(model.config, name, value)

    def plan(num_frames: int | None = None, fps: float | None = None, max_frames: int | None = None) -> tuple:
        sampling = model.plan_sampling(num_frames, fps, max_frames, None, None, "exact")
        return sampling.num_frames, sampling.fps, sampling.max_frames

    assert plan() == (None, 2.0, 5)
    assert plan(max_frames=7) == (None, 2.0, 7)
    assert plan(fps=1.0) == (None, 1.0, None)
    assert plan(num_frames=3) == (3, None, None)


def test_compression_replaces_or_changes_the_checkpoints(checkpoint: Path, model: LongVLM) -> None:
    changed = LongVLM.from_pretrained(checkpoint, compression={"tokens_per_segment": 2})
    assert changed.compression == dataclasses.replace(model.compression, tokens_per_segment=2)
    replaced = LongVLM.from_pretrained(checkpoint, compression=model.compression)
    assert replaced.compression == model.compression


@pytest.mark.parametrize(
    ("tiles", "vectors", "expected"),
    [
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ],
)
def test_dtype_follows_the_machine(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tiles: bool, vectors: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    for capability, on_cuda in (((8, 0), torch.bfloat16), ((7, 5), torch.float32)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert choose_dtype(None, torch.device("cuda")) == on_cuda
    for dtype in (None, "auto"):
        assert LongVLM.from_pretrained(checkpoint, device="cpu", dtype=dtype).dtype == expected
    assert LongVLM.from_pretrained(device="cpu").dtype == torch.float32
    assert LongVLM.from_pretrained(device="cpu", dtype="auto").dtype == expected
    assert "tiny-longvlm" in repr(LongVLM.from_pretrained(checkpoint, dtype=torch.float32))
