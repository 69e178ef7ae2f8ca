"""Auxiliary losses for a language model that reads a generated video: hidden states and attention are supervised, too.

An answer's few words say little about a long video, and a small model needs very many of them to find out that order,
number and neighbours matter, or that a name in a question is to be looked up among the visual tokens. The generated
world knows all of that. So linear heads, thrown away afterwards, read it from the hidden states of middle layers, at
every visual token and at every name of an object. And a few attention heads are told where to attend: at a visual
token, to where the same object was before, where it was last, and where each object began; at a name, to where the
object is, and to those right after and right before it; in an answer, to the name that the question is about, and to
the object that the answer names next. What an object does is learned from what has changed since: its pose is asked
for in numbers, and how it differs from that of before; and, where the bank knows, in which frames it was seen and
whether it was gone in between, without which an object that stays would be one that blinks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, rms_norm

from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.training.ground_truth import (
    MOTION_NUMBERS,
    OBJECT_SIZES,
    RECALL_SIZES,
    STATE_COUNT,
    STATE_PLACE,
    STATE_SIZES,
    find_latest,
)
from longvlm.training.shared_attention import SHARED_ATTENTION
from longvlm.training.watched_layers import WatchedLayers
from longvlm.world.render import NO_EVENT
from longvlm.world.scene import MAX_EVENTS

_STATE_WEIGHTS = (1.0,) * 8 + (4.0, 2.0, 1.0)  # what is learned last weighs more
_RECALL_WEIGHTS = (1.0,) * 5 + (2.0, 1.0, 1.0)
# Where objects began: the shares of attention tell their number, best when the start of the text weighs as much as half
# of the most; and what tells 11 from 12 is small.
_START_WEIGHT, _BEGINNINGS_WEIGHT = MAX_EVENTS / 2, 4.0
# A number that is only told apart by large weights is learned late: that of the objects so far is to stand in one
# coordinate of the normalised hidden state, so many of them to one unit, where all later layers read it.
_COUNT_COORDINATE, _COUNT_PER_UNIT = 0, 2.0
_GONE_POSITIVE_WEIGHT = 5.0  # few tokens show an object that was gone before
# All are learned late, and in the same layers: what one gains by a larger weight the others lose.
LOSS_WEIGHTS = {"count": 2.0, "motion": 1.0, "sighting": 1.0, "gone": 4.0}
_SEGMENT_HEAD = 2  # beside those that look for the object and for its last frame
LOOKUP_HEADS = 3  # that are supervised in the layer that looks names up; the last of them counts beginnings, too


class ModelWithAuxiliaryLosses(nn.Module):
    """The model, with linear heads on some layers; its loss is that of the answers plus the auxiliary ones.

    Layers are counted from 1. `state_layer` - 1 attends to where the same object was, and tells how it moved;
    `state_layer` attends to where each object began, and tells the states; `state_layer` + 1 looks names up and counts
    the beginnings again; `recall_layer` attends to the object before, and tells what is known of the named ones. At the
    words of an answer, `recall_layer` attends to the topic, `recall_layer` + 1 to it again and to the object that is
    named next. With `frames_per_segment`, K, `state_layer` - 1 also attends to the object's other tokens of a segment,
    and tells in which of its frames it was seen, and whether it was gone in between; `state_layer` whether it ever was.

    `loss_weights`: of the errors in the number of objects so far, in how they moved, in when they were seen and in
    whether they were gone; may be set at any time.
    """

    def __init__(
        self,
        model: LongVLMForConditionalGeneration,
        *,
        state_layer: int,
        recall_layer: int,
        frames_per_segment: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.state_layer, self.recall_layer = state_layer, recall_layer
        width = model.config.text_config.hidden_size
        self.motion_heads = nn.Linear(width, MOTION_NUMBERS)
        self.state_heads = nn.Linear(width, sum(STATE_SIZES))
        self.recall_heads = nn.Linear(width, sum(RECALL_SIZES))
        if frames_per_segment is not None:
            self.sighting_heads = nn.Linear(width, frames_per_segment)
            self.gone_heads = nn.ModuleList([nn.Linear(width, 1), nn.Linear(width, 1)])
        self.loss_weights = LOSS_WEIGHTS
        language_model = model.model.language_model
        language_model.set_attn_implementation(SHARED_ATTENTION)
        self.watched = WatchedLayers(language_model)

    def forward(
        self,
        states: torch.Tensor,
        motions: torch.Tensor,
        token_events: torch.Tensor,
        token_frames: torch.Tensor,
        is_name: torch.Tensor,
        recalls: torch.Tensor,
        name_events: torch.Tensor,
        named: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_shared: torch.Tensor | None = None,
        token_segments: torch.Tensor | None = None,
        seen_frames: torch.Tensor | None = None,
        were_gone: torch.Tensor | None = None,
        **batch: Any,
    ) -> dict[str, torch.Tensor]:
        """`states` (visual tokens, 11), `motions` (visual tokens, 16) and `recalls` (names, 8): see `describe_states`,
        `describe_motions` and `describe_recalls`; `token_events` (visual tokens,) and `name_events` (names,): the
        object of the video that is shown, or named; `token_frames` (visual tokens,): when; `named` (names, 2): its
        colour and shape, which are to be known just as if the object were seen.

        `token_segments` (visual tokens,), `seen_frames` (visual tokens, K) and `were_gone` (visual tokens, 2): see
        `describe_sightings`; needed with `frames_per_segment`.

        `is_name` (B, T); the rest as the model takes it, `labels` only where there are answers to learn.
        """
        shared = 0 if num_shared is None else int(num_shared)
        speaks = None if labels is None else _predicts_answer(labels)
        # Layers behind the last one that a loss reads are left out, and that one is only computed where it is read.
        last = self.recall_layer if speaks is None else self.watched.number
        with self.watched.left_out_behind(last - 1):
            self.model.model(**batch, num_shared=shared, use_cache=False)
        read_last = self.watched.compute_where_read(last, is_name if speaks is None else speaks)
        recalled = read_last if speaks is None else self.watched.hidden[self.recall_layer][is_name]
        is_visual: torch.Tensor = batch["input_ids"] == self.model.config.video_token_index
        shown = _scatter(token_events, is_visual, NO_EVENT)
        named_events = _scatter(name_events, is_name, NO_EVENT)
        # Global tokens know what they know of no time: they are not asked, and where there are no others, no name is
        # looked up among them.
        is_asked = is_visual & (_scatter(states[:, STATE_PLACE], is_visual, 0) > 0)
        has_local = is_asked.any(1, keepdim=True)
        # What visual tokens attend to is visual, too: nothing behind the last of them matters there.
        in_videos = slice(0, int(is_visual.any(0).nonzero().max()) + 1)
        losses = [
            self._state_loss(is_asked, states[is_asked[is_visual]]),
            self.loss_weights["motion"] * self._motion_loss(shown >= 0, motions[token_events >= 0]),
            self._object_attention_loss(
                *(values[:, in_videos] for values in (is_asked, shown, _scatter(token_frames, is_visual, 0.0)))
            ),
            self._name_loss(is_name, named, recalls, recalled),
            self._lookup_attention_loss(is_name & has_local, shown, named_events),
        ]
        weights = (self.loss_weights["sighting"], self.loss_weights["gone"])
        if token_segments is not None and seen_frames is not None and were_gone is not None and any(weights):
            segments = _scatter(token_segments, is_visual, 0)[:, in_videos]
            losses += [
                weights[0] * self._segment_attention_loss(shown[:, in_videos], segments),
                self._sighting_loss(shown >= 0, seen_frames[token_events >= 0], were_gone[token_events >= 0]),
            ]
        if labels is not None:
            spoken = self.model.model.language_model.norm(read_last)
            losses += [self._answer_loss(spoken, labels), self._topic_attention_loss(is_visual, is_name, labels)]
            losses += [self._naming_attention_loss(shown, is_name, named_events, labels)]
        self.watched.clear()
        return {"loss": torch.stack(losses).sum()}

    def _answer_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Every answer counts the same: by tokens, few long descriptions would outweigh all that is said in a word.

        `hidden` (n, width): of the last layer, where answers are predicted.
        """
        speaks = _predicts_answer(labels)
        begins = speaks & ~nn.functional.pad(speaks[:, :-1], (1, 0))
        answer = begins.flatten().cumsum(0)[speaks.flatten()] - 1
        losses = cross_entropy(self.model.lm_head(hidden), labels[:, 1:][speaks[:, :-1]], reduction="none")
        lengths = torch.bincount(answer)
        return (losses / lengths[answer]).sum() / len(lengths)

    def _state_loss(self, is_asked: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        known, recounted = (self.watched.hidden[layer][is_asked] for layer in (self.state_layer, self.state_layer + 1))
        counts = (states[:, STATE_COUNT].to(known) - MAX_EVENTS / 2) / _COUNT_PER_UNIT
        error = sum(
            mse_loss(rms_norm(hidden, hidden.shape[-1:])[:, _COUNT_COORDINATE], counts, reduction="sum")
            for hidden in (known, recounted)
        ) / max(1, len(states))
        of_states = _head_loss(self.state_heads, known, states, STATE_SIZES, _STATE_WEIGHTS)
        return of_states + self.loss_weights["count"] * error

    def _motion_loss(self, shows_object: torch.Tensor, motions: torch.Tensor) -> torch.Tensor:
        known = self.watched.hidden[self.state_layer - 1][shows_object]
        errors = mse_loss(self.motion_heads(rms_norm(known, known.shape[-1:])), motions, reduction="sum")
        return errors / max(1, motions.numel())

    def _sighting_loss(
        self, shows_object: torch.Tensor, seen_frames: torch.Tensor, were_gone: torch.Tensor
    ) -> torch.Tensor:
        """The gap in a segment is told a layer before that in the video: what attends to a segment's tokens sees it."""
        known = [self.watched.hidden[layer][shows_object] for layer in (self.state_layer - 1, self.state_layer)]
        known = [rms_norm(hidden, hidden.shape[-1:]) for hidden in known]
        seen = self.sighting_heads(known[0])
        gone = torch.cat([head(hidden) for head, hidden in zip(self.gone_heads, known, strict=True)], dim=1)
        weight = gone.new_tensor(_GONE_POSITIVE_WEIGHT)
        of_frames = binary_cross_entropy_with_logits(seen, seen_frames, reduction="sum")
        of_gaps = binary_cross_entropy_with_logits(gone, were_gone, reduction="sum", pos_weight=weight)
        weights = self.loss_weights
        return (weights["sighting"] * of_frames + weights["gone"] * of_gaps) / max(1, len(were_gone))

    def _name_loss(
        self, is_name: torch.Tensor, named: torch.Tensor, recalls: torch.Tensor, recalled: torch.Tensor
    ) -> torch.Tensor:
        """`recalled` (names, width): what `recall_layer` has made of the names."""
        named_there = self.watched.hidden[self.state_layer][is_name]
        size = len(OBJECT_SIZES)
        return _head_loss(self.state_heads, named_there, named, STATE_SIZES[:size], _STATE_WEIGHTS[:size]) + _head_loss(
            self.recall_heads, recalled, recalls, RECALL_SIZES, _RECALL_WEIGHTS
        )

    def _object_attention_loss(self, is_asked: torch.Tensor, shown: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Where a token's object was before and where it was last (the start of the text: nowhere), and where each
        object so far began; then, knowing how it moved, once more where it was; and the beginnings once more, now that
        a token knows whether an earlier one of its object was taken for one."""
        shows_object = shown >= 0
        same = ((shown[:, :, None] == shown[:, None]) & shows_object[:, :, None]).tril(-1)
        is_new = shows_object & ~same.any(2)
        latest = find_latest(same, frames)
        latest[:, :, 0] = shows_object & ~latest.any(2)
        same[:, :, 0] = is_new
        beginnings = (is_new[:, None] & is_asked[:, :, None]).tril().float()
        beginnings[:, :, 0] = _START_WEIGHT * is_asked
        same_object, begun = _by_row(same), _by_row(beginnings)
        losses = [
            self._attention_loss(self.state_layer - 1, 0, *same_object, evenly=True),
            self._attention_loss(self.state_layer - 1, 1, *_by_row(latest)),
            _BEGINNINGS_WEIGHT * self._attention_loss(self.state_layer, 0, *begun, evenly=True),
            self._attention_loss(self.state_layer, 1, *same_object, evenly=True),
            _BEGINNINGS_WEIGHT * self._attention_loss(self.state_layer + 1, LOOKUP_HEADS - 1, *begun, evenly=True),
        ]
        return torch.stack(losses).sum()

    def _segment_attention_loss(self, shown: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        """Where the object was before in the same segment; the start of the text where it was not."""
        shows_object = shown >= 0
        is_same = (shown[:, :, None] == shown[:, None]) & (segments[:, :, None] == segments[:, None])
        same = (is_same & shows_object[:, :, None]).tril(-1)
        same[:, :, 0] = shows_object & ~same.any(2)
        return self._attention_loss(self.state_layer - 1, _SEGMENT_HEAD, *_by_row(same), evenly=True)

    def _lookup_attention_loss(self, is_name: torch.Tensor, shown: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Where the named object is; the next one; where the object is the newest so far, which is where the one before
        is known; and then that one itself. The start of the text where there is none."""
        video = is_name.nonzero()[:, 0]
        shown, is_newest = shown[video], (shown == shown.cummax(1).values)[video]  # all before the names
        wanted = wanted[is_name][:, None]

        def find(step: int) -> torch.Tensor:
            neighbour = torch.where(wanted >= 0, wanted + step, NO_EVENT)
            return (shown == neighbour) & (neighbour >= 0)

        losses = []
        for layer, head, there in (
            (self.state_layer + 1, 0, find(0)),
            (self.state_layer + 1, 1, find(1)),
            (self.state_layer + 1, 2, find(0) & is_newest),
            (self.recall_layer, 1, find(-1)),
        ):
            there[:, 0] = ~there.any(1)
            losses.append(self._attention_loss(layer, head, is_name, there))
        return torch.stack(losses).sum()

    def _topic_attention_loss(
        self, is_visual: torch.Tensor, is_name: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Where an answer is spoken: the name said last; the end of the video where none was. At once, and again when
        what is known of the name stands there."""
        speaks, places = _predicts_answer(labels), torch.arange(labels.shape[1])
        video, is_seen = speaks.nonzero()[:, 0], self.watched.visible(self.recall_layer, labels)[speaks]
        said = torch.where(is_name[video] & is_seen, places, 0).amax(1)
        end = torch.where(is_visual, places, 0).amax(1)[video]
        targets = torch.maximum(said, end)[:, None] == places  # names stand after the video
        return self._attention_loss(self.recall_layer, 0, speaks, targets) + self._attention_loss(
            self.recall_layer + 1, 1, speaks, targets
        )

    def _naming_attention_loss(
        self, shown: torch.Tensor, is_name: torch.Tensor, named_events: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Where colour and shape of a name are to be spoken: that name in the question, else its object in the video.

        Where both would do, a head that finds the object after the one said last, as in a description, would do the
        same in an order of some objects, and be right every other time.
        """
        layer = self.recall_layer + 1
        coming = torch.full_like(named_events, NO_EVENT)
        for words in (2, 1):
            coming[:, :-words] = torch.where(is_name[:, words:], named_events[:, words:], coming[:, :-words])
        names_next = _predicts_answer(labels) & (coming >= 0)
        video, is_seen = names_next.nonzero()[:, 0], self.watched.visible(layer, labels)[names_next]
        named = (named_events[video] == coming[names_next][:, None]) & is_seen
        elsewhere = (shown[video] == coming[names_next][:, None]) & is_seen & ~named.any(1, keepdim=True)
        return self._attention_loss(layer, 0, names_next, named | elsewhere)

    def _attention_loss(
        self, layer: int, head: int, rows: torch.Tensor, targets: torch.Tensor, *, evenly: bool = False
    ) -> torch.Tensor:
        """Minus the mean log of the attention that goes to the `targets` (n, T) of the n tokens in `rows` (B, T), over
        those that have any: to all of them together, or `evenly` to each, by its weight where they have weights. Where
        T is less than the batch's, these tokens see none behind it.
        """
        has_targets = targets.any(1)
        rows, targets = rows.masked_scatter(rows, has_targets), targets[has_targets]
        first = slice(0, rows.shape[1])
        is_seen = self.watched.visible(layer, rows)[:, first, first][rows]
        logits = self.watched.attention_logits(layer, head, rows)
        attended = logits.masked_fill(~is_seen, -math.inf).logsumexp(1)
        if evenly:
            wanted = (logits * targets).sum(1) / targets.sum(1)
        else:
            wanted = logits.masked_fill(~targets, -math.inf).logsumexp(1)
        return (attended - wanted).sum() / max(1, len(wanted))


def _by_row(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, T) as the rows (B, T) that have any, and those (n, T)."""
    rows = targets.any(2)
    return rows, targets[rows]


def _predicts_answer(labels: torch.Tensor) -> torch.Tensor:
    """Where the next token is one of an answer, (B, T) bool."""
    return nn.functional.pad(labels[:, 1:] >= 0, (0, 1))


def _scatter(values: torch.Tensor, places: torch.Tensor, elsewhere: float) -> torch.Tensor:
    """Values (n,) at the n `places` (B, T) of a batch, another one elsewhere."""
    return values.new_full(places.shape, elsewhere).masked_scatter(places, values)


def _head_loss(
    heads: nn.Linear,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    sizes: tuple[int, ...],
    weights: tuple[float, ...],
) -> torch.Tensor:
    """Weighted cross entropies of the first heads, of these sizes, over the rows of hidden (n, width), by the number of
    heads; 0 without rows.
    """
    logits = heads(rms_norm(hidden, hidden.shape[-1:]))[:, : sum(sizes)].split(sizes, dim=1)
    losses = [
        weight * cross_entropy(row, column, reduction="sum")
        for row, column, weight in zip(logits, targets.unbind(1), weights, strict=True)
    ]
    return torch.stack(losses).mean() / max(1, len(targets))
