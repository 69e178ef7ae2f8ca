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
from longvlm.training.watching import describe_states
from longvlm.world.questions import Question, make_conversation, make_questions

IGNORED = -100
Example = dict[str, torch.Tensor]


def make_example(
    processor: LongVLMProcessor,
    questions: Sequence[tuple[str, str]],
    visual_tokens: torch.Tensor,
    num_segments: int,
    segment_spans: Sequence[tuple[float, float]] | None = None,
) -> Example:
    """One conversation of (question, answer) turns about one video, the video before the first question.

    With `segment_spans`, seconds, every segment's time is written before its tokens.

    input_ids, labels (T,): only the answers and their end marks are learned; visual_tokens (G + S·M, D).
    """
    messages: list[dict[str, Any]] = []
    for turn, (question, answer) in enumerate(questions):
        parts = [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": [{"type": "video"}, *parts] if turn == 0 else parts})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    input_ids, labels = processor.training_example(messages, num_segments, segment_spans=segment_spans)
    return {"input_ids": input_ids, "labels": labels, "visual_tokens": visual_tokens}


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Pad to the longest on the right; padding is neither seen nor learned.

    Visual tokens, and the states known at them if the examples have any, follow one another flat.
    """
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    input_ids = pad_sequence([example["input_ids"] for example in examples], batch_first=True)
    batch = {
        "input_ids": input_ids,
        "labels": pad_sequence([e["labels"] for e in examples], batch_first=True, padding_value=IGNORED),
        "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
    }
    for name in ("visual_tokens", "states"):
        if name in examples[0]:
            batch[name] = torch.cat([example[name] for example in examples])
    return batch


class ComposedBatches(Dataset):
    """Batches of conversations about videos joined from a bank; item i is always the same batch.

    The videos of one batch have the same number of segments, from `segments` (least, most), and as many of them are
    taken as fill about `tokens_per_batch`. With `opening_range` below 1, short videos come first, since order is
    learned sooner, and cheaper, on them: the share of the range of lengths, on a log scale, from which the first
    videos are drawn; it grows to 1 over the first two thirds. `kinds` maps each kind of question to its weight;
    `conversation_share` of the videos are also asked in two or three turns that refer back. `timestamps`: whether the
    segments' times are written between their tokens.
    """

    def __init__(
        self,
        bank: SegmentBank,
        processor: LongVLMProcessor,
        *,
        num_batches: int,
        tokens_per_batch: int,
        segments: tuple[int, int],
        opening_range: float,
        questions_per_video: int,
        conversation_share: float,
        timestamps: bool,
        kinds: dict[str, float],
        seed: int,
    ) -> None:
        self.bank = bank
        self.processor = processor
        self.num_batches = num_batches
        self.tokens_per_batch = tokens_per_batch
        self.segments = segments
        self.opening_range = opening_range
        self.questions_per_video = questions_per_video
        self.conversation_share = conversation_share
        self.timestamps = timestamps
        self.kinds = kinds
        self.seed = seed

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> Example:
        rng = random.Random(f"batch {self.seed} {index}")
        num_segments = self._draw_length(index, rng)
        examples, num_tokens = [self._make_video(num_segments, rng)], 0
        while num_tokens + len(examples[-1]["input_ids"]) <= self.tokens_per_batch:
            num_tokens += len(examples[-1]["input_ids"])
            examples.append(self._make_video(num_segments, rng))
        return collate(examples)

    def _make_video(self, num_segments: int, rng: random.Random) -> Example:
        questions: list[Question] = []
        while not questions:
            video = self.bank.compose(num_segments, rng)
            if video.scene.events:
                questions = make_questions(video.scene, seed=rng.randrange(10**9), kinds=self.kinds, per_kind=3)
        chosen = _draw_weighted(questions, self.questions_per_video, lambda q: self.kinds[q.kind], rng)
        if rng.random() < self.conversation_share:
            chosen += make_conversation(video.scene, seed=rng.randrange(10**9))
        turns = [(question.text, question.answer) for question in chosen]
        seconds = self.bank.segment_seconds
        spans = [(i * seconds, (i + 1) * seconds) for i in range(num_segments)] if self.timestamps else None
        example = make_example(self.processor, turns, video.visual_tokens, num_segments, spans)
        return {**example, "states": describe_states(video.scene, video.token_events)}

    def _draw_length(self, index: int, rng: random.Random) -> int:
        least, most = self.segments
        progress = min(1.0, 1.5 * index / self.num_batches)
        range_now = self.opening_range + (1 - self.opening_range) * progress
        return min(most, int(least * ((most + 1) / least) ** (range_now * rng.random())))


def _draw_weighted(
    questions: list[Question], count: int, weight: Callable[[Question], float], rng: random.Random
) -> list[Question]:
    """At most `count` of them in random order, without repetition, the heavier ones more often."""
    order = sorted(questions, key=lambda q: rng.random() ** (1 / weight(q)), reverse=True)[:count]
    rng.shuffle(order)
    return order
