"""Answerer: only what may be reused is reused, and whatever happened before, the next answer is right."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from longvlm.errors import LongVLMError
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.stages.answer import Answerer, Decoding, Prompt
from longvlm.types import Answer, Timings

VIDEO_TOKEN, START, STOP = 2, 0, 1
WIDTH = 16
TEXT = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": START,
    "eos_token_id": STOP,
}


def make_model(text_config: PretrainedConfig) -> LongVLMForConditionalGeneration:
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    config = LongVLMConfig(vision_config=tower, text_config=text_config, video_token_index=VIDEO_TOKEN)
    return LongVLMForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def model() -> LongVLMForConditionalGeneration:
    return make_model(LlamaConfig(**TEXT))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(["<s>", "</s>", "<v>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def answerer(model: LongVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> Answerer:
    return Answerer(model, tokenizer, context_length=256)


def prompt_about(video: int, *turns: list[int]) -> Prompt:
    """A start token, six visual tokens and `turns` of text; the prefill pauses after each of them."""
    features = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(video))
    token_ids, ends = [START, *[VIDEO_TOKEN] * 6], [7]
    for turn in turns:
        token_ids += turn
        ends.append(len(token_ids))
    return Prompt("?", token_ids, tuple(ends), features, video_fingerprint=f"video {video}")


def text_prompt(token_ids: list[int]) -> Prompt:
    return Prompt("?", token_ids, (len(token_ids),))


def answer(answerer: Answerer, prompt: Prompt, max_new_tokens: int = 12) -> Answer:
    return answerer.stream(prompt, Decoding(max_new_tokens)).answer


def generate_plainly(model: LongVLMForConditionalGeneration, prompt: Prompt, max_new_tokens: int = 12) -> list[int]:
    """The oracle: transformers' own loop, with no cache from before."""
    ids = torch.tensor([prompt.token_ids])
    visual = {} if prompt.visual_features is None else {"visual_tokens": prompt.visual_features}
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=STOP,
            eos_token_id=STOP,
            **visual,
        )
    return output[0, len(prompt.token_ids) :].tolist()


class TestReuse:
    def test_what_is_reused_are_whole_chunks_of_the_same_video(self, answerer: Answerer) -> None:
        first, second, third = [10, 11, 12], [20, 21], [30, 31, 32, 33]
        for prompt, cached_tokens in (
            (prompt_about(1, first), 0),
            (prompt_about(1, second), 7),
            (prompt_about(1, second, third), 9),
            (prompt_about(1, second, third), 9),  # the last chunk is computed again, for its logits
            (prompt_about(1, first, third), 7),
            (prompt_about(2, first, third), 0),
            (prompt_about(1, first, third), 0),
            (text_prompt([START, 10, 11]), 0),
            (text_prompt([START, 10, 11, 12]), 0),
        ):
            assert answer(answerer, prompt).cached_tokens == cached_tokens

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_reuse_changes_no_bit(self, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> None:
        model = make_model(LlamaConfig(**TEXT)).to(dtype)
        reusing = Answerer(model, tokenizer, context_length=256)
        random = torch.Generator().manual_seed(1)
        for turn in range(5):
            questions = [torch.randint(3, 259, (4 + turn,), generator=random).tolist() for _ in range(1 + turn % 3)]
            prompt = prompt_about(1, *questions)
            stream = reusing.stream(prompt, Decoding(6))
            fresh = Answerer(model, tokenizer, context_length=256).stream(prompt, Decoding(6))
            assert list(stream) == list(fresh)
            assert stream.answer.cached_tokens >= (7 if turn else 0)
            assert fresh.answer.cached_tokens == 0

    def test_tokens_equal_plain_generation(
        self, model: LongVLMForConditionalGeneration, answerer: Answerer, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        for prompt in (
            prompt_about(1, [10, 11]),
            prompt_about(1, [12, 13, 14]),
            prompt_about(1, [12, 13, 14], [50]),
            prompt_about(3, [12]),
            text_prompt([START, 70, 71, 72]),
        ):
            expected = tokenizer.decode(generate_plainly(model, prompt), skip_special_tokens=True).strip()
            assert answer(answerer, prompt).text == expected

    def test_sliding_windows_are_computed_afresh(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Their cache has forgotten the early tokens, so that it can't be taken back to them."""
        model = make_model(MistralConfig(**TEXT, sliding_window=6))
        answerer = Answerer(model, tokenizer, context_length=256)
        for question in ([10, 11, 12], [20, 21, 22, 23]):
            prompt = prompt_about(1, question)
            answered = answer(answerer, prompt)
            expected = tokenizer.decode(generate_plainly(model, prompt), skip_special_tokens=True).strip()
            assert (answered.text, answered.cached_tokens) == (expected, 0)

    @pytest.mark.parametrize("forward_call", [1, 2, 3, 6])
    def test_interrupt_stops_at_once_and_leaves_nothing_half_done(
        self, model: LongVLMForConditionalGeneration, answerer: Answerer, forward_call: int
    ) -> None:
        """Ctrl-C in the middle of a forward pass, when the layers' caches differ in length."""
        prompt = prompt_about(1, [10, 11])
        expected = answer(answerer, prompt).text
        answer(answerer, prompt_about(2, [10]))
        calls = 0

        def interrupt(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == forward_call:
                raise KeyboardInterrupt

        hook = model.model.language_model.layers[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            answer(answerer, prompt)
        hook.remove()
        again = answer(answerer, prompt)
        assert (again.text, again.cached_tokens) == (expected, 0)

    def test_a_stream_nobody_listens_to_any_more_keeps_its_prefix(self, answerer: Answerer) -> None:
        prompt = prompt_about(1, [10, 11], [40])
        expected = answer(answerer, prompt).text
        for stop_after in (1, 3):
            stream = answerer.stream(prompt, Decoding(12))
            for _ in range(stop_after):
                next(stream)
            stream.close()
            again = answer(answerer, prompt)
            assert (again.text, again.cached_tokens) == (expected, 9)


class TestEnd:
    def test_stop_tokens(self, model: LongVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        prompt = prompt_about(1, [10, 11])
        tokens = generate_plainly(model, prompt)
        stop = next(token for token in tokens if token != tokens[0])
        place = tokens.index(stop)
        before = model.generation_config
        try:
            for listed in (stop, [258, stop]):
                model.generation_config = GenerationConfig(eos_token_id=listed)
                answered = answer(Answerer(model, tokenizer, context_length=None), prompt)
                assert answered.text == tokenizer.decode(tokens[:place]).strip()
                assert (answered.finish_reason, answered.new_tokens) == ("stop", place + 1)
                [batched] = Answerer(model, tokenizer, context_length=None).answer_batch([prompt], Decoding(12))
                assert (batched.text, batched.new_tokens) == (answered.text, answered.new_tokens)
        finally:
            model.generation_config = before

    def test_context_ends(self, model: LongVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        prompt = prompt_about(1, [10, 11])
        answerer = Answerer(model, tokenizer, context_length=len(prompt.token_ids) + 4)
        for answered in (answer(answerer, prompt), *answerer.answer_batch([prompt], Decoding(12))):
            assert (answered.new_tokens, answered.finish_reason) == (4, "length")


class TestBatch:
    def test_equals_single_answers(self, answerer: Answerer) -> None:
        prompts = [
            prompt_about(1, [10, 11, 12, 13, 14, 15, 16]),
            text_prompt([START, 40]),
            prompt_about(2, [10]),
            prompt_about(2, [10], [60, 61, 62]),
        ]
        singles = [answer(answerer, prompt) for prompt in prompts]
        batch = answerer.answer_batch(prompts, Decoding(12))
        assert [answered.text for answered in batch] == [answered.text for answered in singles]
        assert [answered.prompt_tokens for answered in batch] == [14, 2, 8, 11]

    def test_sampling_is_repeatable(self, answerer: Answerer) -> None:
        prompts = [prompt_about(1, [10]), prompt_about(2, [10, 11])]
        texts = [
            [answered.text for answered in answerer.answer_batch(prompts, Decoding(12, 2.0, seed))]
            for seed in (1, 1, 2)
        ]
        assert texts[0] == texts[1] != texts[2]

    def test_rows_have_room_of_their_own(
        self, model: LongVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        prompts = [text_prompt([START, *range(10, 29)]), prompt_about(1, [10]), text_prompt([START, 40])]
        answerer = Answerer(model, tokenizer, context_length=22)
        singles = [answer(answerer, prompt, 18) for prompt in prompts]
        batch = answerer.answer_batch(prompts, Decoding(18))
        assert [answered.text for answered in batch] == [answered.text for answered in singles]
        assert [answered.new_tokens for answered in batch] == [2, 14, 18]


class TestSampling:
    def test_low_temperature_is_greedy_and_no_seed_is_any(self, answerer: Answerer) -> None:
        prompt = prompt_about(1, [10, 11])
        greedy = answer(answerer, prompt).text
        for temperature in (1e-4, 1e-50, 5e-324):
            assert answerer.stream(prompt, Decoding(12, temperature, 5)).answer.text == greedy
        assert len({answerer.stream(prompt, Decoding(12, 3.0)).answer.text for _ in range(4)}) > 1

    @pytest.mark.parametrize("seed", [2**64 - 1, -(2**63), 0])
    def test_every_seed_and_temperature_allowed_works(self, answerer: Answerer, seed: int) -> None:
        for temperature in (5e-324, 1.0, 1e300):
            assert answerer.stream(prompt_about(1, [10]), Decoding(2, temperature, seed)).answer.new_tokens > 0

    def test_frequencies_follow_the_softmax(
        self, model: LongVLMForConditionalGeneration, answerer: Answerer, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        prompt = text_prompt([START, 40, 41])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt.token_ids])).logits[0, -1]
        texts = [tokenizer.decode([token], skip_special_tokens=True).strip() for token in range(259)]
        likeliest = texts[int(logits.argmax())]
        chosen = torch.tensor([text == likeliest for text in texts])
        probability = float((logits / 0.5).softmax(-1)[chosen].sum())
        prompts = [dataclasses.replace(prompt, video_fingerprint=str(number)) for number in range(2000)]
        batch = answerer.answer_batch(prompts, Decoding(1, 0.5, seed=0))
        share = sum(answered.text == likeliest for answered in batch) / len(batch)
        assert 0.1 < probability < 0.95
        assert share == pytest.approx(probability, abs=0.04)

    def test_a_sampled_answer_does_not_depend_on_the_others(self, answerer: Answerer) -> None:
        prompts = [prompt_about(video, [30, 40 + video]) for video in range(4)]
        decoding = Decoding(12, 2.0, seed=1)
        alone = [answerer.stream(prompt, decoding).answer.text for prompt in prompts]
        assert [answered.text for answered in answerer.answer_batch(prompts, decoding)] == alone
        assert [answered.text for answered in answerer.answer_batch(prompts[::-1], decoding)] == alone[::-1]


def test_half_a_character_costs_no_whole_one(
    model: LongVLMForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["<s>", "</s>", "<v>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True))
    words.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    coming = iter("\N{CJK UNIFIED IDEOGRAPH-4F60}".encode() + b"\xe5")

    def say(self: Answerer, *_: object, **__: object) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([3 + next(coming, 0)]), 259).float()

    monkeypatch.setattr(Answerer, "_forward", say)
    stream = Answerer(model, tokenizer, context_length=256).stream(text_prompt([START, 40]), Decoding(4))
    assert "".join(stream) == stream.answer.text == "\N{CJK UNIFIED IDEOGRAPH-4F60}"


class TestValues:
    def test_prompt_must_end_with_its_last_chunk(self) -> None:
        with pytest.raises(ValueError, match="must end at the prompt's 3 tokens"):
            Prompt("?", [1, 2, 3], (2,))

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"max_new_tokens": 0}, "max_new_tokens is 0"),
            ({"temperature": -0.1}, "temperature is -0.1"),
            ({"temperature": float("nan")}, "temperature is nan"),
            ({"seed": 2**64}, f"seed is {2**64}"),
            ({"seed": -(2**63) - 1}, "seed is -"),
        ],
    )
    def test_decoding_is_checked(self, settings: dict[str, float], words: str) -> None:
        with pytest.raises(LongVLMError, match=words):
            Decoding(**settings)

    def test_what_the_video_cost_is_added(self, answerer: Answerer) -> None:
        spent = Timings(decode_seconds=2.0, encode_seconds=3.0, total_seconds=6.0)
        timings = answer(answerer, dataclasses.replace(prompt_about(1, [10]), spent=spent)).timings
        assert (timings.decode_seconds, timings.encode_seconds) == (2.0, 3.0)
        assert timings.total_seconds == pytest.approx(6 + timings.prefill_seconds + timings.generate_seconds)
        assert timings.prefill_seconds > 0
