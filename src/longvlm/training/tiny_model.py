"""An untrained small model behind the bundled encoder: what the recipe tiny.yaml starts from.

The bundled model's vision tower, tokenizer and settings, with a projector and a language model that know nothing.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import GenerationConfig

from longvlm.model.checkpoints import DEFAULT_MODEL_FOLDER, load_config, load_model, load_processor
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.trained_part import TOWER_PREFIX
from longvlm.whole_files import give_usual_mode

WIDTH, LAYERS, HEADS = 128, 4, 4


def write_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Write the model into `folder`; its random weights are those of `seed`."""
    config = load_config(DEFAULT_MODEL_FOLDER)
    bundled = load_model(DEFAULT_MODEL_FOLDER, copy.deepcopy(config), device="cpu", dtype=torch.float32)
    text = config.text_config
    text.hidden_size, text.intermediate_size = WIDTH, 3 * WIDTH
    text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads = LAYERS, HEADS, HEADS
    text.head_dim = WIDTH // HEADS
    torch.manual_seed(seed)
    model = LongVLMForConditionalGeneration(config)
    tower = {n: t for n, t in bundled.state_dict().items() if n.startswith(TOWER_PREFIX)}
    model.load_state_dict(tower, strict=False)
    model.generation_config = GenerationConfig.from_pretrained(DEFAULT_MODEL_FOLDER)
    model.save_pretrained(folder)
    load_processor(DEFAULT_MODEL_FOLDER, config).save_pretrained(folder)
    give_usual_mode(folder)
    return folder
