"""LongVLMProcessor: from a conversation about a video to token ids, and from frames to the tower's input."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from os.path import commonprefix
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from longvlm.errors import LongVLMError, one_line
from longvlm.model.llava_config import remember_legacy
from longvlm.stages.tokens import count_visual_tokens, format_timestamp
from longvlm.types import Compression

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Vicuna 1.1's conversation, for checkpoints that bring no template of their own.
VICUNA_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% else %}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. '"
    " ~ 'The assistant gives helpful, detailed, and polite answers to the user\\'s questions. ' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# How a template reads the parts of a message; a template without any of these wants a string.
_READS_PARTS = re.compile(r"\.type\b|\[['\"]type['\"]\]|attr\(['\"]type['\"]")

Message = Mapping[str, Any]
Spans = Sequence[Sequence[float]] | torch.Tensor


class LongVLMProcessor(ProcessorMixin):
    """Tokenizer, conversation template and normalisation of one model.

    Args:
        video_token: text of the token that stands for one visual token; a single token of the tokenizer.
        video_start_token, video_end_token: written around a video's tokens; None for imported LLaVA
            checkpoints, whose language models know no such tokens.
        image_mean, image_std: per channel, for pixels in [0, 1].
        image_size: side of the tower's square in pixels.
        compression: settings of `longvlm.types.Compression`, which give the number of tokens of a video.
        chat_template: without one, the tokenizer's is used, and without that Vicuna 1.1's.

    Messages are `{"role": "system" | "user" | "assistant", "content": TEXT or PARTS}`, where a part is
    `{"type": "video"}` or `{"type": "text", "text": TEXT}`; one video a conversation.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        video_token: str = "<vid_patch>",
        video_start_token: str | None = "<vid_start>",
        video_end_token: str | None = "<vid_end>",
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        image_size: int = 224,
        compression: dict | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.video_token = video_token
        self.video_start_token = video_start_token
        self.video_end_token = video_end_token
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.image_size = image_size
        self.compression = compression
        for token in filter(None, (video_token, video_start_token, video_end_token)):
            if token not in tokenizer.get_vocab():
                raise LongVLMError(f"The tokenizer has no token {token!r}; add it with tokenizer.add_special_tokens.")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        remember_legacy(tokenizer)
        super().__init__(tokenizer, chat_template=chat_template)

    @property
    def compression_settings(self) -> Compression:
        return Compression.from_dict(self.compression or {})

    @property
    def video_token_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.video_token)

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        num_segments: int | None = None,
        compression: Compression | None = None,
        segment_spans: Spans | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation as text, with the video written out as its visual tokens.

        `segment_spans` (S, 2), in seconds, writes each segment's start time before its tokens.
        A longer conversation's text starts with that of a shorter one where the template allows it, so that
        what was computed for the first turn can be reused in the next.
        """
        num_videos = sum(part["type"] == "video" for message in messages for part in _parts(message))
        if num_videos > 1:
            raise LongVLMError(f"The messages have {num_videos} videos; a conversation can have one.")
        has_video = num_videos == 1
        if has_video != (num_segments is not None):
            raise LongVLMError(
                "The messages have a video, but num_segments is not given."
                if has_video
                else f"num_segments is {num_segments}, but no message has a part of type 'video'."
            )
        text = self._render(messages, add_generation_prompt=add_generation_prompt)
        if num_segments is None:
            return text
        num_places = text.count(self.video_token)
        if num_places != 1:
            raise LongVLMError(
                f"For a video the chat template writes {self.video_token!r} {num_places} times, not once; "
                "use a template that knows parts of type 'image' or 'video', or none."
            )
        video_text = self._video_text(num_segments, compression or self.compression_settings, segment_spans)
        return text.replace(self.video_token, video_text)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt; the start-of-text token is added unless the template wrote it."""
        return self.tokenizer(text, add_special_tokens=not self._has_start(text))["input_ids"]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        videos: torch.Tensor | Sequence[torch.Tensor] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Prompts (of `prompt`) as one batch: `input_ids` and `attention_mask`, padded on the left.

        `videos`: uint8 RGB frames (V, T, 3, R, R) or a sequence of (T, 3, R, R), already fitted to
        `image_size`, T alike in all; they become `pixel_values_videos`. Raises LongVLMError for unlike ones.
        """
        texts = [text] if isinstance(text, str) else list(text)
        ids = {"input_ids": [self.encode(one) for one in texts]}
        batch = self.tokenizer.pad(ids, padding_side="left", return_tensors=return_tensors)
        data = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if videos is not None:
            lengths = sorted({len(video) for video in videos})
            if len(lengths) > 1:
                raise LongVLMError(
                    f"Videos of {' and '.join(map(str, lengths))} frames can't be one batch of frames; sample as many "
                    "of each, or give the model their visual_tokens, which may differ in number."
                )
            pixels = videos if isinstance(videos, torch.Tensor) else torch.stack(list(videos))
            data["pixel_values_videos"] = self.normalise(pixels)
        return BatchFeature(data)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 RGB (…, 3, R, R) -> float32: scaled to [0, 1], then by each channel's mean and deviation."""
        mean = torch.tensor(self.image_mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.image_std, device=pixels.device).view(3, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def training_example(
        self,
        messages: Sequence[Message],
        num_segments: int | None = None,
        *,
        compression: Compression | None = None,
        segment_spans: Spans | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole conversation as `input_ids` (T,) and `labels` (T,).

        Labels are the ids of the assistant's answers and their end marks; everything else is -100. Answers stand after
        what `prompt` ends with, even where the template opens past turns with other blanks. Raises LongVLMError where
        they differ in more.
        """

        @cache  # the whole conversation mostly ends with an answer
        def text_of(count: int, generation_prompt: bool) -> str:
            until = messages[:count]
            segments = num_segments if any(p["type"] == "video" for m in until for p in _parts(m)) else None
            return self.prompt(
                until,
                num_segments=segments,
                compression=compression,
                segment_spans=segment_spans,
                add_generation_prompt=generation_prompt,
            )

        whole = text_of(len(messages), False)
        text, copied, answers = "", 0, []  # `copied` characters of the whole stand in `text`
        for position, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = text_of(position, True), text_of(position + 1, False).rstrip()
            shared = len(commonprefix([before, after]))  # noqa: RUF071 - of texts, as meant
            if before[shared:].strip() or not whole.startswith(after):
                raise LongVLMError("The chat template rewrites earlier turns, so answers can't be told from prompts.")
            # Some templates open a turn with other blanks than they prompt for one: those of the prompt are written.
            begins = shared if shared == len(before) else len(after) - len(after[shared:].lstrip())
            text += whole[copied:shared] + before[shared:]
            answers.append((len(text), len(text) + len(after) - begins))
            text += after[begins:]
            copied = len(after)
        text += whole[copied:]
        encoding = self.tokenizer(text, add_special_tokens=not self._has_start(text), return_offsets_mapping=True)
        input_ids = torch.tensor(encoding["input_ids"])
        starts, ends = torch.tensor(encoding["offset_mapping"]).unbind(1)
        is_answer = torch.zeros_like(input_ids, dtype=torch.bool)
        for begin, end in answers:
            is_answer |= (begin < ends) & (starts < end)  # a first word may bring the blank before it
        return input_ids, input_ids.where(is_answer, -100)

    def _video_text(self, num_segments: int, compression: Compression, segment_spans: Spans | None) -> str:
        num_tokens = count_visual_tokens(num_segments, compression)
        start, end = self.video_start_token or "", self.video_end_token or ""
        if segment_spans is None:
            return start + self.video_token * num_tokens + end
        if len(segment_spans) != num_segments:
            raise LongVLMError(f"{len(segment_spans)} segment_spans for {num_segments} segments; one each is needed.")
        num_global = compression.global_layers
        per_segment = self.video_token * ((num_tokens - num_global) // num_segments)
        segments = [f" {format_timestamp(float(span[0]))} {per_segment}" for span in segment_spans]
        return start + self.video_token * num_global + "".join(segments) + end

    def _has_start(self, text: str) -> bool:
        start = self.tokenizer.bos_token
        return start is not None and text.startswith(start)

    @property
    def _template(self) -> str:
        template = self.chat_template or self.tokenizer.chat_template or VICUNA_TEMPLATE
        if isinstance(template, dict):
            template = template.get("default")
        if not isinstance(template, str):
            raise LongVLMError("The model has no default chat template; give one as chat_template.jinja beside it.")
        return template

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The template's text, with `video_token` once where a video stands."""
        conversation, reserved = [], self.reserved_words
        end_mark = self._missing_end_mark() if any(m["role"] == "assistant" for m in messages) else ""
        for message in messages:
            parts = _parts(message)
            _refuse_words(parts, reserved)
            if message["role"] == "assistant":
                parts = [*parts[:-1], {"type": "text", "text": parts[-1]["text"] + end_mark}]
            conversation.append({"role": message["role"], "content": self._content(parts)})
        return self._apply(conversation, add_generation_prompt)

    def _apply(self, conversation: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                conversation,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # its own refusals, and whatever a mistake in it comes to
            reason = one_line(error)
            raise LongVLMError(
                f"The model's chat template can't write this conversation ({reason}); change the order and the "
                "roles of the messages, or the template."
            ) from error

    def _content(self, parts: list[dict[str, str]]) -> str | list[dict[str, str]]:
        if _READS_PARTS.search(self._template):
            # Templates of image models know no videos; the token they write for an image is ours for a video.
            kind = "video" if "video" in self._template else "image"
            return [{"type": kind} if part["type"] == "video" else part for part in parts]
        return "\n".join(self.video_token if part["type"] == "video" else part["text"] for part in parts)

    def _missing_end_mark(self) -> str:
        """The end-of-text token where the template ends an answer with no mark (LLaVA 1.5's), else ''."""
        probe = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}]
        conversation = [{"role": m["role"], "content": self._content(_parts(m))} for m in probe]
        after_answer = self._apply(conversation, False).rpartition("ANSWER")[2]
        return "" if after_answer.strip() else self.tokenizer.eos_token or ""

    def break_up_reserved(self, text: str) -> str:
        """The text with a blank in each word that would be read as a control token: "< s>"."""
        for token in sorted(self.reserved_words, key=len, reverse=True):
            text = text.replace(token, f"{token[:1]} {token[1:]}")
        return text

    @property
    def reserved_words(self) -> list[str]:
        """Texts that the tokenizer would read as control tokens wherever they stand, a user's words included: "</s>" in
        a question could forge a turn.
        """
        video_tokens = (self.video_token, self.video_start_token, self.video_end_token)
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return sorted({token for token in (*video_tokens, *self.tokenizer.all_special_tokens, *added) if token})


def _refuse_words(parts: list[dict[str, str]], reserved: list[str]) -> None:
    for part in parts:
        for token in reserved:
            if token in part.get("text", ""):
                raise LongVLMError(f"A message contains {token!r}, which the model reserves; remove it.")


def _parts(message: Message) -> list[dict[str, str]]:
    """A message's content as parts, checked."""
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise LongVLMError(f"Unknown role {role!r} of a message; known ones are system, user and assistant.")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    for part in parts:
        if part.get("type") not in ("video", "text"):
            raise LongVLMError(f"Unknown part {part!r} in a message; known types are 'video' and 'text'.")
        if part["type"] == "video" and role != "user":
            raise LongVLMError(f"A {role} message has a video; only a user's message can bring one.")
    if not parts:
        raise LongVLMError(f"A {role} message is empty; give it a text.")
    return parts
