"""From a conversation about a video to a training example, and from examples to a batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from longvlm.errors import LongVLMError
from longvlm.model.processing import LongVLMProcessor
from longvlm.training.ground_truth import (
    NameFinder,
    describe_motions,
    describe_names,
    describe_recalls,
    describe_sightings,
    describe_states,
    find_events,
    list_names,
)
from longvlm.training.segment_bank import ComposedVideo, SegmentBank
from longvlm.training.settings import require_known
from longvlm.training.stage import PARTS
from longvlm.world.questions import KINDS, Question, make_conversation, make_questions
from longvlm.world.scene import ACTIONS, Scene

IGNORED = -100
# What padding holds. It has a branch of its own, that no token sees.
_PADDED = {"input_ids": 0, "labels": IGNORED, "position_ids": 0, "branches": -1, "is_name": 0}
_FLAT = (
    "visual_tokens",
    "token_events",
    "token_frames",
    "states",
    "motions",
    "name_events",
    "named",
    "recalls",
    "token_segments",
    "seen_frames",
    "were_gone",
)
Example = dict[str, torch.Tensor]


def make_example(
    processor: LongVLMProcessor,
    questions: Sequence[tuple[str, str]],
    visual_tokens: torch.Tensor,
    num_segments: int,
    segment_spans: Sequence[tuple[float, float]] | None = None,
) -> Example:
    """One conversation of (question, answer) turns about one video, the video before the first question.

    A turn with an empty answer ends the conversation: nothing is learned from it.

    With `segment_spans`, seconds, every segment's time is written before its tokens.

    input_ids, labels (T,): only the answers and their end marks are learned; visual_tokens (G + S·M, D).
    """
    messages: list[dict[str, Any]] = []
    for turn, (question, answer) in enumerate(questions):
        parts = [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": [{"type": "video"}, *parts] if turn == 0 else parts})
        if answer:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    input_ids, labels = processor.training_example(messages, num_segments, segment_spans=segment_spans)
    return {"input_ids": input_ids, "labels": labels, "visual_tokens": visual_tokens}


def pack_conversations(
    processor: LongVLMProcessor,
    conversations: Sequence[Sequence[tuple[str, str]]],
    visual_tokens: torch.Tensor,
    num_segments: int,
    segment_spans: Sequence[tuple[float, float]] | None = None,
) -> Example:
    """Several conversations about one video, which none of the others can see: the video is read once for all of them.

    As `make_example`, with `branches` (T,): 0 for the video, 1 and so on for the conversations; and `position_ids`
    (T,), as if each conversation were the only one.
    """
    first, *others = conversations
    whole = make_example(processor, first, visual_tokens, num_segments, segment_spans)
    shared = _end_of_video(whole, processor)
    # Of the others only what follows the video is taken: one segment says as much as hours, and is written faster.
    span = None if segment_spans is None else (float(segment_spans[0][0]), float(segment_spans[0][1]))
    tails = [{name: whole[name][shared:] for name in ("input_ids", "labels")}]
    tails += [_make_tail(processor, tuple(turns), span) for turns in others]
    lengths = [len(tail["input_ids"]) for tail in tails]
    places = [torch.arange(shared), *(shared + torch.arange(length) for length in lengths)]
    packed = {name: torch.cat([whole[name][:shared], *(tail[name] for tail in tails)]) for name in tails[0]}
    return {
        **packed,
        "branches": torch.arange(len(places)).repeat_interleave(torch.tensor([shared, *lengths])),
        "position_ids": torch.cat(places),
        "visual_tokens": visual_tokens,
    }


@lru_cache(maxsize=2**16)  # most questions come again, and to write and encode them took half of a batch's time
def _make_tail(
    processor: LongVLMProcessor, turns: tuple[tuple[str, str], ...], span: tuple[float, float] | None
) -> Example:
    """What follows the video, input_ids and labels (T,); `span` where segments have their times written."""
    example = make_example(processor, turns, torch.empty(0), 1, None if span is None else [span])
    return {name: example[name][_end_of_video(example, processor) :] for name in ("input_ids", "labels")}


def _end_of_video(example: Example, processor: LongVLMProcessor) -> int:
    return int((example["input_ids"] == processor.video_token_id).nonzero().max()) + 1


def restore_positions(example: Example, video: ComposedVideo, video_token_id: int) -> Example:
    """A `pack_conversations` example with positions as if the segments that were left out of the video were there."""
    is_visual = example["input_ids"] == video_token_id
    skipped = torch.zeros_like(example["position_ids"])
    skipped[is_visual] = video.token_places - torch.arange(len(video.token_places))
    skipped = skipped.cummax(0).values  # what stands between tokens goes with those before it
    after = video.num_places - len(video.token_places)
    return {
        **example,
        "position_ids": example["position_ids"] + torch.where(example["branches"] == 0, skipped, after),
    }


def describe_example(input_ids: torch.Tensor, video: ComposedVideo, finder: NameFinder) -> Example:
    """What is known at the visual tokens and at the names of an example, as `ModelWithAuxiliaryLosses` takes it."""
    is_name, names = finder.find(input_ids)
    sightings = {}
    if video.token_sightings is not None:
        seen_frames, were_gone = describe_sightings(video.token_events, video.token_segments, video.token_sightings)
        sightings = {"token_segments": video.token_segments, "seen_frames": seen_frames, "were_gone": were_gone}
    return {
        **sightings,
        "token_events": video.token_events,
        "token_frames": video.token_frames,
        "states": describe_states(video.scene, video.token_events, video.token_segments),
        "motions": describe_motions(video.token_events, video.token_poses, video.token_frames),
        "is_name": is_name,
        "name_events": find_events(video.scene, names),
        "named": describe_names(names),
        "recalls": describe_recalls(video.scene, names),
    }


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Pad to the longest on the right; padding is neither seen nor learned.

    Visual tokens, and what is known at them and at names if the examples tell, follow one another flat. Where examples
    have `branches`, the attention mask says what each token sees, (B, 1, T, T) bool, and `num_shared` how many tokens
    of every row come before all conversations; else the mask says which are no padding, (B, T).
    """
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    batch = {
        name: pad_sequence([example[name] for example in examples], batch_first=True, padding_value=filler)
        for name, filler in _PADDED.items()
        if name in examples[0]
    }
    is_token = torch.arange(int(lengths.max())) < lengths[:, None]
    branches = batch.pop("branches", None)
    if branches is None:
        batch["attention_mask"] = is_token.long()
    else:
        batch["attention_mask"] = branch_attention_mask(branches)[:, None]
        batch["num_shared"] = torch.tensor(min(int((example["branches"] == 0).sum()) for example in examples))
    for name in _FLAT:
        if name in examples[0]:
            batch[name] = torch.cat([example[name] for example in examples])
    return batch


def branch_attention_mask(branches: torch.Tensor) -> torch.Tensor:
    """What each token sees, (B, T, T) bool from branches (B, T): of what is before it, branch 0 and its own."""
    return ((branches[:, None] == branches[:, :, None]) | (branches[:, None] == 0)).tril()


@dataclass(frozen=True)
class Lesson:
    """What batches of composed videos are made of.

    Args:
        tokens_per_batch: with padding, about, and as many more as give every part the same number of videos; the
            videos of one batch have the same number of segments.
        segments: least and most of a video, drawn log-uniformly.
        feature_noise: normal noise on all local tokens, drawn anew for every video, as a share of each feature's
            standard deviation in the bank; without it a bank's blocks are learned by heart.
        shown_segments: of longer videos, empty segments are left out until so many remain; None: all are shown.
        opening_range: below 1, short videos come first, since order is learned sooner, and cheaper, on them: the share
            of the range of lengths from which the first videos are drawn; it grows to 1 over the first two thirds.
        questions_per_video: at most.
        conversation_share: of the videos with questions, that are also asked in two or three turns that refer back.
        names_share: of the batches, whose videos are followed by names of objects, there or not, instead.
        actions: only blocks of the bank are used in which some object does one of these, and half of those without any
            object; None: all are.
        kind_weights: of kinds of questions, in place of the usual ones.
    """

    tokens_per_batch: int
    segments: tuple[int, int]
    opening_range: float
    questions_per_video: int
    conversation_share: float
    names_share: float
    feature_noise: float = 0.0
    shown_segments: int | None = None
    actions: tuple[str, ...] | None = None
    kind_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least, most = self.segments
        if not 1 <= least <= most:
            raise LongVLMError(f"segments is {[least, most]}; give the least, from 1 up, and the most.")
        for name in ("tokens_per_batch", "questions_per_video", "shown_segments"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise LongVLMError(f"{name} is {number}; it must be at least 1.")
        for name in ("opening_range", "conversation_share", "names_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise LongVLMError(f"{name} is {getattr(self, name):g}; give a share from 0 to 1.")
        if not self.feature_noise >= 0:
            raise LongVLMError(f"feature_noise is {self.feature_noise:g}; it must be 0 or more.")
        require_known(self.actions or (), ACTIONS, "actions")
        require_known(self.kind_weights, KINDS, "kind_weights")
        for kind, weight in self.kind_weights.items():
            if not weight > 0:
                raise LongVLMError(f"kind_weights has {weight:g} for {kind!r}; a weight must be above 0.")


class ComposedBatches(Dataset):
    """Batches of videos joined from a bank, with what is said about them; item i is always the same batch.

    `kinds` maps each kind of question to its weight. `timestamps`: whether the segments' times are written between
    their tokens. With `parts` above 1, an item is {PARTS: batches}, so many, among which its videos are dealt evenly.
    """

    def __init__(
        self,
        bank: SegmentBank,
        processor: LongVLMProcessor,
        lesson: Lesson,
        *,
        num_batches: int,
        kinds: dict[str, float],
        timestamps: bool,
        seed: str,
        parts: int = 1,
    ) -> None:
        self.bank = bank if lesson.actions is None else bank.with_actions(lesson.actions)
        self.processor = processor
        self.lesson = lesson
        self.num_batches = num_batches
        self.kinds = kinds | lesson.kind_weights
        self.timestamps = timestamps
        self.seed, self.parts = seed, parts
        self._names = NameFinder(processor.tokenizer)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"batch {self.seed} {index}")
        num_segments = self._draw_length(index, rng)
        names = rng.random() < self.lesson.names_share
        examples, longest = [], 0
        while True:
            examples.append(self._make_video(num_segments, rng, names=names))
            longest = max(longest, len(examples[-1]["input_ids"]))
            is_full = (len(examples) + 1) * longest > self.lesson.tokens_per_batch
            if is_full and len(examples) % self.parts == 0:  # no thread waits for another one's last video
                break
        batches = [collate(examples[part :: self.parts]) for part in range(self.parts)]
        if names:
            for batch in batches:
                del batch["labels"]  # there is nothing to answer
        return batches[0] if self.parts == 1 else {PARTS: batches}

    def _make_video(self, num_segments: int, rng: random.Random, *, names: bool) -> Example:
        conversations: list[list[tuple[str, str]]] = []
        while not conversations:
            video = self.bank.compose(num_segments, rng)
            if video.scene.events:
                listed = [[(" ".join(list_names(video.scene, rng)), "")]]
                conversations = listed if names else self._ask(video.scene, rng)
        seconds, shown = self.bank.segment_seconds, self.lesson.shown_segments
        if shown is not None and num_segments > shown:
            video = video.leave_out_empty(shown, seconds, rng)
        video = video.add_noise(self.lesson.feature_noise * self.bank.feature_spread, rng)
        spans = None
        if self.timestamps:
            numbers = video.token_segments[video.token_segments > 0].unique().tolist()
            spans = [((number - 1) * seconds, number * seconds) for number in numbers]
        example = pack_conversations(self.processor, conversations, video.visual_tokens, video.num_segments, spans)
        example = restore_positions(example, video, self.processor.video_token_id)
        return {**example, **describe_example(example["input_ids"], video, self._names)}

    def _ask(self, scene: Scene, rng: random.Random) -> list[list[tuple[str, str]]]:
        questions = make_questions(scene, seed=rng.randrange(10**9), kinds=self.kinds, per_kind=3)
        chosen = draw_weighted(questions, self.lesson.questions_per_video, lambda q: self.kinds[q.kind], rng)
        conversations = [[question] for question in chosen]
        if rng.random() < self.lesson.conversation_share:
            conversations.append(make_conversation(scene, seed=rng.randrange(10**9)))
        return [[(turn.text, turn.answer) for turn in turns] for turns in conversations if turns]

    def _draw_length(self, index: int, rng: random.Random) -> int:
        least, most = self.lesson.segments
        progress = min(1.0, 1.5 * index / self.num_batches)
        range_now = self.lesson.opening_range + (1 - self.lesson.opening_range) * progress
        return min(most, int(least * ((most + 1) / least) ** (range_now * rng.random())))


def draw_weighted(
    questions: list[Question], count: int, weight: Callable[[Question], float], rng: random.Random
) -> list[Question]:
    """At most `count` of them in random order, without repetition, the heavier ones more often."""
    order = sorted(questions, key=lambda q: rng.random() ** (1 / weight(q)), reverse=True)[:count]
    rng.shuffle(order)
    return order
