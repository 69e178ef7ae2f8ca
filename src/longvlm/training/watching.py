"""What the language model learns to know at every visual token while it watches a generated video.

An answer's few words say little about a long video, and a small model needs very many of them to find out that order,
number and neighbours matter. The generated world knows all of that at every moment, so it is asked at every visual
token: a row of heads, thrown away afterwards, reads it from the hidden state of a middle layer.
"""

from __future__ import annotations

from bisect import insort
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, rms_norm

from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.world.render import NO_EVENT
from longvlm.world.scene import ACTIONS, COLOURS, MAX_EVENTS, SHAPES, Scene

# Of four objects, colour and shape or none: the one this token shows, the newest so far, the one before it, the first.
_OBJECTS = ("shown", "newest", "before newest", "first")
STATE_SIZES = (len(COLOURS) + 1, len(SHAPES) + 1) * len(_OBJECTS) + (len(ACTIONS) + 1, MAX_EVENTS + 1)


def describe_states(scene: Scene, token_events: torch.Tensor) -> torch.Tensor:
    """What is known at each visual token, (n, 10) int64: an index into each of STATE_SIZES.

    The four objects' colours and shapes, what the newest object does, and how many objects there were; only objects
    that some token up to here shows count. `scene.events` stand in order of their starts.
    """
    colours, shapes = [*COLOURS], [*SHAPES]
    things = [(colours.index(e.colour), shapes.index(e.shape)) for e in scene.events] + [(len(colours), len(shapes))]
    actions = [ACTIONS.index(event.action) for event in scene.events] + [len(ACTIONS)]
    states, seen = [], [NO_EVENT, NO_EVENT]
    for event in token_events.tolist():
        if event not in seen:
            insort(seen, event)
        first = seen[2] if len(seen) > 2 else NO_EVENT
        objects = (things[event], things[seen[-1]], things[seen[-2]], things[first])
        states.append([index for thing in objects for index in thing] + [actions[seen[-1]], len(seen) - 2])
    return torch.tensor(states)


class WatchingSchool(nn.Module):
    """The model with its heads: the loss of the answers, and that of what it knows while it watches."""

    def __init__(self, model: LongVLMForConditionalGeneration, *, layer: int) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.heads = nn.Linear(model.config.text_config.hidden_size, sum(STATE_SIZES))

    def forward(self, states: torch.Tensor, **batch: Any) -> dict[str, torch.Tensor]:
        """`states` (sum of visual tokens, 10), see `describe_states`; the rest as the model takes it."""
        outputs = self.model(**batch, output_hidden_states=True)
        is_visual: torch.Tensor = batch["input_ids"] == self.model.config.video_token_index
        hidden: torch.Tensor = outputs.hidden_states[self.layer][is_visual]
        logits = self.heads(rms_norm(hidden, hidden.shape[-1:])).split(STATE_SIZES, dim=1)
        losses = [cross_entropy(row, targets) for row, targets in zip(logits, states.unbind(1), strict=True)]
        return {"loss": outputs.loss + torch.stack(losses).mean()}
