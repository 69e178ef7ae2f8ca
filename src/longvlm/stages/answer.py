"""Answering: prompts in, text out piece by piece, without computing a video's part of the prompt twice.

The loop is our own rather than transformers' `generate`: a plain generator streams without a worker thread,
stops at once when interrupted, and keeps the KV cache. A prompt is prefilled in chunks that end at fixed
places (after the video, after each turn's question), and only whole chunks are reused. So what is reused
was computed exactly as a fresh prefill would compute it, and the answers are the same bit by bit, in any
dtype.
"""

from __future__ import annotations

import dataclasses
import hashlib
import string
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from longvlm.clock import StageClock
from longvlm.errors import LongVLMError
from longvlm.types import Answer, Timings

_NO_CHARACTER, _MOST_BYTES_OF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}", 4
# An end of a text that later tokens may still change: a character of which bytes are missing, or white space,
# which is shown only if something follows it.
_UNSETTLED = _NO_CHARACTER + string.whitespace


@dataclass(frozen=True)
class Prompt:
    """A question made ready for the language model.

    `token_ids` is the whole prompt, with a placeholder for every visual token; `visual_features` (G + S·M, D)
    stand in their place, and `video_fingerprint` tells videos apart, whose placeholders are all alike. The
    prefill pauses at `chunk_ends`, rising to len(token_ids); the first lies behind the last visual token.
    `spent` is what the question's video has cost so far, to be counted to its answer.
    """

    question: str
    token_ids: list[int]
    chunk_ends: tuple[int, ...]
    visual_features: torch.Tensor | None = None
    video_fingerprint: str = ""
    spent: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        if not self.chunk_ends or self.chunk_ends[-1] != len(self.token_ids):
            raise ValueError(f"chunk_ends {self.chunk_ends} must end at the prompt's {len(self.token_ids)} tokens")


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen: the likeliest at temperature 0, else sampled, repeatably with a seed."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise LongVLMError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise LongVLMError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number.")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise LongVLMError(f"seed is {self.seed}; it must be a number of 64 bits, from -2**63 to 2**64 - 1.")


class AnswerStream(Iterator[str]):
    """The pieces of an answer's text, as they are generated; together they are `answer.text`."""

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        self._pieces = pieces
        self._answer: Answer | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._answer = self._answer or end.value
            raise

    @property
    def answer(self) -> Answer:
        """The whole answer; pieces that nobody has taken yet are generated first."""
        for _ in self:
            pass
        if self._answer is None:
            raise RuntimeError("the stream was closed before its answer was complete")
        return self._answer

    def close(self) -> None:
        """Stop generating."""
        self._pieces.close()


@dataclass(frozen=True)
class _Prefix:
    """The last prompt that was computed, the state of the weights then, and the KV cache of exactly its tokens."""

    prompt: Prompt
    weights_state: int
    cache: Cache

    def reusable_chunks(self, prompt: Prompt, weights_state: int) -> int:
        """How many of `prompt`'s first chunks this prefix holds: same weights, same video, same tokens."""
        if weights_state != self.weights_state or prompt.video_fingerprint != self.prompt.video_fingerprint:
            return 0
        count = 0
        # The last chunk is always computed: its logits choose the first token.
        for own_end, end in zip(self.prompt.chunk_ends, prompt.chunk_ends[:-1], strict=False):
            if own_end != end or self.prompt.token_ids[:end] != prompt.token_ids[:end]:
                break
            count += 1
        return count


class Answerer:
    """Generates answers with one language model, whose forward takes `visual_tokens` for placeholders.

    The KV cache of one prompt is kept, and taken out while it is in use, so streams that run side by side
    never share one; a change of the model's weights makes it void. `context_length` is the most tokens that
    prompt and answer may have together. Of the checkpoint's generation settings only the stop tokens count.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context_length: int | None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.context_length = context_length
        stop = model.generation_config.eos_token_id if model.generation_config else None
        listed = stop if isinstance(stop, list) else [stop]
        self._stop_ids = {token for token in (*listed, tokenizer.eos_token_id) if token is not None}
        self._prefix: _Prefix | None = None

    def stream(self, prompt: Prompt, decoding: Decoding) -> AnswerStream:
        """Answer one prompt, piece by piece, reusing what is left of the last prompt's computation."""
        return AnswerStream(self._answer(prompt, decoding))

    def answer_batch(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Answer]:
        """Answer all prompts at once, as one left-padded batch; each answer's timings are the batch's."""
        clock = StageClock(self.model.device)
        with clock.running("prefill_seconds"):
            token_ids, mask = self._left_pad(prompts)
            visual = [prompt.visual_features for prompt in prompts if prompt.visual_features is not None]
            cache = DynamicCache(config=self.model.config)
            logits = self._forward(token_ids, mask, cache, visual or None)
        rooms = [self._room(prompt, decoding) for prompt in prompts]
        steps: list[list[int]] = []
        finished = [False] * len(prompts)
        for chosen in clock.each("generate_seconds", self._tokens(prompts, logits, mask, cache, decoding)):
            steps.append(chosen)
            finished = [
                done or token in self._stop_ids or len(steps) == room
                for done, token, room in zip(finished, chosen, rooms, strict=True)
            ]
            if all(finished):
                break
        return [
            self._to_answer(prompt, [step[row] for step in steps[:room]], 0, clock)
            for row, (prompt, room) in enumerate(zip(prompts, rooms, strict=True))
        ]

    def _answer(self, prompt: Prompt, decoding: Decoding) -> Generator[str, None, Answer]:
        clock = StageClock(self.model.device)
        weights_state = self._weights_state()
        with clock.running("prefill_seconds"):
            cache, cached_tokens = self._take_prefix(prompt, weights_state)
            logits = self._prefill(prompt, cache, cached_tokens)
        mask = torch.ones(1, len(prompt.token_ids), dtype=torch.long, device=self.model.device)
        room = self._room(prompt, decoding)
        new_ids: list[int] = []
        shown = ""
        try:
            for (token,) in clock.each("generate_seconds", self._tokens([prompt], logits, mask, cache, decoding)):
                new_ids.append(token)
                if token in self._stop_ids or len(new_ids) == room:
                    break
                settled = self._decode(new_ids).rstrip(_UNSETTLED)
                if len(settled) > len(shown):
                    yield settled[len(shown) :]
                    shown = settled
            answer = self._to_answer(prompt, new_ids, cached_tokens, clock)
            if len(answer.text) > len(shown):
                yield answer.text[len(shown) :]
        except GeneratorExit:  # nobody listens any more; between two tokens, so the cache is whole
            self._keep_prefix(prompt, weights_state, cache)
            raise
        self._keep_prefix(prompt, weights_state, cache)
        return answer

    def _weights_state(self) -> int:
        """A number that changes when any weight does: torch counts the changes made to a tensor in its place."""
        return hash(tuple((weight.data_ptr(), weight._version) for weight in self.model.parameters()))

    def _take_prefix(self, prompt: Prompt, weights_state: int) -> tuple[Cache, int]:
        """A KV cache for `prompt`, and how many of its tokens are in there already."""
        prefix, self._prefix = self._prefix, None
        chunks = prefix.reusable_chunks(prompt, weights_state) if prefix else 0
        if prefix is None or chunks == 0:
            return DynamicCache(config=self.model.config), 0
        cached_tokens = prompt.chunk_ends[chunks - 1]
        _crop(prefix.cache, cached_tokens)
        return prefix.cache, cached_tokens

    def _keep_prefix(self, prompt: Prompt, weights_state: int, cache: Cache) -> None:
        # Other kinds of layers (sliding windows, recurrent states) can't be taken back to an earlier token.
        if all(type(layer) is DynamicLayer for layer in cache.layers):
            _crop(cache, len(prompt.token_ids))
            self._prefix = _Prefix(prompt, weights_state, cache)

    def _prefill(self, prompt: Prompt, cache: Cache, cached_tokens: int) -> torch.Tensor:
        """Compute the chunks after `cached_tokens`; the logits (1, vocabulary) of the token to come."""
        token_ids = torch.tensor([prompt.token_ids], device=self.model.device)
        mask = torch.ones_like(token_ids)
        begin = cached_tokens
        for end in (end for end in prompt.chunk_ends if end > cached_tokens):
            visual = prompt.visual_features if begin == 0 else None
            logits = self._forward(token_ids[:, begin:end], mask[:, :end], cache, None if visual is None else [visual])
            begin = end
        return logits

    def _tokens(
        self, prompts: Sequence[Prompt], logits: torch.Tensor, mask: torch.Tensor, cache: Cache, decoding: Decoding
    ) -> Iterator[list[int]]:
        """Endlessly, each row's next token; a step is computed only when its token is asked for."""
        generators = [_make_generator(decoding.seed, prompt, logits.device) for prompt in prompts]
        while True:
            if decoding.temperature == 0:
                token = logits.argmax(-1, keepdim=True)
            else:
                rows = zip(_sharpen(logits, decoding.temperature), generators, strict=True)
                token = torch.stack([torch.multinomial(shares, 1, generator=generator) for shares, generator in rows])
            yield token[:, 0].tolist()
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = self._forward(token.to(mask.device), mask, cache)

    @torch.inference_mode()
    def _forward(
        self,
        token_ids: torch.Tensor,
        mask: torch.Tensor,
        cache: Cache,
        visual_features: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """token_ids (B, n) after what the cache holds, mask (B, past + n) -> logits (B, vocabulary)."""
        # A row of a batch that is done goes on, unheard; its positions must not leave the context.
        last = None if self.context_length is None else self.context_length - 1
        positions = (mask.cumsum(1) - 1).clamp(min=0, max=last)[:, -token_ids.shape[1] :]
        output = self.model(
            input_ids=token_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            visual_tokens=visual_features,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _left_pad(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask (B, longest); which id pads is of no matter, since the mask hides it."""
        longest = max(len(prompt.token_ids) for prompt in prompts)
        token_ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(token_ids)
        for row, prompt in enumerate(prompts):
            token_ids[row, longest - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
            mask[row, longest - len(prompt.token_ids) :] = 1
        return token_ids.to(self.model.device), mask.to(self.model.device)

    def _room(self, prompt: Prompt, decoding: Decoding) -> int:
        """How many tokens may follow: as many as asked for, or as the context still holds."""
        if self.context_length is None:
            return decoding.max_new_tokens
        return max(1, min(decoding.max_new_tokens, self.context_length - len(prompt.token_ids)))

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.lstrip()

    def _to_answer(self, prompt: Prompt, new_ids: list[int], cached_tokens: int, clock: StageClock) -> Answer:
        """An answer of the tokens up to the first stop token, which counts but says nothing."""
        stop = next((place for place, token in enumerate(new_ids) if token in self._stop_ids), None)
        spoken = self._without_half_a_character(new_ids) if stop is None else new_ids[:stop]
        finish_reason: Literal["stop", "length"] = "length" if stop is None else "stop"
        return Answer(
            question=prompt.question,
            text=self._decode(spoken).rstrip(),
            prompt_tokens=len(prompt.token_ids),
            cached_tokens=cached_tokens,
            new_tokens=len(new_ids) if stop is None else stop + 1,
            finish_reason=finish_reason,
            timings=dataclasses.replace(
                prompt.spent,
                **clock.seconds,
                total_seconds=prompt.spent.total_seconds + sum(clock.seconds.values()),
            ),
        )

    def _without_half_a_character(self, token_ids: list[int]) -> list[int]:
        """Where an answer is cut within a character, some tokenizers lose those before it, too: then without it."""
        text = self._decode(token_ids)
        for cut in range(1, _MOST_BYTES_OF_A_CHARACTER if text.endswith(_NO_CHARACTER) else 1):
            shorter = self._decode(token_ids[:-cut])
            if not shorter.endswith(_NO_CHARACTER) and not text.startswith(shorter):
                return token_ids[:-cut]
        return token_ids


def _crop(cache: Cache, num_tokens: int) -> None:
    """Forget what the cache holds behind its first `num_tokens` tokens."""
    surplus = cache.get_seq_length() - num_tokens
    if surplus > 0:
        cache.crop(-surplus)


def _make_generator(seed: int | None, prompt: Prompt, device: torch.device) -> torch.Generator:
    """What a row of a batch is sampled with; by a seed, so that it says the same whoever else is in the batch."""
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        asked = repr((seed, prompt.video_fingerprint, prompt.token_ids)).encode()
        generator.manual_seed(int.from_bytes(hashlib.sha256(asked).digest()[:8], "little"))
    return generator


def _sharpen(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(logits / temperature) in float32, for any temperature above 0: first the likeliest token is put at
    0, so that a tiny one can't make infinity out of it."""
    limits = torch.finfo(torch.float32)
    divisor = min(max(temperature, limits.tiny), limits.max)
    logits = logits.float()
    return ((logits - logits.amax(-1, keepdim=True)) / divisor).softmax(-1)
