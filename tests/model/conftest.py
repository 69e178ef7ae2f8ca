"""Tiny random LLaVA checkpoints and a tiny tokenizer, in the layouts that real ones have."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

WORDS = [
    *[
        "user",
        "assistant",
        "USER",
        "ASSISTANT",
        "system",
        ":",
        ".",
        ",",
        "?",
        "what",
        "happens",
        "then",
        "hello",
    ],
    *["a", "red", "blue", "circle", "square", "moves", "Q", "ANSWER", *"0123456789"],
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
VIDEO_TOKENS = ["<vid_patch>", "<vid_start>", "<vid_end>"]

# What llava-hf checkpoints do with a conversation: pictures first, then text, and no mark after an answer.
IMAGE_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
MakeLlava = Callable[..., tuple[Path, LlavaForConditionalGeneration]]


@pytest.fixture
def image_template() -> str:
    return IMAGE_TEMPLATE


@pytest.fixture
def make_tokenizer() -> MakeTokenizer:
    """A closed-vocabulary word tokenizer; decoding gives back "a red circle." with its spaces right."""

    def make(extra: list[str] = VIDEO_TOKENS, chat_template: str | None = None) -> PreTrainedTokenizerFast:
        vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, *extra])}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
        )
        words.decoder = decoders.WordPiece(cleanup=True)
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        return PreTrainedTokenizerFast(
            tokenizer_object=words,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            pad_token="<pad>",
            additional_special_tokens=extra,
            chat_template=chat_template,
        )

    return make


@pytest.fixture
def make_llava(tmp_path: Path, make_tokenizer: MakeTokenizer) -> MakeLlava:
    """A random LLaVA checkpoint saved by transformers, with its tokenizer and settings, and its model."""

    def make(
        tower: str = "clip", *, tie: bool = False, max_shard_size: str = "5GB", **settings: object
    ) -> tuple[Path, LlavaForConditionalGeneration]:
        torch.manual_seed(0)
        sizes = {
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 7,
        }
        vision = CLIPVisionConfig(**sizes) if tower == "clip" else SiglipVisionConfig(**sizes, vision_use_head=False)
        tokenizer = make_tokenizer(["<image>"])
        text = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=len(tokenizer) + 3,
            initializer_range=0.3,
            tie_word_embeddings=tie,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_select_strategy="default" if tower == "clip" else "full",
            tie_word_embeddings=tie,
        )
        for name, value in settings.items():
            setattr(config, name, value)
        model = LlavaForConditionalGeneration(config).eval()
        folder = tmp_path / f"llava-{tower}"
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(folder)
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": IMAGE_TEMPLATE}))
        preprocessor = {
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.2, 0.25, 0.3],
            "do_center_crop": tower == "clip",
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        return folder, model

    return make
