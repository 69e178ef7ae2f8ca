"""A trained part and its base, written as one checkpoint, are the model that they are when the part is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import save_tiny_checkpoint
from tiny_llava import (
    NUM_WORDS,
    TOWER_WIDTH,
    WIDTH,
    make_words,
    random_llama,
    random_llava,
    save_checkpoint,
    save_tower,
)
from tiny_part import save_part

from longvlm import LongVLM
from longvlm.errors import LongVLMError
from longvlm.model.checkpoints import load_config
from longvlm.model.conversion import consolidate

LAYERS = [f"model.language_model.layers.{n}.mlp.up_proj" for n in range(2)]
PROJECTOR = "model.multi_modal_projector.linear_1."
TABLES = ["model.language_model.embed_tokens.weight", "lm_head.weight"]
ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}


def open_model(folder: Path, **settings: Any) -> LongVLM:
    return LongVLM.from_pretrained(folder, device="cpu", dtype="float32", **settings)


def cast_to(folder: Path, dtype: torch.dtype) -> None:
    """Store a checkpoint's language model in `dtype`."""
    weights = load_file(folder / "model.safetensors")
    cast = {name: tensor.to(dtype) if "language_model" in name else tensor for name, tensor in weights.items()}
    save_file(cast, folder / "model.safetensors", {"format": "pt"})


@torch.no_grad()
def logits_of(model: LongVLM) -> torch.Tensor:
    """Of a prompt with words, both marks, and as many visual tokens as are made from a few frames."""
    torch.manual_seed(0)
    config = model.config
    size = config.vision_config.image_size
    pixels = torch.randn(1, config.compression_settings.frames_per_segment, 3, size, size)
    tokens = model.language_model.model.get_video_features(pixels)
    video, size = config.video_token_index, config.text_config.vocab_size
    ids = [1, 4, size - 2, *[video] * tokens.shape[1], size - 1, 5]
    return model.language_model(torch.tensor([ids]), visual_tokens=tokens).logits


def assert_same_model(actual: LongVLM, expected: LongVLM, rounded: dict[str, torch.dtype] | None = None) -> None:
    """Every tensor is the same, but those of `rounded`, which are so to the rounding of a dtype."""
    weights, wanted = actual.language_model.state_dict(), expected.language_model.state_dict()
    assert weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if dtype := (rounded or {}).get(name):
            torch.testing.assert_close(weights[name], tensor, rtol=ROUNDING[dtype], atol=2**-24, msg=name)
        else:
            assert torch.equal(weights[name], tensor), name
    assert actual.encoder.fingerprint == expected.encoder.fingerprint
    if not rounded:
        assert torch.equal(logits_of(actual), logits_of(expected))
    settings, expectation = actual.config.to_dict(), expected.config.to_dict()
    for config in (settings["vision_config"], expectation["vision_config"]):
        config.pop("_name_or_path", None)  # where the tower lay
    for key in ("compression", "video_token_index", "text_config", "vision_config", "default_num_frames"):
        assert settings[key] == expectation[key], key
    assert actual.processor.tokenizer.get_vocab() == expected.processor.tokenizer.get_vocab()
    assert (actual.config.base, actual.config.vision_tower) == (None, None)


def everything(base: Path) -> dict[str, Any]:
    """Of what can be trained beside a frozen language model, something of each."""
    torch.manual_seed(3)
    config = load_config(base)
    width, size = config.text_config.hidden_size, config.text_config.vocab_size
    tower = dict(open_model(base).encoder.tower.named_parameters())
    name = next(name for name in tower if name.endswith("mlp.fc1.weight"))
    ids = (4, size, size + 2)  # one that it knows, two that are new, and between those one that it lacks
    inside = config.text_config.intermediate_size
    return {
        "vocabulary": size + 3,
        "weights": {
            f"{PROJECTOR}weight": torch.randn(width, config.visual_width),
            f"{PROJECTOR}bias": torch.randn(width),
            f"model.vision_tower.{name}": torch.randn_like(tower[name]),
        },
        "token_ids": ids,
        "input_rows": torch.randn(3, width),
        "output_rows": None if config.tie_word_embeddings else torch.randn(3, width),
        "low_rank": {layer: (torch.randn(2, width), torch.randn(inside, 2)) for layer in LAYERS},
        "low_rank_scale": 0.5,
    }


@pytest.mark.parametrize("max_shard_size", ["50KB", "5GB"])
def test_all_that_was_trained_over_a_base_in_float32_is_the_same_to_the_last_bit(
    tmp_path: Path, max_shard_size: str
) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    part = save_part(tmp_path / "part", base, **everything(base))
    consolidate(part, tmp_path / "one", max_shard_size=max_shard_size)
    expected = open_model(part)
    _ = expected.encoder, expected.language_model
    base.rename(tmp_path / "elsewhere")
    assert_same_model(open_model(tmp_path / "one"), expected)
    assert (len(list((tmp_path / "one").glob("model*.safetensors"))) > 1) == (max_shard_size == "50KB")
    assert not (tmp_path / "one" / "trained_part.safetensors").exists()
    stored, untrained = (
        {path.name for path in folder.glob("*.json")} for folder in (tmp_path / "one", tmp_path / "elsewhere")
    )
    assert untrained <= stored, "as the base's generation_config.json"


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_rows_and_low_rank_changes_are_rounded_to_the_bases_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    cast_to(base, dtype)
    part = save_part(tmp_path / "part", base, **everything(base))
    consolidate(part, tmp_path / "one")
    rounded = [*TABLES, *(f"{layer}.weight" for layer in LAYERS)]
    assert_same_model(open_model(tmp_path / "one"), open_model(part), dict.fromkeys(rounded, dtype))
    stored = load_file(tmp_path / "one" / "model.safetensors")
    assert stored["multi_modal_projector.linear_1.weight"].dtype == torch.float32
    assert stored["language_model.model.layers.0.mlp.up_proj.weight"].dtype == dtype


@pytest.mark.parametrize("tie", [False, True])
def test_over_a_base_of_the_original_layout(tmp_path: Path, tie: bool) -> None:
    llama, config = random_llama(tie=tie)
    weights, llava_config = random_llava(llama, config, tie=tie)
    weights = {n: t[:NUM_WORDS].clone() if t.shape[0] == NUM_WORDS + 3 else t for n, t in weights.items()}
    tower = save_tower(tmp_path / "tower")
    llava_config |= {"vocab_size": NUM_WORDS, "mm_vision_tower": str(tower)}
    base = save_checkpoint(tmp_path / "llava", weights, llava_config, make_words(), files="bin", num_shards=3)
    content: dict[str, Any] = {
        "weights": {f"{PROJECTOR}weight": torch.randn(WIDTH, TOWER_WIDTH)},
        "token_ids": (NUM_WORDS, NUM_WORDS + 1, NUM_WORDS + 2),
        "input_rows": torch.randn(3, WIDTH).half().float(),
        "output_rows": None if tie else torch.randn(3, WIDTH).half().float(),
    }
    part = save_part(tmp_path / "part", base, NUM_WORDS + 3, **content)
    expected = open_model(part)
    _ = expected.encoder, expected.language_model
    consolidate(part, tmp_path / "one")
    assert_same_model(open_model(tmp_path / "one"), expected)

    base.rename(tmp_path / "moved")
    tower.rename(tmp_path / "moved tower")
    with pytest.raises(LongVLMError, match=r"no model folder .*tower"):
        consolidate(part, tmp_path / "two", base=tmp_path / "moved")
    consolidate(part, tmp_path / "two", base=tmp_path / "moved", vision_tower=str(tmp_path / "moved tower"))
    assert_same_model(open_model(tmp_path / "two"), expected)


def test_a_part_over_a_part(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    first = save_part(tmp_path / "first", base, **everything(base))
    ones = {layer: (torch.ones(1, 32), torch.ones(64, 1)) for layer in LAYERS[:1]}
    second = save_part(tmp_path / "second", first, low_rank=ones, weights={f"{PROJECTOR}bias": torch.ones(32)})
    consolidate(second, tmp_path / "one")
    assert_same_model(open_model(tmp_path / "one"), open_model(second))
    first.rename(tmp_path / "moved")
    consolidate(second, tmp_path / "two", base=tmp_path / "moved")
    assert_same_model(open_model(tmp_path / "two"), open_model(tmp_path / "one"))


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    size = load_config(base).text_config.vocab_size
    contents: dict[str, tuple[dict[str, Any], str]] = {
        "narrow": ({"weights": {f"{PROJECTOR}bias": torch.ones(31)}}, r"bias of shape \(31,\), its base one of shape"),
        "unknown": ({"weights": {"model.nothing": torch.ones(1)}}, r"model.nothing of shape \(1,\), its base nothing"),
        "low rank": (
            {"low_rank": {LAYERS[0]: (torch.ones(1, 8), torch.ones(64, 1))}},
            r"up_proj.weight of .*\(64, 8\)",
        ),
        "short": ({"vocabulary": size - 1}, rf"{size - 1} rows in .*, its base {size}"),
    }
    for name, (content, words) in contents.items():
        part = save_part(tmp_path / name, base, **content)
        with pytest.raises(LongVLMError, match=words):
            consolidate(part, tmp_path / "new" / "one")
    part = save_part(tmp_path / "part", base)
    other = save_tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(LongVLMError, match=r"trained on a base with digest .*other has .* give it with --base"):
        consolidate(part, tmp_path / "new" / "one", base=other)
    with pytest.raises(LongVLMError, match="leave the projector"):
        consolidate(part, tmp_path / "new" / "one", projector=tmp_path / "mm_projector.bin")
    assert not (tmp_path / "new").exists()


def test_a_config_without_an_unneeded_setting_is_read(tmp_path: Path) -> None:
    """Parts that were saved before a base could be given have no such key in their config."""
    base = save_tiny_checkpoint(tmp_path / "base")
    part = save_part(tmp_path / "part", base, weights={f"{PROJECTOR}bias": torch.ones(32)})
    config = json.loads((part / "config.json").read_text())
    config.pop("base", None)
    (part / "config.json").write_text(json.dumps(config))
    consolidate(part, tmp_path / "one")
    assert_same_model(open_model(tmp_path / "one"), open_model(part))
