"""What the language model learns to know while it watches a generated video, and while it reads an object's name.

An answer's few words say little about a long video, and a small model needs very many of them to find out that order,
number and neighbours matter, or that a name in a question is to be looked up among the visual tokens. The generated
world knows all of that, so it is asked at every visual token and at every name: rows of heads, thrown away afterwards,
read it from the hidden states of middle layers.
"""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy, rms_norm
from transformers import PreTrainedTokenizerBase

from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.world.render import NO_EVENT
from longvlm.world.scene import ACTIONS, COLOURS, MAX_EVENTS, SHAPES, Event, Scene

_COLOURS, _SHAPES = tuple(COLOURS), SHAPES
_OBJECT_SIZES = (len(_COLOURS) + 1, len(_SHAPES) + 1)  # a colour and a shape, or none
# At a visual token. Four objects: the one it shows, the newest so far, the one before that, the first; what the shown
# and the newest one do; how many there were.
STATE_SIZES = (*_OBJECT_SIZES * 4, len(ACTIONS) + 1, len(ACTIONS) + 1, MAX_EVENTS + 1)
# At a name. Whether the object appears; the ones right after and right before it; what it does; in which third.
RECALL_SIZES = (2, *_OBJECT_SIZES * 2, len(ACTIONS) + 1, 4)
_NO_ACTION, _NO_THIRD = len(ACTIONS), 3


def describe_states(scene: Scene, token_events: torch.Tensor) -> torch.Tensor:
    """What is known at each visual token, (n, 11) int64: an index into each of STATE_SIZES.

    Only objects that some token up to here shows count. `scene.events` stand in order of their starts.
    """
    states, seen = [], [NO_EVENT, NO_EVENT]
    for event in token_events.tolist():
        if event not in seen:
            insort(seen, event)
        first = seen[2] if len(seen) > 2 else NO_EVENT
        objects = [index for i in (event, seen[-1], seen[-2], first) for index in _kind(scene.events, i)]
        actions = [_action(scene.events, i) for i in (event, seen[-1])]
        states.append([*objects, *actions, len(seen) - 2])
    return torch.tensor(states)


def describe_recalls(scene: Scene, names: Sequence[str]) -> torch.Tensor:
    """What is known of each named object, (n, 7) int64: an index into each of RECALL_SIZES."""
    objects = [event.object for event in scene.events]
    recalls = []
    for name in names:
        if name not in objects:
            recalls.append([0, *_kind((), NO_EVENT) * 2, _NO_ACTION, _NO_THIRD])
            continue
        i = objects.index(name)
        after, before = _kind(scene.events, i + 1), _kind(scene.events, i - 1)
        third = scene.third_of(scene.events[i])
        recalls.append([1, *after, *before, _action(scene.events, i), _NO_THIRD if third is None else third])
    return torch.tensor(recalls, dtype=torch.int64).view(-1, len(RECALL_SIZES))


def _kind(events: Sequence[Event], index: int) -> tuple[int, int]:
    """Colour and shape of an event as indices, those of none where there is no such event."""
    if not 0 <= index < len(events):
        return len(_COLOURS), len(_SHAPES)
    return _COLOURS.index(events[index].colour), _SHAPES.index(events[index].shape)


def _action(events: Sequence[Event], index: int) -> int:
    return ACTIONS.index(events[index].action) if index != NO_EVENT else _NO_ACTION


def list_names(scene: Scene, rng: random.Random) -> list[str]:
    """Names to look up in random order: those of all objects, and as many of absent ones, half of which share a colour
    or a shape with one that is there."""
    names = [event.object for event in scene.events]
    absent: set[str] = set()
    while len(absent) < len(names):
        seen = rng.choice(scene.events)
        alike = [f"{seen.colour} {rng.choice(_SHAPES)}", f"{rng.choice(_COLOURS)} {seen.shape}"]
        other = rng.choice([*alike, *[f"{rng.choice(_COLOURS)} {rng.choice(_SHAPES)}"] * 2])
        if other not in names:
            absent.add(other)
    return rng.sample([*names, *sorted(absent)], 2 * len(names))


class NameFinder:
    """Finds the names of objects among a conversation's tokens; the tokenizer has one token a word."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._colours = dict(zip(tokenizer.convert_tokens_to_ids(list(_COLOURS)), _COLOURS, strict=True))
        self._shapes = dict(zip(tokenizer.convert_tokens_to_ids(list(_SHAPES)), _SHAPES, strict=True))

    def find(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
        """(T,) -> where names end, (T,) bool, and the names."""
        ids = input_ids.tolist()
        places = [t for t in range(1, len(ids)) if ids[t] in self._shapes and ids[t - 1] in self._colours]
        is_name = torch.zeros(len(ids), dtype=torch.bool)
        is_name[places] = True
        return is_name, [f"{self._colours[ids[t - 1]]} {self._shapes[ids[t]]}" for t in places]


class WatchingSchool(nn.Module):
    """The model with its heads: the loss of the answers, and that of what it knows at visual tokens and at names."""

    def __init__(self, model: LongVLMForConditionalGeneration, *, state_layer: int, recall_layer: int) -> None:
        super().__init__()
        self.model = model
        self.state_layer, self.recall_layer = state_layer, recall_layer
        width = model.config.text_config.hidden_size
        self.state_heads = nn.Linear(width, sum(STATE_SIZES))
        self.recall_heads = nn.Linear(width, sum(RECALL_SIZES))
        self._hidden: dict[int, torch.Tensor] = {}  # of the last forward, by layer
        layers = cast(nn.ModuleList, model.model.language_model.layers)
        for layer in (state_layer, recall_layer):
            layers[layer - 1].register_forward_hook(partial(self._keep, layer))

    def _keep(self, layer: int, _module: nn.Module, _inputs: Any, hidden: torch.Tensor) -> None:
        self._hidden[layer] = hidden

    def forward(
        self,
        states: torch.Tensor,
        is_name: torch.Tensor | None = None,
        recalls: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **batch: Any,
    ) -> dict[str, torch.Tensor]:
        """`states` (visual tokens, 11) and `recalls` (names, 7): see `describe_states` and `describe_recalls`.

        `is_name` (B, T); the rest as the model takes it. Layers that nothing is asked of are not run.
        """
        if labels is None:
            num_layers = self.state_layer if is_name is None else self.recall_layer
            with _only_first_layers(self.model.model.language_model, num_layers):
                self.model.model(**batch)
            losses = []
        else:
            losses = [self.model(labels=labels, **batch).loss]
        is_visual: torch.Tensor = batch["input_ids"] == self.model.config.video_token_index
        losses.append(_read(self.state_heads, self._hidden[self.state_layer][is_visual], states, STATE_SIZES))
        if is_name is not None and recalls is not None:
            losses.append(_read(self.recall_heads, self._hidden[self.recall_layer][is_name], recalls, RECALL_SIZES))
        self._hidden.clear()
        return {"loss": torch.stack(losses).sum()}


@contextmanager
def _only_first_layers(language_model: Any, count: int) -> Iterator[None]:
    """The language model as if it ended after `count` layers, without its last norm."""
    layers, norm = language_model.layers, language_model.norm
    language_model.layers, language_model.norm = layers[:count], nn.Identity()
    try:
        yield
    finally:
        language_model.layers, language_model.norm = layers, norm


def _read(heads: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Mean cross entropy of the heads over the rows of hidden (n, width); 0 without rows."""
    logits = heads(rms_norm(hidden, hidden.shape[-1:])).split(sizes, dim=1)
    losses = [
        cross_entropy(row, column, reduction="sum") for row, column in zip(logits, targets.unbind(1), strict=True)
    ]
    return torch.stack(losses).mean() / max(1, len(targets))
