"""A tiny random LongVLM checkpoint with its tokenizer, for tests that need a model but not its wisdom."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from longvlm.model.configuration import LongVLMConfig
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.processing import LongVLMProcessor

CONTEXT_LENGTH = 512
NUM_FRAMES = 8
FRAMES_PER_SEGMENT = 4
TOKENS_PER_SEGMENT = 6
GLOBAL_LAYERS = 2


def save_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """One token a byte, 16 patches a frame, 2 layers each; random weights by `seed`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    video_tokens = ["<vid_patch>", "<vid_start>", "<vid_end>"]
    words = Tokenizer(models.BPE({token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", additional_special_tokens=video_tokens
    )
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LongVLMConfig(
        vision_config=CLIPVisionConfig(**width, image_size=56, patch_size=14, initializer_factor=20.0),
        text_config=LlamaConfig(
            **width,
            vocab_size=len(tokenizer),
            max_position_embeddings=CONTEXT_LENGTH,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=1,
        ),
        video_token_index=tokenizer.convert_tokens_to_ids("<vid_patch>"),
        compression={
            "frames_per_segment": FRAMES_PER_SEGMENT,
            "tokens_per_segment": TOKENS_PER_SEGMENT,
            "global_layers": GLOBAL_LAYERS,
            "merge_heads": 4,
        },
        default_num_frames=NUM_FRAMES,
        eos_token_id=1,
    )
    torch.manual_seed(seed)
    LongVLMForConditionalGeneration(config).save_pretrained(folder)
    LongVLMProcessor(tokenizer, image_size=56, compression=config.compression).save_pretrained(folder)
    return folder
