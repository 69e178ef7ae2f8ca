from contextlib import nullcontext

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, set_seed

from longvlm.model.configuration import LongVLMConfig
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.training.auxiliary_losses import LOSS_WEIGHTS, ModelWithAuxiliaryLosses
from longvlm.training.examples import branch_attention_mask
from longvlm.training.ground_truth import MOTION_NUMBERS, RECALL_SIZES, STATE_SIZES
from longvlm.world.render import NO_EVENT


def tiny_model() -> LongVLMForConditionalGeneration:
    set_seed(0)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    text = LlamaConfig(vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=5, num_attention_heads=4)
    return LongVLMForConditionalGeneration(LongVLMConfig(vision_config=vision, text_config=text, video_token_index=9))


def rms(hidden: torch.Tensor) -> torch.Tensor:
    return hidden / hidden.square().mean(1, keepdim=True).sqrt()


def mean_loss(
    heads: torch.nn.Linear, hidden: torch.Tensor, sizes: tuple[int, ...], weights: tuple[float, ...]
) -> torch.Tensor:
    """Where the last of each head's answers is always the right one."""
    rows = heads(rms(hidden))[:, : sum(sizes)].split(sizes, dim=1)
    losses = [-weight * row.log_softmax(1)[:, -1].mean() for row, weight in zip(rows, weights, strict=True)]
    return torch.stack(losses).mean()


def attention_of(model: LongVLMForConditionalGeneration, layer: int, batch: dict) -> torch.Tensor:
    """The logs of what each head of a layer, counted from 1, attends to: (B, H, T, T)."""
    model.set_attn_implementation("eager")
    attentions = model(**batch, output_attentions=True).attentions[layer - 1]
    model.set_attn_implementation("sdpa")
    return attentions.log()


def test_the_loss_is_that_of_the_answers_of_what_is_known_and_of_where_it_looks() -> None:
    model = tiny_model()
    learner = ModelWithAuxiliaryLosses(model, state_layer=2, recall_layer=4)
    place = model.config.video_token_index
    input_ids = torch.tensor([[1, place, place, place, 7, 6, 5, 6, 5, 6, 5]])
    visual, names, said = [1, 2, 3], [6, 8, 10], [5, 7, 9, 10]
    batch = {"input_ids": input_ids, "visual_tokens": torch.randn(3, model.config.visual_width)}
    labels = torch.full_like(input_ids, -100)
    labels[0, said] = input_ids[0, said]
    outputs = model(labels=labels, **batch, output_hidden_states=True)
    state_weights, recall_weights = (1.0,) * 8 + (4.0, 2.0, 1.0), (1.0,) * 5 + (2.0, 1.0, 1.0)
    known = mean_loss(learner.state_heads, outputs.hidden_states[2][0, visual], STATE_SIZES, state_weights)
    # One coordinate tells the number of objects, 12 of them, from -3 to 3.
    miscounted = sum((rms(outputs.hidden_states[layer][0, visual])[:, 0] - 3).square().mean() for layer in (2, 3))
    known = known + 2 * miscounted
    read = mean_loss(learner.state_heads, outputs.hidden_states[2][0, names], STATE_SIZES[:2], (1.0, 1.0))
    moved = (
        (learner.motion_heads(rms(outputs.hidden_states[1][0, visual])) - torch.eye(3, MOTION_NUMBERS)).square().mean()
    )
    recalled = mean_loss(learner.recall_heads, outputs.hidden_states[4][0, names], RECALL_SIZES, recall_weights)
    # Tokens 1 and 3 show the first object, token 2 the second; the first and the last name are the first object's.
    before, begun, look_up, recall, naming = (attention_of(model, layer, batch)[0] for layer in (1, 2, 3, 4, 5))
    followed = sum(head[1, 0] + head[2, 0] + head[3, 1] for head in (before[0], before[1], begun[1])) / 3
    begins = torch.tensor(0.0)
    for head in (begun[0], look_up[2]):  # the start of the text counts 6, one beginning 1
        one, two = 6 * head[1, 0] + head[1, 1], (6 * head[t, 0] + head[t, [1, 2]].sum() for t in (2, 3))
        begins = begins + 4 * (one / 7 + sum(two) / 8) / 3
    itself = (look_up[0, 6, [1, 3]].logsumexp(0) + look_up[0, 8, 0] + look_up[0, 10, [1, 3]].logsumexp(0)) / 3
    the_next = (look_up[1, 6, 2] + look_up[1, 8, 0] + look_up[1, 10, 2]) / 3
    the_newest = (look_up[2, 6, 1] + look_up[2, 8, 0] + look_up[2, 10, 1]) / 3
    the_one_before = (recall[1, 6, 0] + recall[1, 8, 0] + recall[1, 10, 0]) / 3
    # The talk is about the video, as its end knows it, until a name is said.
    topic = sum(head[4, 3] + head[6, 6] + head[8, 8] + head[9, 8] for head in (recall[0], naming[1])) / 4
    # What is to be named is found in the video (what comes at 4), or in the talk where it was named there before.
    named = (naming[0, 4, [1, 3]].logsumexp(0) + naming[0, [8, 9], 6].sum()) / 3
    looked = followed + begins + itself + the_next + the_newest + the_one_before
    arguments = {
        "states": torch.tensor([[size - 1 for size in STATE_SIZES]] * 3),
        "motions": torch.eye(3, MOTION_NUMBERS),
        "token_events": torch.tensor([0, 1, 0]),
        "token_frames": torch.tensor([0.0, 1.0, 2.0]),
        "is_name": input_ids == 5,
        "recalls": torch.tensor([[size - 1 for size in RECALL_SIZES]] * 3),
        "name_events": torch.tensor([0, NO_EVENT, 0]),
        "named": torch.tensor([[size - 1 for size in STATE_SIZES[:2]]] * 3),
        **batch,
    }
    without_answers = known + read + moved + recalled - looked
    torch.testing.assert_close(learner(**arguments)["loss"], without_answers, rtol=1e-5, atol=1e-5)
    said_logs = -outputs.logits[0].log_softmax(1)[[4, 6, 8, 9], [6, 6, 6, 5]]
    answers = (said_logs[0] + said_logs[1] + said_logs[2:].mean()) / 3  # the last one has two tokens
    expected = without_answers + answers - topic - named
    torch.testing.assert_close(learner(**arguments, labels=labels)["loss"], expected, rtol=1e-5, atol=1e-5)
    for weights, more in (({"count": 6.0}, 4 * miscounted), ({"motion": 3.0}, 2 * moved)):
        learner.loss_weights = LOSS_WEIGHTS | weights
        torch.testing.assert_close(learner(**arguments)["loss"], without_answers + more, rtol=1e-5, atol=1e-5)


def test_sightings_are_told_and_looked_for_within_the_segment() -> None:
    """Beside all else; tokens 1, 3 and 4 show the same object, the last one in another segment."""
    model = tiny_model()
    learner = ModelWithAuxiliaryLosses(model, state_layer=2, recall_layer=4, frames_per_segment=3)
    place = model.config.video_token_index
    input_ids = torch.tensor([[1, place, place, place, place]])
    batch = {"input_ids": input_ids, "visual_tokens": torch.randn(4, model.config.visual_width)}
    arguments = {
        "states": torch.tensor([[size - 1 for size in STATE_SIZES]] * 4),
        "motions": torch.zeros(4, MOTION_NUMBERS),
        "token_events": torch.tensor([0, NO_EVENT, 0, 0]),
        "token_frames": torch.tensor([0.0, 1.0, 2.0, 3.0]),
        "is_name": torch.zeros_like(input_ids, dtype=torch.bool),
        "recalls": torch.zeros(0, len(RECALL_SIZES), dtype=torch.int64),
        "name_events": torch.zeros(0, dtype=torch.int64),
        "named": torch.zeros(0, 2, dtype=torch.int64),
        **batch,
    }
    seen_frames = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 0, 1], [1, 0, 0]])
    were_gone = torch.tensor([[0.0, 0], [0, 0], [1, 1], [0, 1]])  # in the segment, in the video
    hidden, shows = model(**batch, output_hidden_states=True).hidden_states, [1, 3, 4]
    told, wanted = learner.sighting_heads(rms(hidden[1][0, shows])).sigmoid(), seen_frames[[0, 2, 3]]
    of_frames = -(wanted * told.log() + (1 - wanted) * (1 - told).log()).sum() / 3
    in_segment, in_video = (
        head(rms(hidden[layer][0, shows]))[:, 0].sigmoid()
        for head, layer in zip(learner.gone_heads, (1, 2), strict=True)
    )
    of_gaps = -((1 - in_segment[0]).log() + 5 * in_segment[1].log() + (1 - in_segment[2]).log()) / 3
    of_gaps = of_gaps - ((1 - in_video[0]).log() + 5 * in_video[1:].log().sum()) / 3
    head = attention_of(model, 1, batch)[0, 2]
    looked = (head[1, 0] + head[3, 1] + head[4, 0]) / 3
    with_sightings = {"token_segments": torch.tensor([1, 1, 1, 2]), "seen_frames": seen_frames, "were_gone": were_gone}
    difference = learner(**arguments, **with_sightings)["loss"] - learner(**arguments)["loss"]
    torch.testing.assert_close(difference, of_frames + 4 * of_gaps - looked, rtol=1e-5, atol=1e-5)
    for weights, expected in (
        ({"gone": 1.0}, of_frames + of_gaps - looked),
        ({"sighting": 0.5, "gone": 0.0}, (of_frames - looked) / 2),
        ({"sighting": 0.0, "gone": 0.0}, torch.tensor(0.0)),
    ):
        learner.loss_weights = LOSS_WEIGHTS | weights
        difference = learner(**arguments, **with_sightings)["loss"] - learner(**arguments)["loss"]
        torch.testing.assert_close(difference, expected, rtol=1e-5, atol=1e-5)


def test_where_an_answer_looks_stays_in_its_own_conversation() -> None:
    """The name in the other conversation is neither its topic nor where the same name is to be found."""
    model = tiny_model()
    learner = ModelWithAuxiliaryLosses(model, state_layer=2, recall_layer=4)
    place = model.config.video_token_index
    input_ids = torch.tensor([[1, place, place, 5, 6, 7, 6, 5]])
    mask = branch_attention_mask(torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]]))[:, None]
    batch = {"input_ids": input_ids, "visual_tokens": torch.randn(2, model.config.visual_width)}
    batch |= {"attention_mask": mask, "position_ids": torch.tensor([[0, 1, 2, 3, 4, 3, 4, 5]])}
    labels = torch.full_like(input_ids, -100)
    labels[0, [6, 7]] = input_ids[0, [6, 7]]
    arguments = {
        "states": torch.zeros(2, len(STATE_SIZES), dtype=torch.int64),
        "motions": torch.zeros(2, MOTION_NUMBERS),
        "token_events": torch.tensor([NO_EVENT, 0]),
        "token_frames": torch.tensor([0.0, 1.0]),
        "is_name": input_ids == 5,
        "recalls": torch.zeros(2, len(RECALL_SIZES), dtype=torch.int64),
        "name_events": torch.tensor([0, 0]),
        "named": torch.zeros(2, 2, dtype=torch.int64),
        **batch,
    }
    added = {**batch, "attention_mask": torch.zeros(mask.shape).masked_fill(~mask, -1e9)}  # as this attention takes it
    topics, (naming, again) = attention_of(model, 4, added)[0, 0], attention_of(model, 5, added)[0, :2]
    difference = learner(**arguments, labels=labels)["loss"] - learner(**arguments)["loss"]
    looked = sum(head[5, 2] + head[6, 2] for head in (topics, again, naming)) / 2
    torch.testing.assert_close(difference, model(labels=labels, **batch).loss - looked, rtol=1e-4, atol=1e-4)


def test_layers_that_no_loss_reads_are_left_out_where_there_is_nothing_to_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    learner = ModelWithAuxiliaryLosses(model, state_layer=2, recall_layer=4)
    place = model.config.video_token_index
    input_ids = torch.tensor([[1, place, place, 5, 6]])
    arguments = {
        "input_ids": input_ids,
        "visual_tokens": torch.randn(2, model.config.visual_width),
        "states": torch.ones(2, len(STATE_SIZES), dtype=torch.int64),
        "motions": torch.zeros(2, MOTION_NUMBERS),
        "token_events": torch.tensor([0, 0]),
        "token_frames": torch.tensor([0.0, 1.0]),
        "is_name": input_ids == 5,
        "recalls": torch.zeros(1, len(RECALL_SIZES), dtype=torch.int64),
        "name_events": torch.tensor([0]),
        "named": torch.zeros(1, 2, dtype=torch.int64),
    }
    seen: list[int] = []
    for number, layer in enumerate(model.model.language_model.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: seen.append(number))

    def learn() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        learner.zero_grad()
        seen.clear()
        loss = learner(**arguments)["loss"]
        loss.backward()
        return loss, {name: one.grad for name, one in learner.named_parameters() if one.grad is not None}

    loss, gradients = learn()
    assert seen == [1, 2, 3] and model.config.text_config.num_hidden_layers == 5  # the fourth at the name alone
    monkeypatch.setattr(learner.watched, "left_out_behind", lambda _: nullcontext())
    whole_loss, whole_gradients = learn()
    assert seen == [1, 2, 3, 4, 5] and torch.equal(loss, whole_loss)
    assert gradients.keys() == whole_gradients.keys()
    assert all(torch.equal(gradients[name], whole_gradients[name]) for name in gradients)
