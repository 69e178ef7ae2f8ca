import random

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, set_seed

from longvlm.model.configuration import LongVLMConfig
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.training.default_model import build_tokenizer
from longvlm.training.watching import (
    RECALL_SIZES,
    STATE_SIZES,
    NameFinder,
    WatchingSchool,
    describe_recalls,
    describe_states,
    list_names,
)
from longvlm.world.render import NO_EVENT
from longvlm.world.scene import ACTIONS, COLOURS, SHAPES, Event, Scene, make_scene

NONE = (len(COLOURS), len(SHAPES))
NO_ACTION = len(ACTIONS)


def kind_of(event: Event) -> tuple[int, int]:
    return list(COLOURS).index(event.colour), SHAPES.index(event.shape)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(3, 60.0, num_events=3)


def test_states_are_what_was_shown_so_far(scene: Scene) -> None:
    a, b, c = map(kind_of, scene.events)
    does = [ACTIONS.index(event.action) for event in scene.events]
    # The third object is seen before the second, which began earlier: the third stays the newest.
    states = describe_states(scene, torch.tensor([NO_EVENT, 0, NO_EVENT, 2, 1, 0]))
    assert [tuple(row) for row in states.tolist()] == [
        (*NONE, *NONE, *NONE, *NONE, NO_ACTION, NO_ACTION, 0),
        (*a, *a, *NONE, *a, does[0], does[0], 1),
        (*NONE, *a, *NONE, *a, NO_ACTION, does[0], 1),
        (*c, *c, *a, *a, does[2], does[2], 2),
        (*b, *c, *b, *a, does[1], does[2], 3),
        (*a, *c, *b, *a, does[0], does[2], 3),
    ]
    assert all(int(column.max()) < size for column, size in zip(states.unbind(1), STATE_SIZES, strict=True))


def test_recalls_are_what_the_whole_video_says_of_a_name(scene: Scene) -> None:
    a, b, c = map(kind_of, scene.events)
    does = [ACTIONS.index(event.action) for event in scene.events]
    names = [scene.events[i].object for i in (2, 0, 1)]
    absent = next(f"{x} {y}" for x in COLOURS for y in SHAPES if f"{x} {y}" not in names)
    rows = describe_recalls(scene, [*names, absent]).tolist()
    assert [tuple(row[:-1]) for row in rows] == [
        (1, *NONE, *b, does[2]),
        (1, *b, *NONE, does[0]),
        (1, *c, *a, does[1]),
        (0, *NONE, *NONE, NO_ACTION),
    ]
    for event, third in ((scene.events[2], rows[0][-1]), (scene.events[0], rows[1][-1])):
        whole = [k for k in range(3) if 20 * k <= event.start_seconds and event.end_seconds <= 20 * (k + 1)]
        assert third == (whole[0] if whole else 3)
    assert rows[3][-1] == 3
    assert describe_recalls(scene, []).shape == (0, len(RECALL_SIZES))


def test_half_of_the_names_are_of_objects_that_appear(scene: Scene) -> None:
    there = {event.object for event in scene.events}
    for seed in range(20):
        names = list_names(scene, random.Random(seed))
        assert len(set(names)) == len(names) == 6
        assert there < set(names)


def test_names_are_found_where_they_end() -> None:
    tokenizer = build_tokenizer()
    text = "What appears after the red circle? A blue star, then a pink heart. red, star circle"
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    is_name, names = NameFinder(tokenizer).find(ids)
    assert names == ["red circle", "blue star", "pink heart"]
    assert tokenizer.convert_ids_to_tokens(ids[is_name].tolist()) == ["circle", "star", "heart"]


def tiny_model() -> LongVLMForConditionalGeneration:
    set_seed(0)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    text = LlamaConfig(vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2)
    return LongVLMForConditionalGeneration(LongVLMConfig(vision_config=vision, text_config=text, video_token_index=9))


def mean_loss(heads: torch.nn.Linear, hidden: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Where the last of each head's answers is always the right one."""
    normed = hidden / hidden.square().mean(1, keepdim=True).sqrt()
    return -torch.stack([row.log_softmax(1)[:, -1].mean() for row in heads(normed).split(sizes, dim=1)]).mean()


def test_the_loss_is_that_of_the_answers_the_states_and_the_recalls() -> None:
    model = tiny_model()
    school = WatchingSchool(model, state_layer=1, recall_layer=2)
    place = model.config.video_token_index
    input_ids = torch.tensor([[1, place, place, place, 5, 6]])
    batch = {"input_ids": input_ids, "visual_tokens": torch.randn(3, model.config.visual_width)}
    labels = input_ids.where(input_ids == 6, -100)
    states = torch.tensor([[size - 1 for size in STATE_SIZES]] * 3)
    names = {"is_name": input_ids == 5, "recalls": torch.tensor([[size - 1 for size in RECALL_SIZES]])}
    outputs = model(labels=labels, **batch, output_hidden_states=True)
    known = mean_loss(school.state_heads, outputs.hidden_states[1][0, 1:4], STATE_SIZES)
    recalled = mean_loss(school.recall_heads, outputs.hidden_states[2][0, 4:5], RECALL_SIZES)
    for given, expected in (
        ({}, known),
        (names, known + recalled),
        ({"labels": labels}, known + outputs.loss),
        ({"labels": labels, **names}, known + recalled + outputs.loss),
    ):
        torch.testing.assert_close(school(states, **given, **batch)["loss"], expected, rtol=1e-5, atol=1e-5)
    # What was left out is back, and layers that nothing was asked of have nothing to learn.
    assert len(model.model.language_model.layers) == 3
    school(states, **batch)["loss"].backward()
    learning = [layer.mlp.up_proj.weight.grad is not None for layer in model.model.language_model.layers]
    assert learning == [True, False, False]
