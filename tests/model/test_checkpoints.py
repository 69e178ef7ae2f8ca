"""LLaVA checkpoints read as long-video models: the same numbers, from every layout, and clear refusals."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import save_tiny_checkpoint
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.quantizers.quantizers_utils import should_convert_module

from longvlm import LongVLM
from longvlm.errors import LongVLMError
from longvlm.model.checkpoints import (
    NOT_QUANTISED,
    load_config,
    load_encoder,
    load_model,
    load_processor,
    resolve_model,
)
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.conversion import import_llava
from longvlm.model.layouts import REFUSED_FAMILIES
from longvlm.model.llava_config import read_image_settings
from longvlm.model.placement import choose_device
from longvlm.stages.merging import merge_segments
from longvlm.types import Compression, Frames

TOWER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
PREPROCESSOR = '{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}'
FLOAT = {"device": "cpu", "dtype": torch.float32}


def uncompressed(config: LongVLMConfig, num_patches: int) -> LongVLMConfig:
    """One frame a segment and every patch kept: what a LLaVA model does with a picture."""
    config.compression |= {"frames_per_segment": 1, "tokens_per_segment": num_patches}
    return config


def picture_inputs(config: LongVLMConfig, num_patches: int) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[1, 6, *[config.video_token_index] * num_patches, 12, 13, 7]])
    return ids, pixels


PARITY_CASES = [
    ("clip", {}, 16),
    ("clip", {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}, 17),
    ("clip", {"vision_feature_layer": [-3, -2]}, 16),
    ("siglip", {}, 16),
    ("siglip", {"vision_feature_select_strategy": "default"}, 15),
    ("siglip", {"vision_feature_layer": [0, -1]}, 16),
]


@pytest.mark.parametrize(("tower", "settings", "num_patches"), PARITY_CASES)
def test_logits_equal_llava_for_one_uncompressed_frame(make_llava, tower, settings, num_patches):
    folder, llava = make_llava(tower, **settings)
    config = uncompressed(load_config(folder), num_patches)
    ids, pixels = picture_inputs(config, num_patches)
    model = load_model(folder, config, **FLOAT)
    with torch.no_grad():
        expected = llava(input_ids=ids, pixel_values=pixels, labels=ids)
        actual = model(input_ids=ids, pixel_values_videos=pixels[None], labels=ids)
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(actual.loss, expected.loss, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tie", [False, True])
def test_generates_what_llava_generates(make_llava, tie):
    folder, llava = make_llava(tie=tie, max_shard_size="20KB")
    config = uncompressed(load_config(folder), 16)
    ids, pixels = picture_inputs(config, 16)
    model = load_model(folder, config, **FLOAT)
    assert config.tie_word_embeddings == tie
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tie
    for how in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}):
        expected = llava.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=8, **how)
        actual = model.generate(input_ids=ids, pixel_values_videos=pixels[None], max_new_tokens=8, **how)
        assert actual.tolist() == expected.tolist()


def rename_weights(folder: Path, rename: dict[str, str]) -> None:
    """Rewrite a checkpoint's file with other prefixes."""
    path = folder / "model.safetensors"
    renamed = {}
    for name, tensor in load_file(path).items():
        prefix = max((p for p in rename if name.startswith(p)), key=len, default="")
        renamed[rename.get(prefix, "") + name.removeprefix(prefix)] = tensor
    save_file(renamed, path, {"format": "pt"})


ON_DISK_LAYOUTS = {
    "older hub files": {
        "vision_tower.": "vision_tower.vision_model.",
        "vision_tower.vision_model.": "vision_tower.vision_model.",
    },
    "as in memory": {
        "vision_tower.": "model.vision_tower.",
        "vision_tower.vision_model.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
    },
}


@pytest.mark.parametrize("layout", ON_DISK_LAYOUTS)
def test_reads_every_layout_of_names(make_llava, layout):
    folder, llava = make_llava()
    rename_weights(folder, ON_DISK_LAYOUTS[layout])
    config = load_config(folder)
    model = load_model(folder, config, **FLOAT)
    assert_same_weights(model, llava)
    encoder = load_encoder(folder, config, compression=config.compression_settings, **FLOAT)
    assert_same_weights(encoder.tower, llava.model.vision_tower)
    model.save_pretrained(folder / "again")
    again = load_model(folder / "again", load_config(folder / "again"), **FLOAT)
    assert_same_weights(again, llava)


def assert_same_weights(actual: torch.nn.Module, expected: torch.nn.Module) -> None:
    actual_weights, expected_weights = actual.state_dict(), expected.state_dict()
    assert actual_weights.keys() == expected_weights.keys()
    for name, weight in expected_weights.items():
        assert torch.equal(actual_weights[name], weight), name


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_llava_settings_follow_the_checkpoint(make_llava, tower):
    folder, _ = make_llava(tower)
    config = load_config(folder)
    assert config.compression_settings == Compression(
        frames_per_segment=10,
        tokens_per_segment=30,
        global_layers=0,
        merge_heads=4,  # 16 does not divide a width of 24
        merge_order="temporal",
        fit="crop" if tower == "clip" else "squash",
    )
    processor = load_processor(folder, config)
    assert (processor.video_token, processor.video_start_token) == ("<image>", None)
    assert (processor.image_mean, processor.image_std) == ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    question = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what happens?"}]}]
    assert processor.prompt(question, num_segments=2) == "USER: " + "<image>" * 60 + "\nwhat happens? ASSISTANT:"


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "processor_config.json"])
def test_a_processors_template_is_found_wherever_it_is_kept(make_llava, place):
    folder, _ = make_llava()
    written = folder / "chat_template.json"
    template = "Answer briefly. " + json.loads(written.read_text())["chat_template"]
    written.unlink()
    if place.endswith(".jinja"):
        (folder / place).write_text(template)
    else:
        kept = json.loads((folder / place).read_text()) if (folder / place).is_file() else {}
        (folder / place).write_text(json.dumps({**kept, "chat_template": template}))
    question = [{"role": "user", "content": [{"type": "text", "text": "what happens?"}]}]
    assert (
        load_processor(folder, load_config(folder)).prompt(question).startswith("Answer briefly. USER: what happens?")
    )


@pytest.mark.parametrize(
    ("settings", "fit"),
    [({"do_pad": True, "do_center_crop": True}, "pad"), ({"do_center_crop": True}, "crop"), ({}, "squash")],
)
def test_how_pictures_are_fitted_is_read_from_the_checkpoint(tmp_path, settings, fit):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.2] * 3, **settings})
    )
    assert read_image_settings(tmp_path).fit == fit


def test_encoder_and_model_see_a_video_alike(make_llava):
    folder, _ = make_llava()
    config = load_config(folder)
    config.compression |= {"frames_per_segment": 2, "tokens_per_segment": 5, "global_layers": 2}
    encoder = load_encoder(folder, config, compression=config.compression_settings, **FLOAT)
    model, processor = load_model(folder, config, **FLOAT), load_processor(folder, config)
    pixels = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    features = encoder(Frames(pixels, (0.0, 1.0), 2))
    with torch.no_grad():
        tokens = model.model.get_video_features(processor.normalise(pixels)[None])[0]
    assert torch.equal(tokens[:2], features.layer_globals.mean(0))
    merged = merge_segments(features.patches.flatten(0, 1)[None], config.compression_settings)
    assert torch.equal(tokens[2:], merged.features[0])


def test_encoder_reads_nothing_but_the_tower(make_llava):
    folder, llava = make_llava(max_shard_size="20KB")
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    of_tower = {file for name, file in weight_map.items() if name.startswith("vision_tower.")}
    for file in set(weight_map.values()) - of_tower:
        (folder / file).unlink()
    config = load_config(folder)
    encoder = load_encoder(folder, config, compression=config.compression_settings, **FLOAT)
    assert_same_weights(encoder.tower, llava.model.vision_tower)
    for file in of_tower:
        (folder / file).unlink()
    with pytest.raises(LongVLMError, match="lacks the file"):
        load_encoder(folder, config, compression=config.compression_settings, **FLOAT)


@pytest.fixture
def tower_folder(tmp_path: Path) -> tuple[Path, CLIPVisionModel]:
    torch.manual_seed(5)
    sizes = {
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 42,
        "patch_size": 14,
    }
    tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=24, **sizes)).eval()
    tower.save_pretrained(tmp_path / "tower")
    preprocessor = {"image_mean": [0.1, 0.1, 0.1], "image_std": [0.3, 0.3, 0.3], "do_center_crop": True}
    (tmp_path / "tower" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return tmp_path / "tower", tower


@pytest.mark.parametrize("wrong", [0.5, [0.5], ["a", "b", "c"], [0.5, 0.5, float("nan")]], ids=str)
def test_means_that_are_no_three_numbers_are_refused(make_llava, wrong):
    folder, _ = make_llava()
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": wrong, "image_std": [1, 1, 1]}))
    with pytest.raises(LongVLMError, match=r"image_mean is .*three numbers"):
        load_processor(folder, load_config(folder))


def test_another_vision_tower_replaces_the_checkpoints_own(make_llava, tower_folder, tmp_path):
    folder, _ = make_llava()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    other, tower = tower_folder
    config = load_config(folder, vision_tower=str(other))
    encoder = load_encoder(folder, config, compression=config.compression_settings, **FLOAT)
    assert (encoder.image_size, encoder.patches_per_frame) == (42, 9)
    assert load_processor(folder, config).image_mean == [0.1, 0.1, 0.1]
    model = load_model(folder, config, **FLOAT)
    assert_same_weights(encoder.tower, tower)
    assert_same_weights(model.model.vision_tower, tower)
    assert model.generation_config.eos_token_id == [2, 7]
    model.save_pretrained(tmp_path / "whole")
    load_processor(folder, config).save_pretrained(tmp_path / "whole")
    assert_same_weights(load_model(tmp_path / "whole", load_config(tmp_path / "whole"), **FLOAT), model)


def test_another_vision_tower_for_a_longvlm_checkpoint(make_llava, tower_folder, tmp_path):
    other, _ = tower_folder
    own, again = tmp_path / "own", tmp_path / "again"
    import_llava(make_llava()[0], own)
    config = load_config(own, vision_tower=str(other))
    processor = load_processor(own, config)
    assert (processor.image_mean, processor.image_size) == ([0.1, 0.1, 0.1], 42)
    expected = load_encoder(own, config, compression=config.compression_settings, **FLOAT)
    import_llava(own, again, vision_tower=str(other))
    config = load_config(again)
    assert load_encoder(again, config, compression=config.compression_settings, **FLOAT).fingerprint == (
        expected.fingerprint
    ), "a fingerprint holds mean and deviation, too"


TOWER_SOURCES = {
    "a CLIP pair": CLIPModel(CLIPConfig(vision_config=TOWER, text_config=TOWER | {"vocab_size": 9})),
    "a SigLIP pair": SiglipModel(SiglipConfig(vision_config=TOWER, text_config=TOWER | {"vocab_size": 9})),
    "a SigLIP tower": SiglipVisionModel(SiglipVisionConfig(**TOWER)),
    "a DINOv2 tower": Dinov2Model(Dinov2Config(**TOWER)),
}


@pytest.mark.parametrize("source", TOWER_SOURCES)
def test_vision_towers_come_from_many_kinds_of_folders(make_llava, tmp_path, source):
    saved, (folder, _) = TOWER_SOURCES[source], make_llava()
    saved.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "preprocessor_config.json").write_text(PREPROCESSOR)
    config = load_config(folder, vision_tower=str(tmp_path / "source"))
    encoder = load_encoder(folder, config, compression=config.compression_settings, **FLOAT)
    assert_same_weights(encoder.tower, getattr(saved, "vision_model", saved))


def test_damaged_weights_are_named(make_llava):
    folder, _ = make_llava(max_shard_size="20KB")
    config = load_config(folder)
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(LongVLMError, match=rf"{shard.name} can't be read"):
        load_model(folder, config, **FLOAT)
    shard.unlink()
    with pytest.raises(LongVLMError, match=rf"lacks the file {shard.name}"):
        load_model(folder, config, **FLOAT)


def test_vision_tower_of_another_width_is_refused(make_llava, tmp_path):
    folder, _ = make_llava()
    CLIPVisionModel(
        CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "narrow")
    (tmp_path / "narrow" / "preprocessor_config.json").write_text(PREPROCESSOR)
    with pytest.raises(LongVLMError, match=r"width 16.*reads 24"):
        load_config(folder, vision_tower=str(tmp_path / "narrow"))


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("as_bin", [False, True])
def test_original_llava_layout(tmp_path, make_tokenizer, tower_folder, num_layers, as_bin):
    """LLaMA weights with `model.mm_projector.*` beside them, a config with `mm_*` keys, and no tower."""
    folder, (other, tower) = tmp_path / "original", tower_folder
    tokenizer = make_tokenizer([])
    torch.manual_seed(2)
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=len(tokenizer),
        )
    )
    tokenizer.save_pretrained(folder)
    names = ["model.mm_projector."] if num_layers == 1 else ["model.mm_projector.0.", "model.mm_projector.2."]
    projector = {}
    for name, width in zip(names, (24, 32), strict=False):
        projector |= {f"{name}weight": torch.randn(32, width), f"{name}bias": torch.randn(32)}
    weights = {**llama.state_dict(), **projector}
    if as_bin:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    mm = {
        "mm_vision_tower": str(other),
        "mm_vision_select_layer": -2,
        "mm_projector_type": "linear" if num_layers == 1 else "mlp2x_gelu",
        "image_aspect_ratio": "pad",
    }
    (folder / "config.json").write_text(json.dumps({**llama.config.to_dict(), "model_type": "llava", **mm}))

    config = load_config(folder)
    model, processor = load_model(folder, config, **FLOAT), load_processor(folder, config)
    assert (config.projector_num_layers, config.compression_settings.fit) == (num_layers, "pad")
    assert_same_weights(model.model.vision_tower, tower)
    assert_same_weights(model.model.language_model, llama.model)
    assert torch.equal(model.lm_head.weight, llama.lm_head.weight)
    for name, layer in zip(names, ("linear_1", "linear_2"), strict=False):
        assert torch.equal(getattr(model.model.multi_modal_projector, layer).weight, projector[f"{name}weight"])
    assert config.video_token_index == processor.video_token_id == len(tokenizer)
    ids = torch.tensor([[1, 6, *[config.video_token_index] * 4, 7]])
    with torch.no_grad():
        logits = model(input_ids=ids, visual_tokens=torch.randn(4, 24)).logits
    assert logits.shape == (1, 7, len(tokenizer)) and logits.isfinite().all()
    model.save_pretrained(tmp_path / "converted")
    processor.save_pretrained(tmp_path / "converted")
    converted = load_model(tmp_path / "converted", load_config(tmp_path / "converted"), **FLOAT)
    assert_same_weights(converted, model)


@pytest.mark.parametrize("model_type", REFUSED_FAMILIES)
def test_other_llava_families_are_refused_by_name(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(LongVLMError, match=rf"'{model_type}'.*llava-hf/llava-1.5-7b-hf"):
        load_config(tmp_path)


def test_llava_with_an_unknown_tower_is_refused_by_name(tmp_path):
    LlavaConfig(vision_config={"model_type": "pixtral"}).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(PREPROCESSOR)
    with pytest.raises(LongVLMError, match="'pixtral'"):
        load_config(tmp_path)


def test_refusals_name_the_thing_and_the_remedy(tmp_path, make_llava, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LongVLMError, match="no model folder"):
        resolve_model("./nowhere")
    with pytest.raises(LongVLMError, match=r"'owner/unknown'.*can't be reached"):
        resolve_model("owner/unknown")
    with pytest.raises(LongVLMError, match="no valid hub id"):
        resolve_model("a model that is none")
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(LongVLMError, match="is a file"):
        resolve_model(tmp_path / "weights.bin")
    with pytest.raises(LongVLMError, match=r"no config\.json"):
        load_config(tmp_path)
    for broken in ("{", "[" * 100_000):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(LongVLMError, match="not valid JSON"):
            load_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(LongVLMError, match="'gpt2'"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava", "text_config": {"model_type": "unheard-of"}}')
    (tmp_path / "preprocessor_config.json").write_text(PREPROCESSOR)
    with pytest.raises(LongVLMError, match="unheard-of"):
        load_config(tmp_path)
    folder, _ = make_llava()
    config = load_config(folder)
    with pytest.raises(LongVLMError, match="no readable tokenizer"):
        load_processor(tmp_path, config)
    if not torch.cuda.is_available():
        with pytest.raises(LongVLMError, match="CUDA"):
            LongVLM.from_pretrained(folder, device="cpu", load_in_4bit=True)  # before any video is encoded
    weights = load_file(folder / "model.safetensors")
    lacking = next(name for name in weights if name.startswith("multi_modal_projector"))
    save_file({k: v for k, v in weights.items() if k != lacking}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LongVLMError, match=r"lacks 1 weight.*multi_modal_projector"):
        load_model(folder, config, **FLOAT)
    (folder / "model.safetensors").unlink()
    with pytest.raises(LongVLMError, match=r"no model\.safetensors"):
        load_model(folder, config, **FLOAT)


def test_compression_in_the_encoder_may_differ_from_the_config(make_llava):
    folder, _ = make_llava()
    config = load_config(folder)
    more_globals = dataclasses.replace(config.compression_settings, global_layers=3)
    encoder = load_encoder(folder, config, compression=more_globals, **FLOAT)
    features = encoder(Frames(torch.zeros(1, 3, 28, 28, dtype=torch.uint8), (0.0,), 1))
    assert features.layer_globals.shape == (1, 3, 24)


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json", "vision tower"])
def test_code_in_a_checkpoint_is_neither_run_nor_offered(tmp_path, make_llava, monkeypatch, where):
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(f"asked: {question}"))
    folder, _ = make_llava()
    (folder / "trap.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    tower = tmp_path / "tower"
    tower.mkdir()
    (tower / "trap.py").write_bytes((folder / "trap.py").read_bytes())
    auto_map = {"AutoConfig": "trap.Config", "AutoModel": "trap.Model", "AutoTokenizer": ["trap.Words", "trap.Words"]}
    if where == "vision tower":
        (tower / "config.json").write_text(json.dumps({"model_type": "of_its_own", "auto_map": auto_map}))
        (tower / "preprocessor_config.json").write_text(PREPROCESSOR)
        with pytest.raises(LongVLMError, match="runs no code from checkpoints"):
            load_config(folder, vision_tower=str(tower))
    else:
        config = load_config(folder)
        raw = json.loads((folder / where).read_text())
        changes = {"auto_map": auto_map} | ({"tokenizer_class": "Words"} if where == "tokenizer_config.json" else {})
        (folder / where).write_text(json.dumps(raw | changes))
        assert load_config(folder).to_dict() == config.to_dict()
        load_model(folder, config, **FLOAT)
        load_encoder(folder, config, compression=config.compression_settings, **FLOAT)
        load_processor(folder, config)
    assert not list(tmp_path.rglob("ran"))


def test_the_fingerprint_does_not_depend_on_the_dtype_of_the_load(make_llava):
    folder, _ = make_llava()
    config = load_config(folder)
    prints = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        encoder = load_encoder(folder, config, compression=config.compression_settings, device="cpu", dtype=dtype)
        assert {weight.dtype for weight in encoder.tower.parameters()} == {dtype}
        prints[dtype] = encoder.fingerprint
    assert len(set(prints.values())) == 1
    weights = load_file(folder / "model.safetensors")
    changed = next(name for name in weights if name.endswith("layers.0.mlp.fc1.weight") and "vision_tower" in name)
    save_file(weights | {changed: weights[changed] * 1.1}, folder / "model.safetensors", {"format": "pt"})
    other = load_encoder(folder, config, compression=config.compression_settings, device="cpu", dtype=torch.float16)
    assert other.fingerprint not in prints.values()


def test_an_original_checkpoint_without_tokenizer_is_refused(tmp_path, make_llava):
    tower, _ = make_llava()
    folder = tmp_path / "original"
    folder.mkdir()
    mm = {"model_type": "llava", "mm_vision_tower": str(tower), "mm_projector_type": "linear"}
    (folder / "config.json").write_text(json.dumps(LlamaConfig().to_dict() | mm))
    with pytest.raises(LongVLMError, match=r"original has no readable tokenizer"):
        load_config(folder)


def test_in_4_bits_only_the_language_models_layers_are(tmp_path: Path) -> None:
    """What transformers' own rule leaves out, by the names that the model's layers really have."""
    model = open_tiny(tmp_path)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    converted = {name for name in linear if should_convert_module(name, NOT_QUANTISED)}
    assert converted == {name for name in linear if name.startswith("model.language_model.")}
    assert converted and len(converted) < len(linear)


def open_tiny(tmp_path: Path) -> torch.nn.Module:
    folder = save_tiny_checkpoint(tmp_path / "tiny")
    return load_model(folder, load_config(folder), **FLOAT)


@pytest.mark.parametrize(
    ("part", "setting", "words"),
    [
        ("text_config", {"hidden_size": 16}, "weights that its config.json wants"),
        ("vision_config", {"hidden_size": 16}, "weights that its config.json wants"),
        ("vision_config", "hello", "is not supported by transformers"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_one_line(
    tmp_path: Path, part: str, setting: object, words: str
) -> None:
    folder = save_tiny_checkpoint(tmp_path / "tiny")
    raw = json.loads((folder / "config.json").read_text())
    raw[part] = {**raw[part], **setting} if isinstance(setting, dict) else setting
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(LongVLMError, match=words):
        load_model(folder, load_config(folder), **FLOAT)


@pytest.mark.parametrize("name", ["~nobody-by-this-name/model", "m" * 300, ""])
def test_a_name_that_no_folder_can_have_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LongVLMError) as refusal:
        resolve_model(name)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("device", ["meta", "xla", "mps"])
def test_a_device_that_models_do_not_run_on_is_refused(device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has an MPS device, on which models do run")
    with pytest.raises(LongVLMError, match=f"can't run on '{device}'"):
        choose_device(device)
