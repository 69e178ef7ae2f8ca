import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, set_seed

from longvlm.training.examples import branch_attention_mask
from longvlm.training.watched_layers import WatchedLayers, forward_where_read


def test_a_copy_of_a_watched_model_is_watched_on_its_own() -> None:
    """As each thread's replica is."""
    set_seed(0)
    config = LlamaConfig(vocab_size=7, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4)
    model = LlamaModel(config)
    watched = WatchedLayers(model)
    other_model, other = copy.deepcopy((model, watched))
    embeds = torch.randn(1, 5, 16)
    expected = other_model(inputs_embeds=embeds, output_hidden_states=True).hidden_states[1]
    assert torch.equal(other.hidden[1], expected) and not watched.hidden
    assert torch.equal(other.visible(1, embeds[..., 0]), torch.ones(1, 5, 5, dtype=torch.bool).tril())
    other.clear()
    assert not other.hidden


def test_logits_of_a_head_are_those_it_attends_by() -> None:
    set_seed(0)
    config = LlamaConfig(vocab_size=7, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4)
    model, is_asked = LlamaModel(config), torch.tensor([[False, True, False, True], [False, False, True, False]])
    model.set_attn_implementation("eager")
    watched = WatchedLayers(model)
    shares = model(inputs_embeds=torch.randn(2, 5, 16), output_attentions=True).attentions[1][:, 3, :4, :4][is_asked]
    logits = watched.attention_logits(2, 3, is_asked)  # of the first four of five tokens
    is_seen = torch.ones(2, 4, 4, dtype=torch.bool).tril()[is_asked]
    torch.testing.assert_close(logits.masked_fill(~is_seen, -torch.inf).softmax(1), shares)


@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_a_layer_where_it_is_read_is_the_whole_layer_there(key_value_heads: int) -> None:
    set_seed(0)
    model = LlamaModel(
        LlamaConfig(
            vocab_size=7,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=key_value_heads,
        )
    )
    branches = torch.tensor([[0, 0, 0, 1, 1, 2, -1], [0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 1, 1, 1]])
    is_read = torch.zeros(3, 7, dtype=torch.bool)  # in one row some, in one a single one, in one none
    is_read[0, [0, 2, 4, 5]] = is_read[1, 6] = True
    is_seen, embeds = branch_attention_mask(branches), torch.randn(3, 7, 16, requires_grad=True)
    layer, positions = model.layers[0], model.rotary_emb(embeds, torch.arange(7)[None])
    whole = layer(embeds, attention_mask=is_seen[:, None], position_embeddings=positions)[is_read]
    rows = forward_where_read(layer, is_read, embeds, is_seen, positions)
    torch.testing.assert_close(rows, whole, atol=1e-5, rtol=1e-5)
    weight, learned = torch.randn(5, 16), [embeds, *layer.parameters()]
    slopes = [torch.autograd.grad((states * weight).sum(), learned) for states in (rows, whole)]
    torch.testing.assert_close(*slopes, atol=1e-5, rtol=1e-5)
    nothing = forward_where_read(layer, is_read & False, embeds, is_seen, positions)
    assert nothing.shape == (0, 16)
