"""Conversations about videos as training examples: read, checked, weighed, and turned into tensors one by one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from longvlm.errors import LongVLMError
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.processing import LongVLMProcessor
from longvlm.model.prompting import context_length
from longvlm.stages.tokens import assemble, count_segments, count_visual_tokens
from longvlm.stages.video import open_video
from longvlm.training.examples import IGNORED, Example
from longvlm.training.examples import collate as collate_tokens
from longvlm.training.features import StoredVideo
from longvlm.training.instructions import VIDEO_PLACEHOLDER, Conversation
from longvlm.types import Sampling
from longvlm.video_index import VideoIndex


@dataclass(frozen=True)
class Sample:
    """One conversation of a data set, and its video: stored features, or a file whose frames the encoder learns from.

    `weight` is that of its data set; `place` names it in errors.
    """

    conversation: Conversation
    video: StoredVideo | Path | None
    weight: float
    place: str


def to_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """A conversation as the processor wants it; the video stands where `<video>` is written."""
    messages: list[dict[str, Any]] = []
    for turn in conversation.turns:
        before, placeholder, after = turn.text.partition(VIDEO_PLACEHOLDER)
        texts = [{"type": "text", "text": text.strip("\n ")} for text in (before, after)]
        parts = [texts[0], {"type": "video"}, texts[1]] if placeholder else [{"type": "text", "text": turn.text}]
        content = [part for part in parts if part.get("text") != ""]
        messages.append({"role": "user" if turn.speaker == "human" else "assistant", "content": content})
    return messages


class VideoConversations(Dataset):
    """Samples as examples of `input_ids`, `labels` (T,) and `visual_tokens` (n, D), or `pixels` of the frames.

    Labels are the answers and their end marks. `max_tokens`: a longer example loses its end.
    """

    def __init__(
        self, samples: Sequence[Sample], processor: LongVLMProcessor, config: LongVLMConfig, *, max_tokens: int
    ) -> None:
        self.samples = samples
        self.max_tokens = max_tokens
        self._processor = processor
        self._config = config
        self._compression = config.compression_settings

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Example:
        example = self._write_out(position)
        ids, labels = example["input_ids"], example["labels"]
        is_video = ids == self._processor.video_token_id
        if bool(is_video[self.max_tokens :].any()) or bool((labels[: self.max_tokens] == IGNORED).all()):
            raise LongVLMError(
                f"{self.samples[position].place} has {len(ids)} tokens, {int(is_video.sum())} of them visual, and no "
                f"answer in the first {self.max_tokens}; set schedule.max_tokens higher, or take the row out."
            )
        return {**example, "input_ids": ids[: self.max_tokens], "labels": labels[: self.max_tokens]}

    def _write_out(self, position: int) -> Example:
        """The whole example, however long."""
        sample = self.samples[position]
        spans, num_segments = None, None
        if isinstance(sample.video, StoredVideo):
            index = VideoIndex.load(sample.video.path)
            video = {"visual_tokens": assemble(index).features}
            spans, num_segments = index.segment_spans_seconds, index.num_segments
        elif sample.video is not None:
            pixels, spans = self._read_frames(sample.video)
            video, num_segments = {"pixels": pixels}, len(spans)
        else:
            video = {"visual_tokens": torch.zeros(0, self._config.visual_width)}
        input_ids, labels = self._processor.training_example(
            to_messages(sample.conversation),
            num_segments,
            compression=self._compression,
            segment_spans=spans if self._config.timestamps else None,
        )
        return {"input_ids": input_ids, "labels": labels, **video}

    def _read_frames(self, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """Fitted frames (T, 3, R, R) uint8 of a video, and the spans (S, 2) of its segments in seconds."""
        sampling, size = Sampling(num_frames=self._config.default_num_frames), self._compression.frames_per_segment
        with open_video(path) as reader:
            segments = reader.segments(
                sampling,
                frames_per_segment=size,
                image_size=self._processor.image_size,
                fit=self._compression.fit,
            )
            frames = list(segments)
            duration, lost_seconds = reader.info.duration_seconds or 0.0, reader.lost_seconds
        if lost_seconds:
            raise LongVLMError(
                f"{path}: its last {lost_seconds:.1f} s can't be decoded, and an encoder learns from whole videos; "
                "mend it, or take its rows out."
            )
        starts = [0.0, *(float(segment.times_seconds[0]) for segment in frames[1:])]
        spans = torch.tensor(list(zip(starts, [*starts[1:], duration], strict=True)), dtype=torch.float64)
        # A short last segment is filled by repeating its frames, which the model does itself: each once.
        in_last = (sampling.num_frames or 0) - size * (len(frames) - 1)
        once = [-(-place * size // in_last) for place in range(in_last)]
        return torch.cat([*(segment.pixels for segment in frames[:-1]), frames[-1].pixels[once]]), spans

    def estimate_lengths(self) -> list[int]:
        """About how many tokens each sample has, without writing out its conversation."""
        texts = [" ".join(turn.text for turn in sample.conversation.turns) for sample in self.samples]
        encoded = self._processor.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [len(ids) + self._count_visual(s) for ids, s in zip(encoded, self.samples, strict=True)]

    def _count_visual(self, sample: Sample) -> int:
        if sample.video is None:
            return 0
        if isinstance(sample.video, StoredVideo):
            return sample.video.num_tokens
        num_segments = count_segments(self._config.default_num_frames or 0, self._compression.frames_per_segment)
        return count_visual_tokens(num_segments, self._compression)

    def require_room(self, lengths: Sequence[int]) -> int:
        """How many samples of these estimated `lengths` will lose their end.

        Raises LongVLMError for one without room for an answer, or longer than the language model's context, before a
        training of days comes to it.
        """
        if not lengths:
            return 0
        # The template's own words, of which every turn has some, and what stands around visual tokens.
        kinds = [(len(sample.conversation.turns), self._count_visual(sample)) for sample in self.samples]
        longest = {kinds[p]: p for p in sorted(range(len(lengths)), key=lambda position: lengths[position])}
        overhead = {kind: len(self._write_out(p)["input_ids"]) - lengths[p] for kind, p in longest.items()}
        written = [length + overhead[kind] for length, kind in zip(lengths, kinds, strict=True)]
        limit, most = context_length(self._config), min(max(written), self.max_tokens)
        if limit is not None and most > limit:
            raise LongVLMError(
                f"The longest sample has {most} tokens, and the language model's context holds {limit}; set "
                f"schedule.max_tokens={limit}, with which it loses its end, or look at fewer frames."
            )
        too_long = [p for p, length in enumerate(written) if length > self.max_tokens]
        for position in too_long:
            self[position]
        return len(too_long)


class BatchMaker:
    """Examples to a batch for the model: padded on the right, visual tokens flat, frames normalised."""

    def __init__(self, processor: LongVLMProcessor) -> None:
        self._processor = processor

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        pixels = [example["pixels"] for example in examples if "pixels" in example]
        if not pixels:
            return collate_tokens(examples)
        batch = collate_tokens([{name: e[name] for name in ("input_ids", "labels")} for e in examples])
        return {**batch, "pixel_values_videos": self._processor.normalise(torch.stack(pixels))}


def hold_out(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to train on, and to measure on, of which there are some if `share` is above 0.

    All rows about one video, or of one id, go the same way.
    """

    def name(sample: Sample) -> str:
        return sample.conversation.video or sample.conversation.id or sample.place

    def draw(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    names = sorted({name(sample) for sample in samples}, key=draw)
    chosen = set(names[: math.ceil(share * len(names))])
    return [s for s in samples if name(s) not in chosen], [s for s in samples if name(s) in chosen]


def count_moved_videos(samples: Sequence[Sample], processor: LongVLMProcessor) -> int:
    """How many samples have their video behind a question, where the chat template writes videos first all the same."""
    text, video = {"type": "text", "text": "Q"}, {"type": "video"}
    in_order, turned = (
        processor.prompt([{"role": "user", "content": parts}], num_segments=1)
        for parts in ([text, video], [video, text])
    )
    if in_order != turned:
        return 0
    return sum(
        any(message["content"][0]["type"] == "text" and {"type": "video"} in message["content"] for message in messages)
        for messages in (to_messages(sample.conversation) for sample in samples)
    )


def require_plain_texts(samples: Sequence[Sample], processor: LongVLMProcessor) -> None:
    """Raise LongVLMError, naming the row, for a text with a token of the model's own, which would forge a turn."""
    reserved = processor.reserved_words
    for sample in samples:
        for turn in sample.conversation.turns:
            text = turn.text.replace(VIDEO_PLACEHOLDER, "")
            for token in reserved:
                if token in text:
                    raise LongVLMError(f"{sample.place} contains {token!r}, which the model reserves; remove it.")
