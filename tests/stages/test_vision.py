"""The encoder against transformers' own forward pass, on tiny random towers of the three kinds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from longvlm.errors import LongVLMError
from longvlm.stages.vision import VisionEncoder, count_patches, encode_pixels
from longvlm.types import Frames

NUM_LAYERS = 6
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
KINDS = ["clip", "siglip", "dinov2"]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def make_tower(kind: str, attn_implementation: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    config, cls = {
        "clip": (CLIPVisionConfig(intermediate_size=48, **SIZES), CLIPVisionModel),
        "siglip": (SiglipVisionConfig(intermediate_size=48, **SIZES), SiglipVisionModel),
        "dinov2": (Dinov2Config(layerscale_value=0.7, **SIZES), Dinov2Model),
    }[kind]
    torch.manual_seed(seed)
    tower = cls._from_config(config, attn_implementation=attn_implementation).eval()
    with torch.no_grad():  # a fresh tower's biases are 0 and its norms 1: an omission would not show
        for weight in tower.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return tower


def make_pixels(num_frames: int = 3) -> torch.Tensor:
    return torch.randn(num_frames, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def make_frames(num_frames: int = 3, *, seed: int = 2, times_from: float = 0.0) -> Frames:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num_frames, 3, 28, 28), generator=generator, dtype=torch.uint8)
    return Frames(pixels, tuple(times_from + t for t in range(num_frames)), num_frames)


def make_encoder(tower: PreTrainedModel, **changes: Any) -> VisionEncoder:
    settings: dict[str, Any] = {
        "feature_layer": -2,
        "select_strategy": "default",
        "global_layers": 5,
        "image_mean": MEAN,
        "image_std": STD,
    }
    return VisionEncoder(tower, **(settings | changes))


def reference_features(
    tower: PreTrainedModel, pixels: torch.Tensor, layer: int | list[int], strategy: str, global_layers: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches and globals cut out of transformers' complete `hidden_states`."""
    states = tower(pixels, output_hidden_states=True).hidden_states
    wanted = [layer] if isinstance(layer, int) else layer
    first = 1 if strategy == "default" else 0
    patches = torch.cat([states[i][:, first:] for i in wanted], dim=-1)
    has_cls = tower.config.model_type != "siglip_vision_model"
    layer_globals = [s[:, 0] if has_cls else s.mean(1) for s in states[len(states) - global_layers :]]
    if not layer_globals:
        return patches, torch.empty(len(patches), 0, patches.shape[-1])
    return patches, torch.stack(layer_globals, dim=1)


@pytest.mark.parametrize("global_layers", [0, 1, 5, NUM_LAYERS + 1])
@pytest.mark.parametrize("layer", [-1, -2, 0, 3])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_equals_transformers(kind: str, attn_implementation: str, layer: int, global_layers: int) -> None:
    tower, pixels = make_tower(kind, attn_implementation), make_pixels()
    for strategy in ("default", "full"):
        actual = encode_pixels(
            tower, pixels, feature_layer=layer, select_strategy=strategy, global_layers=global_layers
        )
        expected = reference_features(tower, pixels, layer, strategy, global_layers)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
        assert actual[0].shape[1] == count_patches(tower.config, strategy)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_list_of_layers_is_concatenated_in_its_order(kind: str) -> None:
    tower, pixels = make_tower(kind), make_pixels()
    layers = [-2, 1, -5]
    actual = encode_pixels(tower, pixels, feature_layer=layers, select_strategy="default", global_layers=0)
    torch.testing.assert_close(actual, reference_features(tower, pixels, layers, "default", 0), rtol=0, atol=1e-4)
    assert make_encoder(tower, feature_layer=layers, global_layers=0).feature_width == 96


@pytest.mark.parametrize(
    ("layer", "global_layers", "layers_run", "mlp_rows"),
    [(-2, 0, 5, 17), (-2, 5, 5, 1), (-1, 5, 6, 17), (2, 0, 2, 17), (0, 0, 0, None)],
)
def test_only_what_is_used_is_computed(layer: int, global_layers: int, layers_run: int, mlp_rows: int | None) -> None:
    """Layers run whole, and the rows that the last MLP to run works on: 17 positions, or [CLS] alone."""
    tower, whole_layers, rows = make_tower("clip"), [], []
    for block in tower.encoder.layers:
        block.register_forward_hook(lambda *_: whole_layers.append(1))
        block.mlp.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[1]))
    tower.post_layernorm.register_forward_hook(lambda *_: pytest.fail("the final norm is not used"))
    encode_pixels(tower, make_pixels(), feature_layer=layer, select_strategy="default", global_layers=global_layers)
    assert len(whole_layers) == layers_run
    assert (rows[-1] if rows else None) == mlp_rows


def test_a_layer_that_something_hangs_on_is_called_whole() -> None:
    """As where its weights lie in shards, which are gathered when it is called."""
    tower, pixels = make_tower("clip"), make_pixels()
    how: dict[str, Any] = {"feature_layer": -2, "select_strategy": "default", "global_layers": 2}
    patches, layer_globals = encode_pixels(tower, pixels, **how)
    called = []
    tower.encoder.layers[-1].register_forward_pre_hook(lambda *_: called.append(1))
    again = encode_pixels(tower, pixels, **how)
    assert called == [1]
    assert torch.equal(again[0], patches)
    torch.testing.assert_close(again[1], layer_globals, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_transformers(kind: str) -> None:
    pixels, gradients = make_pixels(), []
    for encode in (
        lambda tower: encode_pixels(tower, pixels, feature_layer=-2, select_strategy="default", global_layers=2),
        lambda tower: reference_features(tower, pixels, -2, "default", 2),
    ):
        tower = make_tower(kind).train()
        patches, layer_globals = encode(tower)
        (patches.square().sum() + layer_globals.pow(3).sum()).backward()
        gradients.append({name: weight.grad for name, weight in tower.named_parameters()})
    used = {name for name, gradient in gradients[1].items() if gradient is not None}
    assert used == {name for name, gradient in gradients[0].items() if gradient is not None}
    for name in used:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_frames_are_normalised_and_keep_their_times() -> None:
    tower, frames = make_tower("clip"), make_frames()
    encoder = make_encoder(tower)
    features = encoder(frames)
    pixels = (frames.pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    expected = reference_features(tower, pixels, -2, "default", 5)
    torch.testing.assert_close((features.patches, features.layer_globals), expected, rtol=0, atol=1e-4)
    assert features.times_seconds == frames.times_seconds
    assert features.num_distinct == frames.num_distinct
    assert features.patches.shape[1:] == (encoder.patches_per_frame, encoder.feature_width)
    assert encoder.image_size == 28


@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_that_caches_do_not_hold_is_encoded_in_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = make_tower(kind)
    encoder = make_encoder(tower)
    whole = encoder(make_frames(5))
    seen: list[int] = []
    layer = next(module for module in tower.modules() if isinstance(module, torch.nn.ModuleList))[0]
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr("longvlm.stages.vision._MAX_CPU_ACTIVATION_BYTES", 2 * 4 * 32 * 17 * 4)
    parts = encoder(make_frames(5))
    assert seen == [2, 2, 1]
    torch.testing.assert_close(parts.patches, whole.patches, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts.layer_globals, whole.layer_globals, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=str)
def test_a_clip_layer_in_fewer_passes_is_the_same(dtype: torch.dtype, tolerance: float) -> None:
    """Without gradients CLIP's quick GELU is computed in another way; with them, by the library's own layers."""
    tower = make_tower("clip").to(dtype)
    pixels = torch.randn(3, 3, 28, 28).to(dtype)
    read = partial(encode_pixels, tower, pixels, feature_layer=-2, select_strategy="full", global_layers=3)
    assert tower.config.hidden_act == "quick_gelu"
    plain = read()
    with torch.no_grad():
        lean = read()
    assert all(part.grad_fn is not None for part in plain) and all(part.grad_fn is None for part in lean)
    for ours, theirs in zip(lean, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_several_segments_together_are_each_as_if_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder(make_tower(kind))
    segments = [make_frames(seed=seed, times_from=10.0 * seed) for seed in range(3)]
    segments[2] = replace(segments[2], num_distinct=2)
    alone = [encoder(frames) for frames in segments]
    calls: list[int] = []
    encode = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda pixels: calls.append(len(pixels)) or encode(pixels))
    for expected, actual in zip(alone, encoder.encode_segments(segments), strict=True):
        torch.testing.assert_close(actual.patches, expected.patches, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(actual.layer_globals, expected.layer_globals, atol=1e-4, rtol=1e-4)
        assert (actual.times_seconds, actual.num_distinct) == (expected.times_seconds, expected.num_distinct)
    assert calls == [9]


def test_features_have_the_towers_dtype_and_no_gradient() -> None:
    features = make_encoder(make_tower("clip").bfloat16())(make_frames())
    assert features.patches.dtype == features.layer_globals.dtype == torch.bfloat16
    assert not features.patches.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_follows_what_decides_the_features(kind: str) -> None:
    fingerprint = make_encoder(make_tower(kind)).fingerprint
    assert make_encoder(make_tower(kind).bfloat16()).fingerprint == fingerprint
    assert make_encoder(make_tower(kind, "eager"), feature_layer=5, global_layers=1).fingerprint == fingerprint
    for unused in ("post_layernorm", "head", "layernorm"):
        tower = make_tower(kind)
        for weight in getattr(tower, unused, torch.nn.Identity()).parameters():
            weight.data.normal_()
        assert make_encoder(tower).fingerprint == fingerprint

    others = [
        make_encoder(make_tower(kind, seed=1)),
        make_encoder(make_tower(kind), feature_layer=-3),
        make_encoder(make_tower(kind), select_strategy="full"),
        make_encoder(make_tower(kind), image_mean=[0.5, 0.5, 0.5]),
        make_encoder(make_tower(kind), image_std=[0.5, 0.5, 0.5]),
    ]
    assert len({fingerprint, *(other.fingerprint for other in others)}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_layer": 7}, "feature_layer 7 does not exist; this tower has -7 to 6"),
        ({"feature_layer": []}, "empty list"),
        ({"global_layers": 8}, "global_layers is 8"),
        ({"feature_layer": [-2, -3]}, r"feature_layer=\[-2, -3\] .* set global_layers to 0 \(it is 5\)"),
        ({"select_strategy": "cls"}, "Unknown select_strategy 'cls'"),
    ],
)
def test_impossible_readings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LongVLMError, match=message):
        make_encoder(make_tower("clip"), **changes)


def test_unknown_towers_are_refused_with_the_supported_ones() -> None:
    tower = ViTModel(ViTConfig(intermediate_size=48, **SIZES))
    with pytest.raises(LongVLMError, match="'vit' are not supported; choose one of clip_vision_model, dinov2"):
        make_encoder(tower)
