"""Deltas: base + (target - base) is the target, from every kind of files, and a wrong base leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_llava import (
    EMBEDDINGS,
    HEAD,
    NUM_NEW,
    NUM_WORDS,
    PROJECTOR,
    ROTARY,
    WIDTH,
    Weights,
    make_words,
    random_llama,
    random_llava,
    read_weights,
    save_checkpoint,
    slow_sum,
)

from longvlm.errors import LongVLMError
from longvlm.model import deltas, weight_writing
from longvlm.model.deltas import apply_delta, make_delta

LAYER = "model.layers.1.mlp.up_proj.weight"


def assert_equal_to_float16_rounding(actual: Weights, expected: Weights) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == torch.float16
        torch.testing.assert_close(actual[name].float(), tensor.float(), rtol=2**-10, atol=2**-14, msg=name)


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("files", ["safetensors", "bin"])
def test_a_delta_gives_back_its_target(tmp_path: Path, files: str, num_shards: int) -> None:
    base, config = random_llama()
    target, target_config = random_llava(base, config)
    how = {"files": files, "num_shards": num_shards}
    save_checkpoint(tmp_path / "base", base, config, make_words(), **how)
    save_checkpoint(tmp_path / "target", target, target_config, make_words("<a>", "<b>", "<c>"), **how)
    size = "500KB" if num_shards == 1 else "20KB"
    make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta", max_shard_size=size)
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "again", max_shard_size=size)

    delta, again = read_weights(tmp_path / "delta"), read_weights(tmp_path / "again")
    assert_equal_to_float16_rounding(again, target)
    for name, tensor in slow_sum(base, delta).items():
        assert torch.equal(again[name], tensor), name
    for name in (EMBEDDINGS, HEAD):
        assert torch.equal(delta[name][NUM_WORDS:], target[name][NUM_WORDS:])
    for name in (f"{PROJECTOR}weight", f"{PROJECTOR}bias"):
        assert torch.equal(delta[name], target[name])
    for folder in (tmp_path / "delta", tmp_path / "again"):
        written = list(folder.glob("*.safetensors"))
        assert (len(written) > 1) == (folder / "model.safetensors.index.json").is_file() == (num_shards > 1)
        assert not any(folder.glob("*.bin*"))
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            assert json.loads((folder / name).read_text()) == json.loads((tmp_path / "target" / name).read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"base", "target", "delta", "again"}


def test_a_frozen_tower_among_the_targets_tensors_stands_alone(tmp_path: Path) -> None:
    base, config = random_llama()
    target, target_config = random_llava(base, config)
    target["model.vision_tower.vision_tower.x.weight"] = torch.ones(2, 3).half()
    save_checkpoint(tmp_path / "base", base, config, make_words())
    save_checkpoint(tmp_path / "target", target, target_config, make_words("<a>", "<b>", "<c>"))
    make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta")
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "again")
    assert_equal_to_float16_rounding(read_weights(tmp_path / "again"), target)


@pytest.mark.parametrize("target_tied", [False, True])
@pytest.mark.parametrize("base_tied", [False, True])
def test_tied_and_untied_heads(tmp_path: Path, base_tied: bool, target_tied: bool) -> None:
    base, config = random_llama(tie=base_tied)
    target, target_config = random_llava(base, config, tie=target_tied)
    save_checkpoint(tmp_path / "base", base, config)
    # .bin files of a tied model name the same memory twice
    both = target | ({HEAD: target[EMBEDDINGS]} if target_tied else {})
    save_checkpoint(tmp_path / "target", both, target_config, files="bin")
    make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta")
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "again")
    assert_equal_to_float16_rounding(read_weights(tmp_path / "again"), target)


def test_rotary_tables_and_the_bases_tokenizer(tmp_path: Path) -> None:
    base, config = random_llama()
    delta, delta_config = random_llava(base, config)
    save_checkpoint(tmp_path / "base", base, config, make_words())
    save_checkpoint(tmp_path / "delta", delta | {ROTARY: torch.ones(4)}, delta_config, files="bin")
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "sum")
    assert read_weights(tmp_path / "sum").keys() == delta.keys()
    assert (tmp_path / "sum/tokenizer.json").read_bytes() == (tmp_path / "base/tokenizer.json").read_bytes()
    assert (tmp_path / "sum/config.json").read_bytes() == (tmp_path / "delta/config.json").read_bytes()


def test_a_base_in_another_dtype_is_rounded_as_the_delta(tmp_path: Path) -> None:
    base, config = random_llama()
    delta, delta_config = random_llava(base, config)
    save_checkpoint(tmp_path / "base", {name: tensor.float() * 1.0001 for name, tensor in base.items()}, config)
    save_checkpoint(tmp_path / "delta", delta, delta_config)
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "sum")
    rounded = {name: (tensor.float() * 1.0001).half() for name, tensor in base.items()}
    summed = read_weights(tmp_path / "sum")
    assert all(torch.equal(summed[name], tensor) for name, tensor in slow_sum(rounded, delta).items())


def test_the_deltas_config_says_its_dtype(tmp_path: Path) -> None:
    base, config = random_llama()
    save_checkpoint(tmp_path / "base", base, config)
    make_delta(tmp_path / "base", tmp_path / "base", tmp_path / "delta", dtype="bfloat16")
    assert json.loads((tmp_path / "delta/config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in read_weights(tmp_path / "delta").values()} == {torch.bfloat16}
    assert not any(tensor.any() for tensor in read_weights(tmp_path / "delta").values())


@pytest.mark.parametrize("size", ["0GB", "many", "9" * 400 + "GB"], ids=["none", "word", "endless"])
def test_a_shard_size_that_is_none_is_refused(tmp_path: Path, size: str) -> None:
    base, config = random_llama()
    save_checkpoint(tmp_path / "base", base, config)
    with pytest.raises(LongVLMError, match="write it as 5GB"):
        make_delta(tmp_path / "base", tmp_path / "base", tmp_path / "delta", max_shard_size=size)
    assert not (tmp_path / "delta").exists()


def without(weights: Weights, name: str) -> Weights:
    return {other: tensor for other, tensor in weights.items() if other != name}


NARROW = torch.zeros(48, WIDTH - 8, dtype=torch.float16)
LONG = torch.zeros(NUM_WORDS + NUM_NEW + 1, WIDTH, dtype=torch.float16)
WRONG_BASES = {
    "shape": (lambda base: base | {LAYER: NARROW}, LAYER),
    "vocabulary": (lambda base: base | {EMBEDDINGS: LONG}, EMBEDDINGS),
    "width": (lambda base: base | {HEAD: torch.zeros(NUM_WORDS, 8)}, HEAD),
    "missing": (lambda base: without(base, LAYER), f"lacks {LAYER}"),
    "no head": (lambda base: without(base, HEAD), f"lacks {HEAD}"),
    "more": (lambda base: base | {"model.layers.2.mlp.up_proj.weight": NARROW}, r"has model\.layers\.2\.mlp"),
}


@pytest.mark.parametrize("command", [apply_delta, make_delta])
@pytest.mark.parametrize("kind", WRONG_BASES)
def test_a_wrong_base_is_refused_before_anything_is_written(tmp_path: Path, kind: str, command) -> None:  # type: ignore[no-untyped-def]
    base, config = random_llama()
    other, other_config = random_llava(base, config)
    spoil, named = WRONG_BASES[kind]
    save_checkpoint(tmp_path / "base", spoil(base), config, num_shards=2)
    save_checkpoint(tmp_path / "other", other, other_config)
    with pytest.raises(LongVLMError, match=named):
        command(tmp_path / "base", tmp_path / "other", tmp_path / "result")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "other"}


def test_a_base_of_other_words_is_refused(tmp_path: Path) -> None:
    base, config = random_llama()
    delta, delta_config = random_llava(base, config)
    save_checkpoint(tmp_path / "base", base, config, make_words(prefix="mot"))
    save_checkpoint(tmp_path / "delta", delta, delta_config, make_words("<a>", "<b>", "<c>"))
    with pytest.raises(LongVLMError, match=r"row 3 of its model.embed_tokens.weight stands for 'mot0'.*'word0'"):
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_a_hundredth_of_the_words_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Special tokens are written in several ways."""
    for differing, fits in ((10, True), (11, False)):
        words = {
            "base": {row: f"word{row}" for row in range(1000)},
            "delta": {row: f"{'other' if row < differing else 'word'}{row}" for row in range(1000)},
        }
        monkeypatch.setattr(deltas, "_read_words", lambda folder, num_rows, words=words: words[folder.name])
        with nullcontext() if fits else pytest.raises(LongVLMError, match="row 0 of its"):
            deltas._require_same_words(tmp_path / "base", tmp_path / "delta", 1000)


def test_other_settings_of_a_base_that_fits_are_told_in_one_line(tmp_path: Path) -> None:
    """Conversions of one LLaMA differ in them."""
    base, config = random_llama()
    delta, delta_config = random_llava(base, config)
    save_checkpoint(tmp_path / "base", base, {**config, "rms_norm_eps": 1e-5, "rope_theta": 1e6})
    save_checkpoint(tmp_path / "delta", delta, {**delta_config, "rms_norm_eps": 1e-6, "rope_theta": 1e4})
    with pytest.warns(UserWarning, match=r"base has rms_norm_eps=1e-05 where .*delta has 1e-06, rope_theta=1000000.0"):
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "sum")
    summed = read_weights(tmp_path / "sum")
    assert all(torch.equal(summed[name], tensor) for name, tensor in slow_sum(base, delta).items())
    assert (tmp_path / "sum/config.json").read_bytes() == (tmp_path / "delta/config.json").read_bytes()
    told: list[str] = []
    make_delta(tmp_path / "base", tmp_path / "sum", tmp_path / "again", on_warning=told.append)
    assert len(told) == 1 and len(told[0].splitlines()) == 1


def test_a_base_that_does_not_fit_is_refused_whatever_its_settings(tmp_path: Path) -> None:
    base, config = random_llama()
    delta, delta_config = random_llava(base, config)
    save_checkpoint(tmp_path / "base", base | {LAYER: NARROW}, {**config, "rms_norm_eps": 1e-5})
    save_checkpoint(tmp_path / "delta", delta, {**delta_config, "rms_norm_eps": 1e-6})
    with pytest.raises(LongVLMError, match=LAYER):
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "sum", on_warning=pytest.fail)


def test_a_tensor_that_no_base_has_is_refused(tmp_path: Path) -> None:
    base, config = random_llama()
    delta, delta_config = random_llava(base, config)
    save_checkpoint(tmp_path / "base", base, config)
    save_checkpoint(tmp_path / "delta", delta | {"model.extra.weight": torch.ones(2)}, delta_config)
    with pytest.raises(LongVLMError, match=r"lacks model\.extra\.weight"):
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "sum")


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    base, config = random_llama()
    save_checkpoint(tmp_path / "base", base, config)
    save_checkpoint(tmp_path / "target", base | {LAYER: torch.full((48, WIDTH), 1e5)}, config)
    with pytest.raises(LongVLMError, match=rf"{LAYER} .* float16 .*--dtype"):
        make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "target"}


def test_a_full_disk_is_named_whichever_library_finds_it(tmp_path: Path) -> None:
    with (
        pytest.raises(
            LongVLMError, match=r"Can't write .*new \(.*No space left on device.*\); choose a place with room"
        ),
        weight_writing.whole_folder(tmp_path / "new"),
    ):
        raise Exception("No space left on device (os error 28)")  # as tokenizers does
    with pytest.raises(Exception, match="odd"), weight_writing.whole_folder(tmp_path / "new"):
        raise Exception("odd")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    base, config = random_llama()
    delta, delta_config = random_llava(base, config)
    return save_checkpoint(tmp_path / "base", base, config), save_checkpoint(tmp_path / "delta", delta, delta_config)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("No space left on device")])
def test_an_interrupted_run_leaves_nothing(
    two_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    really_save, calls = weight_writing.save_file, []

    def save(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise error
        really_save(*arguments)

    monkeypatch.setattr(weight_writing, "save_file", save)
    expected = LongVLMError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
        apply_delta(*two_folders, tmp_path / "sum", max_shard_size="20KB")
    assert len(calls) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"base", "delta"}


def test_one_shard_is_held_at_a_time(
    two_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_save, earlier, sizes = weight_writing.save_file, [], []

    def save(tensors: Weights, *arguments: object) -> None:
        assert all(reference() is None for reference in earlier), "tensors of the shard before are still held"
        really_save(tensors, *arguments)
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
        earlier.extend(weakref.ref(tensor) for tensor in tensors.values())

    monkeypatch.setattr(weight_writing, "save_file", save)
    fractions: list[float] = []
    apply_delta(
        *two_folders, tmp_path / "sum", max_shard_size="20KB", on_progress=lambda done, _: fractions.append(done)
    )
    assert len(sizes) > 2 and max(sizes) <= 20_000
    assert fractions == sorted(fractions) and fractions[-1] == 1.0


def test_targets_that_can_not_be_written_are_refused(
    two_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LongVLMError, match=r"delta exists already"):
        apply_delta(*two_folders, tmp_path / "delta")
    with pytest.raises(LongVLMError, match=r"config.json is a file"):
        apply_delta(*two_folders, two_folders[0] / "config.json" / "new" / "sum")
    for target in (tmp_path / "sum", tmp_path / "new" / "deeper" / "sum"):
        with pytest.raises(LongVLMError, match="'5 apples'"):
            apply_delta(*two_folders, target, max_shard_size="5 apples")
    with pytest.raises(LongVLMError, match=r"no folder has this name|no model folder"):
        apply_delta(tmp_path / "nobase", two_folders[1], tmp_path / "sum")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(LongVLMError, match=r"has 0\.0 GB left"):
        apply_delta(*two_folders, tmp_path / "sum")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "delta"}


def test_folders_above_the_target_are_made(two_folders: tuple[Path, Path], tmp_path: Path) -> None:
    apply_delta(*two_folders, tmp_path / "new" / "deeper" / "sum")
    assert read_weights(tmp_path / "new" / "deeper" / "sum").keys() == read_weights(two_folders[1]).keys()
    assert [path.name for path in (tmp_path / "new" / "deeper").iterdir()] == ["sum"]


def test_an_empty_folder_may_be_the_target(two_folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "sum").mkdir()
    apply_delta(*two_folders, tmp_path / "sum")
    path = tmp_path / "sum" / "model.safetensors"
    assert path.stat().st_mode == (tmp_path / "sum" / "config.json").stat().st_mode
