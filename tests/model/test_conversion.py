"""Rewritten checkpoints load as the ones they come from, and the reference's projectors lie over their bases."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tiny_llava import (
    EMBEDDINGS,
    HEAD,
    NUM_NEW,
    NUM_WORDS,
    PROJECTOR,
    TOWER_WIDTH,
    VIDEO_TOKENS,
    WIDTH,
    Weights,
    make_words,
    random_llama,
    random_llava,
    read_weights,
    save_checkpoint,
    save_projector,
    save_tower,
)

from longvlm import LongVLM
from longvlm.errors import LongVLMError
from longvlm.model import LongVLMProcessor
from longvlm.model.conversion import consolidate, import_llava
from longvlm.model.llava_config import load_tokenizer
from longvlm.model.weight_files import open_tensors
from longvlm.types import Compression

FLOAT = {"device": "cpu", "dtype": torch.float32}


def assert_same_model(actual: LongVLM, expected: LongVLM) -> None:
    weights = actual.language_model.state_dict(), expected.language_model.state_dict()
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[1].items():
        assert torch.equal(weights[0][name], tensor), name
    assert actual.encoder.fingerprint == expected.encoder.fingerprint
    settings = actual.config.to_dict(), expected.config.to_dict()
    for key in ("compression", "projector_num_layers", "video_token_index", "text_config", "vision_config"):
        assert settings[0][key] == settings[1][key], key
    for name in ("video_token", "video_start_token", "video_end_token", "image_mean", "image_std", "image_size"):
        assert getattr(actual.processor, name) == getattr(expected.processor, name), name
    assert actual.processor.tokenizer.get_vocab() == expected.processor.tokenizer.get_vocab()


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    return save_tower(tmp_path / "tower")


@pytest.fixture
def llava(tmp_path: Path, tower: Path) -> tuple[Path, Weights]:
    """A base of the original layout: NUM_WORDS words and a projector, in three .bin files, and no tower."""
    base, config = random_llama()
    weights, llava_config = random_llava(base, config)
    weights |= {name: weights[name][:NUM_WORDS].clone() for name in (EMBEDDINGS, HEAD)}
    llava_config |= {"vocab_size": NUM_WORDS, "mm_vision_tower": str(tower)}
    folder = save_checkpoint(tmp_path / "llava", weights, llava_config, make_words(), files="bin", num_shards=3)
    return folder, weights


# --- importing ---


@pytest.mark.parametrize("tower_kind", ["clip", "siglip"])
def test_imports_the_layout_of_transformers(make_llava, tmp_path, tower_kind):
    folder, _ = make_llava(tower_kind, max_shard_size="20KB")
    import_llava(folder, tmp_path / "own", max_shard_size="30KB")
    assert json.loads((tmp_path / "own/config.json").read_text())["model_type"] == "longvlm"
    assert len(list((tmp_path / "own").glob("*.safetensors"))) > 1
    expected = LongVLM.from_pretrained(folder, **FLOAT)
    assert_same_model(LongVLM.from_pretrained(tmp_path / "own", **FLOAT), expected)
    assert open_tensors(tmp_path / "own").keys() == open_tensors(folder).keys()


@pytest.mark.parametrize("tie", [False, True])
def test_imports_a_tied_model(make_llava, tmp_path, tie):
    folder, _ = make_llava(tie=tie)
    import_llava(folder, tmp_path / "own")
    own = LongVLM.from_pretrained(tmp_path / "own", **FLOAT)
    assert_same_model(own, LongVLM.from_pretrained(folder, **FLOAT))
    embeddings = own.language_model.get_input_embeddings().weight
    assert (own.language_model.lm_head.weight is embeddings) == tie


def test_imports_the_original_layout_with_another_tower(llava, tower, tmp_path):
    folder, weights = llava
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mm_vision_tower": "./nowhere"}))
    remedy = r"no model folder \./nowhere.* names; if you have it elsewhere, give its folder with --vision-tower"
    with pytest.raises(LongVLMError, match=remedy):
        import_llava(folder, tmp_path / "own")
    import_llava(folder, tmp_path / "own", vision_tower=str(tower))
    own = LongVLM.from_pretrained(tmp_path / "own", **FLOAT)
    assert_same_model(own, LongVLM.from_pretrained(folder, vision_tower=str(tower), **FLOAT))
    stored = read_weights(tmp_path / "own")
    assert torch.equal(stored["language_model.lm_head.weight"], weights[HEAD])
    assert torch.equal(stored["multi_modal_projector.linear_1.weight"], weights[f"{PROJECTOR}weight"])
    assert stored["vision_tower.pre_layrnorm.weight"].dtype == torch.float32, "parts keep the dtypes they are stored in"


@pytest.mark.parametrize("lacking", [f"{PROJECTOR}bias", "model.layers.1.mlp.up_proj.weight", HEAD])
def test_an_incomplete_checkpoint_is_not_imported(tmp_path, tower, lacking):
    base, config = random_llama()
    weights, llava_config = random_llava(base, config)
    del weights[lacking]
    tokens = make_words("<a>", "<b>", "<c>")
    save_checkpoint(tmp_path / "llava", weights, llava_config | {"mm_vision_tower": str(tower)}, tokens)
    with pytest.raises(LongVLMError, match="lacks 1 weight"):
        import_llava(tmp_path / "llava", tmp_path / "own")
    assert {path.name for path in tmp_path.iterdir()} == {"llava", "tower"}


def save_sentencepiece(folder: Path) -> Path:
    """A tokenizer as LLaMA's own folders hold it: tokenizer.model alone; returns that file."""
    text = folder / "text.txt"
    text.write_text("\n".join(f"what happens in video {i}, and who is there?" for i in range(100)))
    SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=80,
        model_type="bpe",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true}')
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder / "tokenizer.model"


@pytest.mark.parametrize("config", [None, {}, {"tokenizer_class": "LLaMATokenizer"}, {"add_bos_token": True}])
def test_a_tokenizer_in_sentencepieces_format_is_read(tmp_path, config):
    model = SentencePieceProcessor(model_file=str(save_sentencepiece(tmp_path)))
    (tmp_path / "tokenizer_config.json").unlink()
    if config is None:
        (tmp_path / "config.json").unlink()
    else:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    for text in ("what is there?", "who happens in video 7"):
        assert load_tokenizer(tmp_path)(text)["input_ids"] == [1, *model.encode(text)]


@pytest.mark.parametrize("model_type", ["llama", "llava", "llava_llama"])
def test_a_tokenizer_in_sentencepieces_format_is_that_of_llavas_training(tmp_path, model_type):
    model = SentencePieceProcessor(model_file=str(save_sentencepiece(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "added_tokens.json").write_text('{"<im_start>": 80, "<im_end>": 81}')
    ids = load_tokenizer(tmp_path)("who<im_start>is there?<im_end>what</s>video", add_special_tokens=False)["input_ids"]
    # As transformers 4.28 had it: each piece between control tokens by itself, with a blank before it.
    parts = [model.encode(piece) for piece in ("who", "is there?", "what", "video")]
    assert ids == [*parts[0], 80, *parts[1], 81, *parts[2], 2, *parts[3]]


def test_a_tokenizer_in_sentencepieces_format_stays_the_same_however_often_it_is_saved(tmp_path):
    (tmp_path / "base").mkdir()
    save_sentencepiece(tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base")
    text = "who is there?</s>what<vid_end>what"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<vid_patch>", "<vid_start>", "<vid_end>"]})
    ids = tokenizer(text)["input_ids"]
    tokenizer.save_pretrained(tmp_path / "alone")
    assert load_tokenizer(tmp_path / "alone")(text)["input_ids"] == ids
    LongVLMProcessor(tokenizer).save_pretrained(tmp_path / "once")
    LongVLMProcessor.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    assert LongVLMProcessor.from_pretrained(tmp_path / "twice").tokenizer(text)["input_ids"] == ids


@pytest.mark.parametrize("content", ["{}", "[]", '{"model": {"type": "OfTomorrow"}}', "no JSON"])
def test_a_tokenizer_file_that_can_not_be_read_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(LongVLMError, match=r"has no readable tokenizer \(.+\); give a complete folder"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_needs_another_library_says_so(tmp_path, monkeypatch):
    save_sentencepiece(tmp_path).write_bytes(b"damaged")
    with pytest.raises(LongVLMError, match="has no readable tokenizer"):
        load_tokenizer(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LongVLMError, match="pip install sentencepiece"):
        load_tokenizer(tmp_path)


# --- the reference's projectors ---


def test_a_projector_brings_its_tokens(llava, tmp_path):
    folder, weights = llava
    laid = save_projector(tmp_path / "mm_projector.bin")
    model = LongVLM.from_pretrained(folder, projector=tmp_path / "mm_projector.bin", **FLOAT)
    tokenizer = model.processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(VIDEO_TOKENS) == [NUM_WORDS, NUM_WORDS + 1, NUM_WORDS + 2]
    assert model.config.video_token_index == NUM_WORDS
    assert [model.processor.video_start_token, model.processor.video_end_token] == VIDEO_TOKENS[1:]
    assert model.compression == Compression(merge_heads=4), "the paper's, but that 16 does not divide 24"

    whole = model.language_model
    assert torch.equal(whole.model.multi_modal_projector.linear_1.weight, laid[f"{PROJECTOR}weight"].half().float())
    assert torch.equal(whole.model.multi_modal_projector.linear_1.bias, laid[f"{PROJECTOR}bias"].half().float())
    assert torch.equal(whole.get_input_embeddings().weight, laid[EMBEDDINGS].half().float())
    head = whole.lm_head.weight
    assert torch.equal(head[:NUM_WORDS], weights[HEAD].float())
    mean = weights[HEAD].float().mean(0).half().float()
    assert torch.equal(head[NUM_WORDS:], mean.expand(NUM_NEW, -1))
    assert whole.config.projector is None

    frames = torch.randint(0, 256, (10, 60, 80, 3), dtype=torch.uint8).numpy()
    index = model.encode(frames, num_frames=10)
    model.ask(index, "word1 word2", max_new_tokens=3)


def test_rows_behind_a_bases_words_make_room_for_a_projectors_tokens(tmp_path, tower):
    base, config = random_llama(rows=NUM_WORDS + 8)
    weights, llava_config = random_llava(base, config)
    weights |= {name: base[name] for name in (EMBEDDINGS, HEAD)}
    llava_config |= {"vocab_size": NUM_WORDS + 8, "mm_vision_tower": str(tower)}
    save_checkpoint(tmp_path / "llava", weights, llava_config, make_words())
    laid = save_projector(tmp_path / "mm_projector.bin")
    model = LongVLM.from_pretrained(tmp_path / "llava", projector=tmp_path / "mm_projector.bin", **FLOAT)
    whole, known = model.language_model, weights[HEAD][:NUM_WORDS].half().float()
    assert torch.equal(whole.get_input_embeddings().weight, laid[EMBEDDINGS].half().float())
    assert torch.equal(whole.lm_head.weight[:NUM_WORDS], known)
    mean = weights[HEAD][:NUM_WORDS].half().float().mean(0).half().float()
    assert torch.equal(whole.lm_head.weight[NUM_WORDS:], mean.expand(NUM_NEW, -1))


def test_a_projector_without_new_rows_leaves_the_tokens(llava, tmp_path):
    folder, weights = llava
    for rows in (None, NUM_WORDS):
        laid = save_projector(tmp_path / "mm_projector.bin", rows=rows)
        model = LongVLM.from_pretrained(folder, projector=str(tmp_path), **FLOAT)
        assert model.processor.video_start_token is None
        assert model.compression.merge_order == "temporal"
        expected = laid.get(EMBEDDINGS, weights[EMBEDDINGS]).half().float()
        assert torch.equal(model.language_model.get_input_embeddings().weight, expected)
        assert torch.equal(model.language_model.lm_head.weight, weights[HEAD].float())


def test_a_projector_replaces_one_of_two_layers(make_llava, tmp_path):
    folder, llava = make_llava()
    laid = save_projector(tmp_path / "mm_projector.bin", rows=None)
    model = LongVLM.from_pretrained(folder, projector=tmp_path / "mm_projector.bin", **FLOAT)
    projector = model.language_model.model.multi_modal_projector
    assert projector.num_layers == 1
    assert torch.equal(projector.linear_1.weight, laid[f"{PROJECTOR}weight"].float())
    assert torch.equal(model.language_model.lm_head.weight, llava.lm_head.weight)


def test_a_projector_over_a_tied_base(tmp_path, tower):
    base, config = random_llama(tie=True)
    weights, llava_config = random_llava(base, config, tie=True)
    weights[EMBEDDINGS] = weights[EMBEDDINGS][:NUM_WORDS].clone()
    llava_config |= {"vocab_size": NUM_WORDS, "mm_vision_tower": str(tower)}
    save_checkpoint(tmp_path / "llava", weights, llava_config, make_words())
    laid = save_projector(tmp_path / "mm_projector.bin")
    model = LongVLM.from_pretrained(tmp_path / "llava", projector=tmp_path / "mm_projector.bin", **FLOAT)
    assert torch.equal(model.language_model.lm_head.weight, laid[EMBEDDINGS].half().float())


def test_a_projector_is_merged_for_good(llava, tmp_path):
    folder, _ = llava
    save_projector(tmp_path / "mm_projector.bin")
    laid = LongVLM.from_pretrained(folder, projector=tmp_path / "mm_projector.bin", **FLOAT)
    consolidate(folder, tmp_path / "merged", projector=tmp_path / "mm_projector.bin", max_shard_size="30KB")
    stored = read_weights(tmp_path / "merged")
    assert stored[HEAD].shape == stored[EMBEDDINGS].shape == (NUM_WORDS + NUM_NEW, WIDTH)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    import_llava(tmp_path / "merged", tmp_path / "own")
    import_llava(folder, tmp_path / "own at once", projector=tmp_path / "mm_projector.bin")
    for name in ("merged", "own", "own at once"):
        assert_same_model(LongVLM.from_pretrained(tmp_path / name, **FLOAT), laid)
    config = json.loads((tmp_path / "own at once" / "config.json").read_text())
    assert (config["projector"], config["vision_tower"]) == (None, None)


def test_projectors_that_do_not_fit_are_refused(llava, tmp_path):
    folder, _ = llava
    path = tmp_path / "mm_projector.bin"

    def refused(match: str) -> None:
        for use in (LongVLM.from_pretrained, lambda *a, **k: consolidate(a[0], tmp_path / "merged", **k)):
            with pytest.raises(LongVLMError, match=match):
                use(folder, projector=path)
        assert not (tmp_path / "merged").exists()

    refused("no projector file")
    save_projector(path, rows=NUM_WORDS + 1)
    refused(rf"embeddings of {NUM_WORDS + 1} tokens, but the base has {NUM_WORDS}")
    save_projector(path, rows=NUM_WORDS - 1)
    refused(rf"embeddings of {NUM_WORDS - 1} tokens")
    weight, bias = f"{PROJECTOR}weight", f"{PROJECTOR}bias"
    torch.save({weight: torch.zeros(WIDTH, 7), bias: torch.zeros(WIDTH)}, path)
    refused(rf"shape \({WIDTH}, 7\), but .* \({WIDTH}, {TOWER_WIDTH}\)")
    torch.save({weight: torch.zeros(WIDTH, TOWER_WIDTH)}, path)
    refused(rf"lacks {bias}")
    torch.save({weight: torch.zeros(WIDTH, TOWER_WIDTH), bias: torch.zeros(WIDTH), EMBEDDINGS: torch.ones(43, 8)}, path)
    refused(r"\(43, 8\)")
    torch.save({"state": [1, 2]}, path)
    refused("other things than named tensors")
    for content in (b"nothing of the kind", b"error code: 502"):  # the latter breaks torch's reader in a way of its own
        path.write_bytes(content)
        refused("can't be read")


# --- consolidating ---


@pytest.mark.parametrize("max_shard_size", ["20KB", "5GB"])
def test_consolidating_keeps_every_tensor(llava, tmp_path, max_shard_size):
    folder, weights = llava
    consolidate(folder, tmp_path / "whole", max_shard_size=max_shard_size)
    stored = read_weights(tmp_path / "whole")
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in weights.items())
    files = list((tmp_path / "whole").glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_size == "20KB")
    assert (tmp_path / "whole/config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert not any((tmp_path / "whole").glob("*.bin*"))


def test_the_folder_one_is_in_is_no_target(llava, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LongVLMError, match="is the folder you are in; give the name of a new one"):
        consolidate(llava[0], Path())


def test_what_can_not_be_consolidated(llava, make_llava, tmp_path):
    folder, _ = llava
    (tmp_path / "alone").mkdir()
    save_projector(tmp_path / "alone" / "mm_projector.bin")
    with pytest.raises(LongVLMError, match="holds a projector alone; give its base"):
        consolidate(tmp_path / "alone", tmp_path / "whole")
    with pytest.raises(LongVLMError, match="import-llava"):
        consolidate(make_llava()[0], tmp_path / "whole", projector=tmp_path / "alone")
    shard = next(folder.glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2000])
    with pytest.raises(LongVLMError, match=rf"{shard.name} can't be read"):
        consolidate(folder, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_projector_of_two_layers_is_merged_for_good(llava, tmp_path):
    folder, _ = llava
    path = tmp_path / "mm_projector.bin"
    shapes = {"0.weight": (WIDTH, TOWER_WIDTH), "0.bias": (WIDTH,), "2.weight": (WIDTH, WIDTH), "2.bias": (WIDTH,)}
    torch.save({f"{PROJECTOR}{name}": torch.randn(shape) for name, shape in shapes.items()}, path)
    consolidate(folder, tmp_path / "merged", projector=path)
    laid = LongVLM.from_pretrained(folder, projector=path, **FLOAT)
    assert_same_model(LongVLM.from_pretrained(tmp_path / "merged", **FLOAT), laid)
