import pytest
import torch
from transformers import LlamaConfig, LlamaModel, set_seed

from longvlm.training.examples import branch_attention_mask
from longvlm.training.shared_attention import SHARED_ATTENTION


@pytest.mark.parametrize("key_value_heads", [4, 2])
@pytest.mark.parametrize("num_shared", [0, 3, 5])
def test_it_attends_as_with_a_mask_alone(num_shared: int, key_value_heads: int) -> None:
    set_seed(0)
    model = LlamaModel(
        LlamaConfig(
            vocab_size=7,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=key_value_heads,
        )
    )
    # The second row has more in common than the first, and the first is padded.
    branches = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 2, -1], [0, 0, 0, 0, 0, 0, 1, 2, 2]])
    named = {"attention_mask": branch_attention_mask(branches)[:, None], "inputs_embeds": torch.randn(2, 9, 16)}
    expected, weight = model(**named).last_hidden_state, torch.randn(2, 9, 16)
    slopes = torch.autograd.grad((expected * weight).sum(), list(model.parameters())[1:])
    model.set_attn_implementation(SHARED_ATTENTION)
    hidden = model(**named, num_shared=num_shared).last_hidden_state
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)
    others = torch.autograd.grad((hidden * weight).sum(), list(model.parameters())[1:])
    torch.testing.assert_close(others, slopes, atol=1e-4, rtol=1e-4)


def test_what_is_shared_is_read_without_the_mask() -> None:
    set_seed(0)
    model = LlamaModel(
        LlamaConfig(vocab_size=7, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4)
    )
    model.set_attn_implementation(SHARED_ATTENTION)
    embeds, nothing = torch.randn(1, 6, 16), torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    hidden = model(inputs_embeds=embeds, attention_mask=nothing, num_shared=4).last_hidden_state
    torch.testing.assert_close(hidden[:, :4], model(inputs_embeds=embeds[:, :4]).last_hidden_state)
