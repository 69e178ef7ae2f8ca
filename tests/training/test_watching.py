import torch
from transformers import CLIPVisionConfig, LlamaConfig, set_seed

from longvlm.model.configuration import LongVLMConfig
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.training.watching import STATE_SIZES, WatchingSchool, describe_states
from longvlm.world.render import NO_EVENT
from longvlm.world.scene import ACTIONS, COLOURS, SHAPES, make_scene

NONE = (len(COLOURS), len(SHAPES))


def test_states_are_what_was_shown_so_far() -> None:
    scene = make_scene(3, 60.0, num_events=3)
    kinds = [(list(COLOURS).index(event.colour), SHAPES.index(event.shape)) for event in scene.events]
    actions = [ACTIONS.index(event.action) for event in scene.events]
    a, b, c = kinds
    # The third object is seen before the second, which began earlier: the third stays the newest.
    states = describe_states(scene, torch.tensor([NO_EVENT, 0, NO_EVENT, 2, 1, 0]))
    assert [tuple(row) for row in states.tolist()] == [
        (*NONE, *NONE, *NONE, *NONE, len(ACTIONS), 0),
        (*a, *a, *NONE, *a, actions[0], 1),
        (*NONE, *a, *NONE, *a, actions[0], 1),
        (*c, *c, *a, *a, actions[2], 2),
        (*b, *c, *b, *a, actions[2], 3),
        (*a, *c, *b, *a, actions[2], 3),
    ]
    assert all(int(column.max()) < size for column, size in zip(states.unbind(1), STATE_SIZES, strict=True))


def test_the_loss_is_that_of_the_answers_and_of_the_states() -> None:
    set_seed(0)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    text = LlamaConfig(vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    model = LongVLMForConditionalGeneration(LongVLMConfig(vision_config=vision, text_config=text, video_token_index=9))
    school = WatchingSchool(model, layer=1)
    place = model.config.video_token_index
    visual_tokens = torch.randn(3, model.config.visual_width)
    input_ids = torch.tensor([[1, place, place, place, 5, 6]])
    batch = {"input_ids": input_ids, "labels": input_ids.where(input_ids == 6, -100), "visual_tokens": visual_tokens}
    states = torch.stack([torch.tensor([size - 1 for size in STATE_SIZES])] * 3)
    outputs = model(**batch, output_hidden_states=True)
    hidden = outputs.hidden_states[1][0, 1:4]
    normed = hidden / hidden.square().mean(1, keepdim=True).sqrt()
    log_shares = [row.log_softmax(1)[:, -1].mean() for row in school.heads(normed).split(STATE_SIZES, dim=1)]
    expected = outputs.loss - sum(log_shares) / len(STATE_SIZES)
    torch.testing.assert_close(school(states, **batch)["loss"], expected, rtol=1e-5, atol=1e-5)
