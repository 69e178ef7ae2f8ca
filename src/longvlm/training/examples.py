"""From a conversation about a video to a training example, and from examples to a batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from longvlm.model.processing import LongVLMProcessor
from longvlm.training.segment_bank import SegmentBank
from longvlm.world.questions import Question, make_questions

IGNORED = -100
Example = dict[str, torch.Tensor]


def make_example(
    processor: LongVLMProcessor,
    questions: Sequence[tuple[str, str]],
    visual_tokens: torch.Tensor,
    num_segments: int,
) -> Example:
    """One conversation of (question, answer) turns about one video, the video before the first question.

    input_ids, labels (T,): only the answers and their end marks are learned; visual_tokens (G + S·M, D).
    """
    messages: list[dict[str, Any]] = []
    for turn, (question, answer) in enumerate(questions):
        parts = [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": [{"type": "video"}, *parts] if turn == 0 else parts})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    input_ids, labels = processor.training_example(messages, num_segments)
    return {"input_ids": input_ids, "labels": labels, "visual_tokens": visual_tokens}


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Pad to the longest on the right; padding is neither seen nor learned. Visual tokens follow one another flat."""
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    input_ids = pad_sequence([example["input_ids"] for example in examples], batch_first=True)
    return {
        "input_ids": input_ids,
        "labels": pad_sequence([e["labels"] for e in examples], batch_first=True, padding_value=IGNORED),
        "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
        "visual_tokens": torch.cat([example["visual_tokens"] for example in examples]),
    }


class ComposedVideos(Dataset):
    """Conversations about videos joined from a bank; item i is always the same one.

    Items of one batch have the same number of segments, from `segments` (least, most), so that little is padded;
    with `opening_range` below 1, short videos come first, since order is learned sooner, and cheaper, on them: the
    share of the range of lengths, on a log scale, from which the first videos are drawn; it grows to 1 over the
    first two thirds. `kinds` maps each kind of question to its weight.
    """

    def __init__(
        self,
        bank: SegmentBank,
        processor: LongVLMProcessor,
        *,
        num_videos: int,
        batch_size: int,
        segments: tuple[int, int],
        opening_range: float,
        questions_per_video: int,
        kinds: dict[str, float],
        seed: int,
    ) -> None:
        self.bank = bank
        self.processor = processor
        self.num_videos = num_videos
        self.batch_size = batch_size
        self.segments = segments
        self.opening_range = opening_range
        self.questions_per_video = questions_per_video
        self.kinds = kinds
        self.seed = seed

    def __len__(self) -> int:
        return self.num_videos

    def __getitem__(self, index: int) -> Example:
        num_segments = self._draw_length(index // self.batch_size)
        rng = random.Random(f"video {self.seed} {index}")
        questions: list[Question] = []
        while not questions:
            scene, visual_tokens = self.bank.compose(num_segments, rng)
            if scene.events:
                questions = make_questions(scene, seed=rng.randrange(10**9), kinds=self.kinds, per_kind=3)
        chosen = _draw_weighted(questions, self.questions_per_video, lambda q: self.kinds[q.kind], rng)
        return make_example(self.processor, [(q.text, q.answer) for q in chosen], visual_tokens, num_segments)

    def _draw_length(self, batch: int) -> int:
        least, most = self.segments
        progress = min(1.0, 1.5 * batch * self.batch_size / self.num_videos)
        range_now = self.opening_range + (1 - self.opening_range) * progress
        rng = random.Random(f"length {self.seed} {batch}")
        return min(most, int(least * ((most + 1) / least) ** (range_now * rng.random())))


def _draw_weighted(
    questions: list[Question], count: int, weight: Callable[[Question], float], rng: random.Random
) -> list[Question]:
    """At most `count` of them in random order, without repetition, the heavier ones more often."""
    order = sorted(questions, key=lambda q: rng.random() ** (1 / weight(q)), reverse=True)[:count]
    rng.shuffle(order)
    return order
