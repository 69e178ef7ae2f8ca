"""LLaVA's original layout is known by its config, or by the names of its weights, and needs a tower from somewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_llava import make_words, random_llama, random_llava, save_checkpoint, save_projector, save_tower

from longvlm import LongVLM
from longvlm.errors import LongVLMError
from longvlm.model import weight_files
from longvlm.model.checkpoints import load_config
from longvlm.model.conversion import consolidate, import_llava
from longvlm.model.layouts import is_original_layout


def save_llava(folder: Path, config: dict[str, Any], **files: Any) -> Path:
    """A LLaVA of the original layout whose config names no tower."""
    base, base_config = random_llama()
    weights, llava_config = random_llava(base, base_config)
    del llava_config["mm_vision_tower"]
    return save_checkpoint(folder, weights, llava_config | config, make_words("<a>", "<b>", "<c>"), **files)


def open_model(folder: Path, tower: Path | None = None) -> LongVLM:
    return LongVLM.from_pretrained(folder, vision_tower=tower and str(tower), device="cpu", dtype="float32")


@pytest.mark.parametrize("files", [{"files": "safetensors"}, {"files": "bin"}, {"files": "bin", "num_shards": 3}])
@pytest.mark.parametrize("model_type", ["llava", "llava_llama", "llama"])
def test_a_config_without_a_tower_is_read_with_one(tmp_path: Path, model_type: str, files: dict[str, Any]) -> None:
    tower = save_tower(tmp_path / "tower")
    bare = save_llava(tmp_path / "bare", {"model_type": model_type}, **files)
    named = save_llava(tmp_path / "named", {"mm_vision_tower": str(tower)}, **files)
    model, expected = open_model(bare, tower), open_model(named)
    weights, wanted = model.language_model.state_dict(), expected.language_model.state_dict()
    assert weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert model.encoder.fingerprint == expected.encoder.fingerprint
    import_llava(bare, tmp_path / "own", vision_tower=str(tower))
    imported = open_model(tmp_path / "own").language_model.state_dict()
    assert all(torch.equal(imported[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("config", [{}, {"mm_vision_tower": None}, {"model_type": "llama"}])
def test_without_any_tower_one_is_asked_for(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = save_llava(tmp_path / "bare", config)
    with pytest.raises(LongVLMError, match=r"bare .*its config names no vision tower; give --vision-tower"):
        load_config(folder)


def test_a_projector_is_merged_where_the_config_names_no_tower(tmp_path: Path) -> None:
    tower, folder = save_tower(tmp_path / "tower"), save_llava(tmp_path / "bare", {})
    save_projector(tmp_path / "mm_projector.bin")
    with pytest.raises(LongVLMError, match="give --vision-tower"):
        consolidate(folder, tmp_path / "merged", projector=tmp_path / "mm_projector.bin")
    consolidate(folder, tmp_path / "merged", projector=tmp_path / "mm_projector.bin", vision_tower=str(tower))
    laid = LongVLM.from_pretrained(
        folder, projector=tmp_path / "mm_projector.bin", vision_tower=str(tower), device="cpu", dtype="float32"
    ).language_model.state_dict()
    merged = open_model(tmp_path / "merged", tower).language_model.state_dict()
    assert all(torch.equal(merged[name], laid[name]) for name in laid)


def test_a_tower_of_another_width_is_refused_at_once(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "bare", {"mm_hidden_size": 99})
    with pytest.raises(LongVLMError, match=r"features of width 24, but the model's projector reads 99"):
        load_config(folder, vision_tower=str(save_tower(tmp_path / "tower")))


def test_quantised_weights_are_refused_by_that_name(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "awq", {"quantization_config": {"quant_method": "awq", "bits": 4}})
    with pytest.raises(LongVLMError, match="awq holds quantised weights"):
        load_config(folder, vision_tower=str(save_tower(tmp_path / "tower")))
    quantised_next = {"quantization_config": {"bits": 4}, "image_aspect_ratio": "anyres"}
    with pytest.raises(LongVLMError, match=r"next is of type 'llava_\w+', which is not supported"):
        load_config(save_llava(tmp_path / "next", quantised_next), vision_tower=str(tmp_path / "tower"))


def test_the_first_llava_has_its_marks_around_a_video(tmp_path: Path) -> None:
    tower = save_tower(tmp_path / "tower")
    weights, config = random_llava(*random_llama())
    words = make_words("<im_patch>", "<im_start>", "<im_end>")
    for learned, marks in ((True, ("<im_start>", "<im_end>")), (False, (None, None))):
        settings = config | {"mm_vision_tower": str(tower), "mm_use_im_start_end": learned}
        processor = open_model(save_checkpoint(tmp_path / str(learned), weights, settings, words)).processor
        assert (processor.video_start_token, processor.video_end_token) == marks
        text = processor.prompt([{"role": "user", "content": [{"type": "video"}]}], num_segments=1)
        assert ("<im_start><vid_patch>" in text and "<vid_patch><im_end>" in text) == learned


def test_a_llama_alone_is_refused_by_its_type(tmp_path: Path) -> None:
    base, config = random_llama()
    folder = save_checkpoint(tmp_path / "llama", base, config, make_words())
    with pytest.raises(LongVLMError, match=r"is of type 'llama'; LongVLM and LLaVA checkpoints"):
        load_config(folder, vision_tower=str(save_tower(tmp_path / "tower")))


@pytest.mark.parametrize(
    "tiles", [{"image_aspect_ratio": "anyres"}, {"mm_patch_merge_type": "spatial_unpad", "model_type": "llava_llama"}]
)
def test_one_that_reads_pictures_as_tiles_is_refused(tmp_path: Path, tiles: dict[str, Any]) -> None:
    folder = save_llava(tmp_path / "next", tiles)
    with pytest.raises(LongVLMError, match=r"LLaVA-NeXT layout reads a picture as tiles.* use a LLaVA 1\.5 style one"):
        load_config(folder, vision_tower=str(save_tower(tmp_path / "tower")))


def test_a_tower_that_was_trained_along_is_not_taken_for_the_one_that_is_named(tmp_path: Path) -> None:
    tower = save_tower(tmp_path / "tower")
    weights, config = random_llava(*random_llama())
    config |= {"mm_vision_tower": str(tower), "unfreeze_mm_vision_tower": True}
    words = make_words("<a>", "<b>", "<c>")
    without = save_checkpoint(tmp_path / "without", weights, config, words)
    assert load_config(without).vision_tower == str(tower)
    own = {
        f"model.vision_tower.vision_tower.{name}": one for name, one in load_file(tower / "model.safetensors").items()
    }
    folder = save_checkpoint(tmp_path / "own", weights | own, config, words)
    with pytest.raises(LongVLMError, match=r"own has trained its vision tower .* with --vision-tower"):
        load_config(folder)
    assert load_config(folder, vision_tower=str(tower)).vision_tower == str(tower)


@pytest.mark.parametrize(
    "wrong", [{"hidden_size": "32"}, {"vocab_size": None}, {"num_attention_heads": 5}, {"torch_dtype": "abc"}]
)
def test_values_that_no_config_has_are_one_line(tmp_path: Path, wrong: dict[str, Any]) -> None:
    tower = save_tower(tmp_path / "tower")
    folder = save_llava(tmp_path / "odd", {"mm_vision_tower": str(tower)} | wrong)
    with pytest.raises(LongVLMError, match=r"odd/config\.json is not supported by transformers"):
        load_config(folder)


def test_no_weight_is_read_to_know_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_llava(tmp_path / "bare", {})
    monkeypatch.setattr(weight_files, "read_tensors", pytest.fail)
    assert is_original_layout({"model_type": "llava"}, folder)
    assert not is_original_layout({"model_type": "llava", "vision_config": {}}, tmp_path / "no such folder")
