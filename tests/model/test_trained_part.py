import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import save_tiny_checkpoint
from tiny_part import save_part

from longvlm.errors import LongVLMError
from longvlm.model.checkpoints import load_config
from longvlm.model.trained_part import FILE_NAME, Base, base_of, digest_checkpoint
from longvlm.model.weight_files import read_tensors
from longvlm.pipeline import LongVLM

LAYER = "model.language_model.layers.1.mlp.up_proj"
BIAS = "model.multi_modal_projector.linear_1.bias"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "base")


def open_model(folder: Path) -> LongVLM:
    return LongVLM.from_pretrained(folder, device="cpu", dtype="float32")


def assert_same_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_it_is_laid_over_its_base(base: Path, tmp_path: Path) -> None:
    a, b, bias = torch.randn(3, 32), torch.randn(64, 3), torch.randn(32)
    size = load_config(base).text_config.vocab_size
    rows, head = torch.randn(2, 32), torch.randn(2, 32)
    folder = save_part(
        tmp_path / "part",
        base,
        size + 1,
        weights={BIAS: bias},
        token_ids=(4, size),
        input_rows=rows,
        output_rows=head,
        low_rank={LAYER: (a, b)},
        low_rank_scale=0.5,
    )
    changed, plain = (dict(open_model(path).language_model.named_parameters()) for path in (folder, base))
    assert torch.equal(changed[BIAS], bias)
    torch.testing.assert_close(changed[f"{LAYER}.weight"], plain[f"{LAYER}.weight"] + 0.5 * b @ a)
    for name, own in (("model.language_model.embed_tokens.weight", rows), ("lm_head.weight", head)):
        assert torch.equal(changed[name][[4, size]], own)
        others = [i for i in range(size) if i != 4]
        assert torch.equal(changed[name][others], plain[name][others])


def test_a_part_can_be_a_base(base: Path, tmp_path: Path) -> None:
    first = save_part(tmp_path / "first", base, weights={BIAS: torch.ones(32)})
    second = save_part(tmp_path / "second", first, low_rank={LAYER: (torch.ones(1, 32), torch.ones(64, 1))})
    weights = dict(open_model(second).language_model.named_parameters())
    assert torch.equal(weights[BIAS], torch.ones(32))
    before = dict(open_model(base).language_model.named_parameters())[f"{LAYER}.weight"]
    torch.testing.assert_close(weights[f"{LAYER}.weight"], before + 1)


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    folder = save_part(tmp_path / "part", base, weights={BIAS: torch.ones(32)})
    assert base_of(folder) == Base(str(base), digest_checkpoint(base))
    assert base_of(base) is None
    save_tiny_checkpoint(base, seed=1)
    with pytest.raises(LongVLMError, match=r"was trained on a base with digest .* but .*base has"):
        _ = open_model(folder).language_model


def test_the_encoder_alone_is_laid_over_the_same_base_only(base: Path, tmp_path: Path) -> None:
    folder = save_part(tmp_path / "part", base, weights={BIAS: torch.ones(32)})
    save_tiny_checkpoint(base, seed=1)
    with pytest.raises(LongVLMError, match=r"was trained on a base with digest"):
        _ = open_model(folder).encoder


def test_a_part_that_lies_where_its_base_was_is_refused(base: Path, tmp_path: Path) -> None:
    folder = save_part(tmp_path / "part", base, weights={BIAS: torch.ones(32)})
    shutil.rmtree(base)
    folder.rename(base)
    for read in ("encoder", "language_model"):
        with pytest.raises(LongVLMError, match=r"trained on what lay in .*base, which is gone"):
            getattr(open_model(base), read)


def test_a_missing_base_is_named(base: Path, tmp_path: Path) -> None:
    folder = save_part(tmp_path / "part", base, weights={BIAS: torch.ones(32)})
    base.rename(tmp_path / "moved")
    alone = r"part holds the trained part of a model alone, and its base can't be had: .* give it with --base"
    with pytest.raises(LongVLMError, match=alone):
        _ = open_model(folder).language_model


def test_a_base_that_has_moved_is_taken_from_where_it_is_said_to_be(base: Path, tmp_path: Path) -> None:
    folder = save_part(tmp_path / "part", base, weights={BIAS: torch.ones(32)})
    expected = open_model(folder)
    weights, fingerprint = expected.language_model.state_dict(), expected.encoder.fingerprint
    base.rename(tmp_path / "moved")
    model = LongVLM.from_pretrained(folder, base=tmp_path / "moved", device="cpu", dtype="float32")
    assert model.encoder.fingerprint == fingerprint
    assert_same_weights(model.language_model.state_dict(), weights)
    assert model.language_model.config.base is None

    other = save_tiny_checkpoint(tmp_path / "other", seed=1)
    wrong = LongVLM.from_pretrained(folder, base=str(other), device="cpu", dtype="float32")
    for read in ("encoder", "language_model"):
        with pytest.raises(LongVLMError, match=r"was trained on a base with digest .*give it with --base"):
            getattr(wrong, read)
    with pytest.raises(LongVLMError, match=r"other holds no trained part of a model; leave its base .*moved out"):
        LongVLM.from_pretrained(other, base=tmp_path / "moved")


def test_new_rows_that_a_part_lacks_are_the_mean_of_the_others(base: Path, tmp_path: Path) -> None:
    size = load_config(base).text_config.vocab_size
    folder = save_part(tmp_path / "part", base, size + 2, weights={BIAS: torch.ones(32)})
    model = open_model(folder).language_model
    for table in (model.get_input_embeddings().weight, model.lm_head.weight):
        assert torch.equal(table[size:], table[:size].mean(0).expand(2, -1))


def test_a_weight_that_does_not_fit_is_named(base: Path, tmp_path: Path) -> None:
    folder = save_part(tmp_path / "part", base, weights={BIAS: torch.ones(31)})
    with pytest.raises(LongVLMError, match=r"has model.multi_modal_projector.linear_1.bias of shape \(31,\), its base"):
        _ = open_model(folder).language_model


def test_a_damaged_file_is_named(base: Path, tmp_path: Path) -> None:
    folder = save_part(tmp_path / "part", base, weights={BIAS: torch.ones(32)})
    (folder / FILE_NAME).write_bytes(b"{}")
    with pytest.raises(LongVLMError, match=r"trained_part.safetensors can't be read"):
        _ = open_model(folder).language_model


def test_a_digest_is_that_of_the_weights(base: Path, tmp_path: Path) -> None:
    assert digest_checkpoint(base) == digest_checkpoint(save_tiny_checkpoint(tmp_path / "same"))
    assert digest_checkpoint(base) != digest_checkpoint(save_tiny_checkpoint(tmp_path / "other", seed=1))


def test_a_digest_does_not_depend_on_how_weights_are_divided_into_files(base: Path, tmp_path: Path) -> None:
    whole = load_file(base / "model.safetensors")
    names = sorted(whole)
    (tmp_path / "sharded").mkdir()
    shards = {f"model-{n}.safetensors": names[n::2] for n in range(2)}
    for file, held in shards.items():
        save_file({name: whole[name] for name in held}, tmp_path / "sharded" / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert digest_checkpoint(tmp_path / "sharded") == digest_checkpoint(base)


def test_a_base_of_the_oldest_kind_of_file(base: Path, tmp_path: Path) -> None:
    """Written before torch 1.6, which is no zip archive and can't be mapped into memory."""
    weights = load_file(base / "model.safetensors")
    old = shutil.copytree(base, tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(weights, old / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert digest_checkpoint(old) == digest_checkpoint(base)
    read = read_tensors(old / "pytorch_model.bin", list(weights))
    assert read.keys() == weights.keys() and all(torch.equal(read[name], weights[name]) for name in weights)


def test_low_rank_beside_weights_that_are_too_coarse() -> None:
    """Of weights in 4 bits; here integers stand for them, since those need CUDA."""
    from longvlm.model.trained_part import _add_low_rank

    linear = torch.nn.Linear(4, 3, bias=False)
    linear.weight = torch.nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)
    linear.forward = lambda x: x @ torch.ones(4, 3)  # type: ignore[method-assign]
    a, b, x = torch.randn(2, 4), torch.randn(3, 2), torch.randn(5, 4)
    _add_low_rank(linear, a, b, 0.5)
    torch.testing.assert_close(linear(x), x @ torch.ones(4, 3) + 0.5 * x @ a.T @ b.T)


def test_towers_of_all_parts_are_laid_over_one_another(base: Path, tmp_path: Path) -> None:
    plain = dict(open_model(base).language_model.named_parameters())
    tower = [name for name in plain if name.startswith("model.vision_tower") and name.endswith(".bias")]
    first = save_part(tmp_path / "first", base, weights={n: torch.ones_like(plain[n]) for n in tower[:2]})
    second = save_part(tmp_path / "second", first, weights={tower[1]: torch.full_like(plain[tower[1]], 2.0)})
    model = open_model(second)
    encoder, whole = dict(model.encoder.tower.named_parameters()), dict(model.language_model.named_parameters())
    for name, value in ((tower[0], 1.0), (tower[1], 2.0)):
        inside = name.removeprefix("model.vision_tower.")
        assert torch.equal(encoder[inside], torch.full_like(plain[name], value))
        assert torch.equal(whole[name], torch.full_like(plain[name], value))
    deeper = tower[0].replace("model.vision_tower.", "model.vision_tower.deeper.")
    third = save_part(tmp_path / "third", base, weights={deeper: torch.ones_like(plain[tower[0]])})
    with pytest.raises(LongVLMError, match=r"The trained part has deeper\..*, its base nothing; they don't fit"):
        _ = open_model(third).encoder


def test_a_damaged_base_is_named(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LongVLMError, match=r"model.safetensors can't be read"):
        digest_checkpoint(base)
    path.unlink()
    (base / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(LongVLMError, match=r"index.json has no weight_map; download the checkpoint again"):
        digest_checkpoint(base)
