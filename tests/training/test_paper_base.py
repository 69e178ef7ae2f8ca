"""The paper's recipe on a tiny checkpoint of the layout that the paper starts from: LLaMA and a projector."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_run import make_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longvlm.index.extraction import FeatureFolders, extract
from longvlm.index.extractor import extractor_of_tower
from longvlm.index.reference_features import ImportSettings, import_reference_features
from longvlm.index.video_folders import ListedVideo
from longvlm.model.trained_part import TrainedPart
from longvlm.pipeline import LongVLM
from longvlm.training.finetune import train
from longvlm.training.recipe import load_recipe
from longvlm.types import Sampling

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder, tower = tmp_path / "LLaVA-7B", tmp_path / "clip"
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**SIZES, image_size=56, patch_size=14)).save_pretrained(tower)
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_center_crop": True}
    (tower / "preprocessor_config.json").write_text(json.dumps(settings))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(**SIZES, vocab_size=len(tokenizer), max_position_embeddings=2048, initializer_range=0.3)
    weights = LlamaForCausalLM(config).state_dict()
    weights |= {"model.mm_projector.weight": torch.randn(32, 32), "model.mm_projector.bias": torch.randn(32)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    llava = {"model_type": "llava", "mm_vision_tower": str(tower), "mm_vision_select_layer": -2}
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), **llava}))
    return folder


def extract_videos(tower: Path, folder: Path) -> None:
    """Features of v0 … v5 as `longvlm extract --vision-tower` makes them."""
    for number in range(6):
        frames = np.random.RandomState(number).randint(0, 256, (20, 56, 56, 3), dtype=np.uint8)
        (folder / f"v{number}").mkdir()
        for place, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"v{number}" / f"{place}.png")
    made = extractor_of_tower(str(tower), Sampling(num_frames=20), device="cpu", dtype="float32")
    videos = [ListedVideo(f"v{number}", str(folder / f"v{number}")) for number in range(6)]
    assert extract(videos, made, FeatureFolders(folder / "features")).num_written == 6


def test_the_paper_recipe_trains_projector_and_new_rows(base: Path, tmp_path: Path) -> None:
    start = LongVLM.from_pretrained(base, device="cpu", dtype="float32")
    extract_videos(base.parent / "clip", tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(make_rows()))
    changes = [f"output={tmp_path / 'run'}", f"model.base={base}"]
    changes += [f"data.0.instructions={tmp_path / 'train.json'}", f"data.0.features={tmp_path / 'features'}"]
    changes += ["model.num_frames=20", "machine.device=cpu", "machine.workers=0", "schedule.batch_size=4"]
    folder = train(load_recipe("paper.yaml", changes), say=lambda text: None)

    part = TrainedPart.load(folder)
    assert set(part.weights) == {f"model.multi_modal_projector.linear_1.{n}" for n in ("weight", "bias")}
    known = start.config.text_config.vocab_size
    assert part.token_ids == (known, known + 1, known + 2)  # <vid_patch>, <vid_start>, <vid_end>
    trained = LongVLM.from_pretrained(folder, device="cpu", dtype="float32")
    tokenizer = trained.processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<vid_patch>", "<vid_start>", "<vid_end>"]) == list(part.token_ids)
    assert trained.config.video_token_index == known
    before, after = start.language_model, trained.language_model
    assert torch.equal(before.lm_head.weight, after.lm_head.weight[:known])
    table = after.get_input_embeddings().weight
    assert torch.equal(before.get_input_embeddings().weight, table[:known])
    assert not torch.equal(table[known + 1], table[known + 2])  # both started from the mean of the others
    prompt = trained.processor.prompt([{"role": "user", "content": [{"type": "video"}]}], num_segments=10)
    assert prompt.count("<vid_patch>") == 305
    assert prompt.startswith("A chat between a curious user")
    assert trained.encoder.fingerprint == start.encoder.fingerprint
    trained.ask(tmp_path / "features" / "v0.longvlm", "What is it?", max_new_tokens=3)


@pytest.mark.parametrize(
    ("tokens_per_segment", "changes"), [(30, []), (20, ["model.compression.tokens_per_segment=20"])]
)
def test_it_trains_on_the_references_pickles(
    base: Path, tmp_path: Path, tokens_per_segment: int, changes: list[str]
) -> None:
    """300 rows a video as the paper's training expects them, and 200 as the reference's extraction writes them."""
    local, memory = tmp_path / "local", tmp_path / "memory"
    for folder, num_rows in ((local, 10 * tokens_per_segment), (memory, 5)):
        folder.mkdir()
        for number in range(6):
            rows = np.random.RandomState(number).randn(num_rows, 32).astype(np.float16)
            (folder / f"v{number}.pkl").write_bytes(pickle.dumps(rows))
    made = extractor_of_tower(str(base.parent / "clip"), Sampling(num_frames=100), device="cpu", dtype="float32")
    compression = replace(made.compression, tokens_per_segment=tokens_per_segment, merge_schedule=None)
    settings = ImportSettings(compression, 10, made.encoder, None)
    assert list(import_reference_features(local, memory, tmp_path / "features", settings))[-1] == (6, 6)
    (tmp_path / "train.json").write_text(json.dumps(make_rows()))
    own = [f"output={tmp_path / 'run'}", f"model.base={base}", "schedule.max_steps=1", "schedule.batch_size=2"]
    own += [f"data.0.instructions={tmp_path / 'train.json'}", f"data.0.features={tmp_path / 'features'}"]
    own += ["machine.device=cpu", "machine.workers=0", *changes]
    folder = train(load_recipe("paper.yaml", own), say=lambda text: None)
    trained = LongVLM.from_pretrained(folder, device="cpu", dtype="float32")
    assert trained.compression.tokens_per_segment == tokens_per_segment
    trained.ask(tmp_path / "features" / "v0.longvlm", "What is it?", max_new_tokens=3)


def test_a_tower_given_in_the_recipe_is_all_that_is_needed_to_open_the_result(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's config names a tower on the hub, which can't be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "nobody/no-such-clip"}))
    extract_videos(base.parent / "clip", tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(make_rows()))
    changes = [f"output={tmp_path / 'run'}", f"model.base={base}", f"model.vision_tower={base.parent / 'clip'}"]
    changes += [f"data.0.instructions={tmp_path / 'train.json'}", f"data.0.features={tmp_path / 'features'}"]
    changes += ["model.num_frames=20", "machine.device=cpu", "machine.workers=0", "schedule.max_steps=1"]
    folder = train(load_recipe("paper.yaml", changes), say=lambda text: None)
    trained = LongVLM.from_pretrained(folder, device="cpu", dtype="float32")
    trained.ask(tmp_path / "features" / "v0.longvlm", "What is it?", max_new_tokens=3)


@pytest.mark.parametrize(
    ("recipe", "changes", "norms_learn"),
    [("paper-lora.yaml", [], False), ("full.yaml", ["machine.fsdp=false"], True)],
)
def test_the_other_recipes_train_on_the_papers_base(
    base: Path, tmp_path: Path, recipe: str, changes: list[str], norms_learn: bool
) -> None:
    start = LongVLM.from_pretrained(base, device="cpu", dtype="float32")
    extract_videos(base.parent / "clip", tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(make_rows()))
    own = [f"output={tmp_path / 'run'}", f"model.base={base}", "model.num_frames=20", "schedule.epochs=3"]
    own += [f"data.0.instructions={tmp_path / 'train.json'}", f"data.0.features={tmp_path / 'features'}"]
    own += ["machine.device=cpu", "machine.workers=0", "schedule.batch_size=4", "held_out_share=0.3", *changes]
    folder = train(load_recipe(recipe, own), say=lambda text: None)

    trained = LongVLM.from_pretrained(folder, device="cpu", dtype="float32")
    before, after = start.language_model.state_dict(), trained.language_model.state_dict()
    own = [name for name in before if "language_model.layers" in name]
    products, norms = [name for name in own if "q_proj" in name], [name for name in own if "norm" in name]
    assert len(products) == 5 and not any(torch.equal(before[name], after[name]) for name in products)
    assert len(norms) == 10 and {torch.equal(before[name], after[name]) for name in norms} == {not norms_learn}
    trained.ask(tmp_path / "features" / "v0.longvlm", "What is it?", max_new_tokens=3)
