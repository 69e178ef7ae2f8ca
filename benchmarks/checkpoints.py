"""LongVLM checkpoints of real size with random weights: CLIP ViT-L/14, and a LLaMA of one or seven billion weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, set_seed

from longvlm.model.configuration import LongVLMConfig
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.processing import LongVLMProcessor
from longvlm.training.untrained_model import build_tokenizer

CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
LLAMA_1B = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
}
# Of a Vicuna or LLaMA 2 of seven billion parameters.
LLAMA_7B = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}


def make_checkpoint(
    folder: Path,
    vision: dict[str, int] = CLIP_LARGE,
    text: dict[str, int] = LLAMA_1B,
    name: str = "clip-large-llama-1b",
) -> Path:
    """The checkpoint's folder; one that is there already is taken."""
    path = folder / name
    if not (path / "config.json").is_file():
        set_seed(0)
        tokenizer = build_tokenizer()
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = LongVLMConfig(
            vision_config=CLIPVisionConfig(**vision),
            text_config=LlamaConfig(**text, **special, dtype="bfloat16"),
            video_token_index=tokenizer.convert_tokens_to_ids("<vid_patch>"),
            default_num_frames=100,
        )
        LongVLMProcessor(tokenizer, compression=config.compression).save_pretrained(path)
        # Made in bfloat16: seven billion parameters in float32 would not fit into this memory first.
        LongVLMForConditionalGeneration._from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    return path
