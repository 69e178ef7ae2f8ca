"""Tiny random checkpoints of LLaMA and of LLaVA's original layout, in every kind of files that real ones have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WIDTH, TOWER_WIDTH = 32, 24
NUM_WORDS, NUM_NEW = 40, 3
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROTARY = "model.layers.0.self_attn.rotary_emb.inv_freq"
PROJECTOR = "model.mm_projector."
VIDEO_TOKENS = ["<vid_patch>", "<vid_start>", "<vid_end>"]

Weights = dict[str, torch.Tensor]


def make_words(*extra: str, prefix: str = "word") -> PreTrainedTokenizerFast:
    """A tokenizer of NUM_WORDS words, with special tokens behind them."""
    words = ["<unk>", "<s>", "</s>", *(f"{prefix}{i}" for i in range(NUM_WORDS - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": list(extra)})
    return fast


def random_llama(seed: int = 0, *, tie: bool = False, rows: int = NUM_WORDS) -> tuple[Weights, dict[str, Any]]:
    """Weights (float16; without a head if tied) and config."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=rows,
        initializer_range=0.1,
        tie_word_embeddings=tie,
        bos_token_id=1,
        eos_token_id=2,
    )
    weights = {name: tensor.half() for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    if tie:
        del weights[HEAD]
    return weights, config.to_dict() | {"dtype": "float16"}


def random_llava(
    base: Weights, config: dict[str, Any], *, tie: bool = False, seed: int = 1
) -> tuple[Weights, dict[str, Any]]:
    """A LLaVA of the original layout, made from a LLaMA by small changes, with new tokens and a projector."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    weights = {HEAD: base[EMBEDDINGS]} | base
    weights = {name: tensor + (0.01 * noise(*tensor.shape)).half() for name, tensor in weights.items()}
    for name in (EMBEDDINGS, HEAD):
        weights[name] = torch.cat([weights[name], noise(NUM_NEW, WIDTH).half()])
    if tie:
        del weights[HEAD]
    weights |= {f"{PROJECTOR}weight": noise(WIDTH, TOWER_WIDTH).half(), f"{PROJECTOR}bias": noise(WIDTH).half()}
    changes = {"model_type": "llava", "vocab_size": NUM_WORDS + NUM_NEW, "tie_word_embeddings": tie}
    return weights, config | changes | {"mm_vision_tower": "tower"}


def save_checkpoint(
    folder: Path,
    weights: Weights,
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    files: str = "safetensors",
    num_shards: int = 1,
) -> Path:
    """`files` is "safetensors" or "bin"."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    stem, suffix = ("model", ".safetensors") if files == "safetensors" else ("pytorch_model", ".bin")
    names, weight_map = sorted(weights), {}
    for number in range(num_shards):
        file = f"{stem}-{number + 1:05}-of-{num_shards:05}{suffix}" if num_shards > 1 else stem + suffix
        shard = {name: weights[name] for name in names[number::num_shards]}
        weight_map |= dict.fromkeys(shard, file)
        if files == "safetensors":
            save_file(shard, folder / file, {"format": "pt"})
        else:
            torch.save(shard, folder / file)
    if num_shards > 1:
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def slow_sum(base: Weights, delta: Weights) -> Weights:
    """What the reference's script makes of a base and a delta, in float16."""
    result = {name: tensor.clone() for name, tensor in delta.items()}
    for name, tensor in base.items():
        result[name][: tensor.shape[0]] += tensor
    return result


def read_weights(folder: Path) -> Weights:
    weights: Weights = {}
    for path in folder.glob("*.safetensors"):
        weights |= load_file(path)
    return weights


def save_tower(folder: Path) -> Path:
    torch.manual_seed(5)
    config = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=32,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.4, 0.5], "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_projector(path: Path, *, rows: int | None = NUM_WORDS + NUM_NEW, seed: int = 7) -> Weights:
    """An mm_projector.bin of the reference; without a table of embeddings if `rows` is None."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"{PROJECTOR}weight": (WIDTH, TOWER_WIDTH), f"{PROJECTOR}bias": (WIDTH,)}
    if rows is not None:
        shapes[EMBEDDINGS] = (rows, WIDTH)
    weights = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    torch.save(weights, path)
    return weights
