"""The visual encoder: frames become patch features and, of the last layers, one global feature per layer.

Layers are counted as in transformers' `hidden_states`: 0 is the embeddings' output, i that of layer i, always
before the tower's final norm. They run one by one here, so that only what is used is computed and kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import PretrainedConfig, PreTrainedModel

from longvlm.errors import LongVLMError
from longvlm.types import FrameFeatures, Frames

# What decides a tower's function beside its weights and their shapes; other settings may vary between loads.
_FINGERPRINTED_SETTINGS = ("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps")
_SAMPLES_PER_WEIGHT = 256
MLP_WIDENING = 4  # a layer's widest activations to its input, about so in all towers served; DINOv2 states no width
_MAX_CPU_ACTIVATION_BYTES = 22 * 2**20  # of these, what a processor's caches hold
_QUICK_GELU_SLOPE = 1.702


class VisionEncoder:
    """A frozen tower with the layers to read from it: segments' frames in, their features out.

    `tower` is a CLIP, SigLIP or DINOv2 vision model; it stays on its device and in its dtype, and is put in
    evaluation mode. `feature_layer` and `select_strategy` are a LLaVA checkpoint's `vision_feature_layer` and
    `vision_feature_select_strategy`; `global_layers` is how many of the last layers give a global feature.
    Frames are scaled to [0, 1] and normalised with `image_mean` and `image_std`, three numbers each.
    `weight_digests`, of `digest_weights`, are those of the stored weights; without them, the fingerprint reads
    the tower's own, which differ from the stored ones in a float16 load.

    Raises LongVLMError where the tower, the layers or the strategy can't be served.
    """

    def __init__(
        self,
        tower: PreTrainedModel,
        *,
        feature_layer: int | list[int],
        select_strategy: str,
        global_layers: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        name: str = "",
        weight_digests: list[str] | None = None,
    ) -> None:
        self.tower = tower.eval()
        self._weight_digests = weight_digests
        self.name = name or tower.config.model_type
        self.global_layers = global_layers
        self.image_size = image_side(tower.config)
        self.patches_per_frame = count_patches(tower.config, select_strategy)
        self._feature_layers = _choose_layers(tower.config, feature_layer, global_layers).features
        self.feature_width = tower.config.hidden_size * len(self._feature_layers)
        self._select_strategy = select_strategy
        self._encode = partial(
            encode_pixels,
            self.tower,
            feature_layer=feature_layer,
            select_strategy=select_strategy,
            global_layers=global_layers,
        )
        self._mean = torch.tensor(image_mean, device=tower.device).view(3, 1, 1)
        self._std = torch.tensor(image_std, device=tower.device).view(3, 1, 1)

    def __call__(self, frames: Frames) -> FrameFeatures:
        """Encode one segment; the features stay on the tower's device and in its dtype."""
        return self.encode_segments([frames])[0]

    @torch.no_grad()
    def encode_segments(self, segments: Sequence[Frames]) -> list[FrameFeatures]:
        """Encode the frames of several segments together, of several videos maybe: the features of each, in order.

        Features may differ by rounding from those of single segments, since kernels depend on a batch's shape.
        """
        counts = [len(frames.pixels) for frames in segments]
        pixels = torch.cat([frames.pixels for frames in segments]).to(self.tower.device)
        pixels = pixels.float().div_(255).sub_(self._mean).div_(self._std).to(self.tower.dtype)
        at_once = count_frames_at_once(self.tower.config, len(pixels), self.tower.device, self.tower.dtype)
        parts = [self._encode(some) for some in pixels.split(at_once)]
        patches, layer_globals = (torch.cat(part).split(counts) for part in zip(*parts, strict=True))
        return [
            FrameFeatures(*features, frames.times_seconds, frames.num_distinct)
            for features, frames in zip(zip(patches, layer_globals, strict=True), segments, strict=True)
        ]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what decides the patch features: settings, and values sampled from every weight."""
        settings = [getattr(self.tower.config, name) for name in _FINGERPRINTED_SETTINGS]
        reading = [self._feature_layers, self._select_strategy]
        pixels = [round(number, 6) for number in (*self._mean.flatten().tolist(), *self._std.flatten().tolist())]
        weights = digest_weights(self.tower) if self._weight_digests is None else self._weight_digests
        return hashlib.sha256(json.dumps([settings, reading, pixels, weights]).encode()).hexdigest()


def count_frames_at_once(
    vision_config: PretrainedConfig, num_frames: int, device: torch.device, dtype: torch.dtype
) -> int:
    """Of so many frames, how many a tower encodes fastest at once: on a processor, what its caches hold."""
    if device.type != "cpu":
        return num_frames
    values_per_frame = MLP_WIDENING * vision_config.hidden_size * count_patches(vision_config, "full")
    return min(num_frames, max(1, _MAX_CPU_ACTIVATION_BYTES // (values_per_frame * dtype.itemsize)))


def digest_weights(tower: PreTrainedModel) -> list[str]:
    """Hashes of values sampled from every weight that features depend on, for `VisionEncoder.fingerprint`.

    Values are rounded to bfloat16, so that float32 and bfloat16 loads of one checkpoint agree; names and
    order of the weights stay out, since they differ between releases of transformers, and so do weights
    that no feature depends on (final norms, pooling heads), which some loads leave random.
    """
    return sorted(_hash_samples(weight) for module in _used_modules(tower) for weight in module.parameters())


def encode_pixels(
    tower: PreTrainedModel,
    pixel_values: torch.Tensor,
    *,
    feature_layer: int | list[int],
    select_strategy: str,
    global_layers: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised pixels (B, 3, R, R) -> patches (B, P, D) and layer_globals (B, L, D'), with gradients.

    Patches are the hidden states of `feature_layer`, side by side along D for a list; `select_strategy`
    "default" drops the first position ([CLS]; in SigLIP a patch, as LLaVA does too), "full" keeps all.
    Globals are the [CLS] of the last L = `global_layers` layers, earlier layers first; SigLIP has no [CLS],
    so a layer's global is the mean of its patches.

    Raises LongVLMError for an unknown tower or strategy, for layers that the tower lacks, and for global
    layers beside several feature layers, since their widths differ and no projector could read both.
    """
    family = _family(tower.config)
    _check_strategy(select_strategy)
    chosen = _choose_layers(tower.config, feature_layer, global_layers)
    layers = family.layers(_unwrap(tower))
    features, layer_globals = {}, []
    hidden = family.embed(_unwrap(tower), pixel_values)
    for index in range(chosen.last + 1):
        if index > 0:
            layer = layers[index - 1]
            only_cls = index == chosen.last and index not in chosen.features
            hidden = _choose_run(family, layer, only_cls=only_cls)(layer, hidden)
        if index in chosen.features:
            features[index] = hidden[:, 1:] if select_strategy == "default" else hidden
        if index >= chosen.first_global:
            layer_globals.append(hidden[:, 0] if family.run_cls else hidden.mean(1))
    patches = torch.cat([features[index] for index in chosen.features], dim=-1)
    if not layer_globals:
        return patches, patches.new_zeros(len(patches), 0, patches.shape[-1])
    return patches, torch.stack(layer_globals, dim=1)


def image_side(vision_config: PretrainedConfig) -> int:
    """Pixels on each side of what a tower sees. Raises LongVLMError where that is no square."""
    return _side(vision_config.image_size, "image_size")


def count_patches(vision_config: PretrainedConfig, select_strategy: str) -> int:
    """P, the patch features of a frame; one of them is the [CLS] if a CLIP or DINOv2 tower is read "full"."""
    _check_strategy(select_strategy)
    side = image_side(vision_config) // _side(vision_config.patch_size, "patch_size")
    positions = side**2 + (_family(vision_config).run_cls is not None)
    return positions - (select_strategy == "default")


@dataclass(frozen=True)
class _ChosenLayers:
    features: list[int]
    first_global: int
    last: int


def _choose_layers(config: PretrainedConfig, feature_layer: int | list[int], global_layers: int) -> _ChosenLayers:
    """Layer numbers counted from 0, the embeddings' output; the last one is the last that has to run."""
    num_states = config.num_hidden_layers + 1
    wanted = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
    for layer in wanted:
        if not -num_states <= layer < num_states:
            raise LongVLMError(
                f"feature_layer {layer} does not exist; this tower has {-num_states} to {num_states - 1}."
            )
    if not wanted:
        raise LongVLMError("feature_layer is an empty list; name at least one layer.")
    if not 0 <= global_layers <= num_states:
        raise LongVLMError(
            f"global_layers is {global_layers}, but this tower has {num_states} layers, embeddings included; "
            "choose fewer."
        )
    if global_layers and len(wanted) > 1:
        width = config.hidden_size
        raise LongVLMError(
            f"feature_layer={wanted} makes features of width {len(wanted) * width}, but a global token has "
            f"width {width}, and one projector reads both; set global_layers to 0 (it is {global_layers})."
        )
    features = [layer % num_states for layer in wanted]
    first_global = num_states - global_layers
    return _ChosenLayers(features, first_global, num_states - 1 if global_layers else max(features))


_Run = Callable[[Any, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Family:
    """How to walk through one kind of tower."""

    embed: Callable[[Any, torch.Tensor], torch.Tensor]
    layers: Callable[[Any], nn.ModuleList]
    # A layer computed for [CLS] alone; None where the tower has no [CLS].
    run_cls: _Run | None
    # A layer with quick GELU in fewer passes over memory, without gradients.
    run_quick: _Run | None = None


def _choose_run(family: _Family, layer: Any, *, only_cls: bool) -> _Run:
    """What hooks do to a layer, such as gathering its shards, they do when it is called as a whole."""
    if layer._forward_pre_hooks:
        return _run_layer
    if only_cls and family.run_cls:
        return family.run_cls
    if family.run_quick and not torch.is_grad_enabled() and _has_quick_gelu(layer):
        return family.run_quick
    return _run_layer


def _run_layer(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    return layer(hidden, None)


def _run_clip_cls(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    attended = _attend(normed[:, :1], normed, attention, attention.num_heads, attention.dropout)
    cls = hidden[:, :1] + attention.out_proj(attended)
    return cls + layer.mlp(layer.layer_norm2(cls))


def _has_quick_gelu(layer: Any) -> bool:
    linears = (layer.mlp.fc1, layer.mlp.fc2)
    return layer.mlp.config.hidden_act == "quick_gelu" and all(type(linear) is nn.Linear for linear in linears)


def _run_quick_clip(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """(B, T, D) -> (B, T, D). x·sigmoid(1.702 x) is silu(1.702 x) / 1.702, and the products scale as they go: one pass
    over the widest activations in place of three.
    """
    attention, mlp, normed = layer.self_attn, layer.mlp, layer.layer_norm1(hidden)
    hidden = hidden + attention.out_proj(_attend(normed, normed, attention, attention.num_heads, 0.0))
    rows, slope = layer.layer_norm2(hidden).flatten(0, 1), _QUICK_GELU_SLOPE
    widened = silu(torch.addmm(mlp.fc1.bias, rows, mlp.fc1.weight.t(), beta=slope, alpha=slope), inplace=True)
    return hidden.add_(torch.addmm(mlp.fc2.bias, widened, mlp.fc2.weight.t(), alpha=1 / slope).view_as(hidden))


def _run_dinov2_cls(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    attention, normed = layer.attention, layer.norm1(hidden)
    attended = _attend(normed[:, :1], normed, attention, attention.num_attention_heads, attention.attention_dropout)
    cls = hidden[:, :1] + layer.drop_path(layer.layer_scale1(attention.o_proj(attended)))
    return cls + layer.drop_path(layer.layer_scale2(layer.mlp(layer.norm2(cls))))


def _attend(asking: torch.Tensor, normed: torch.Tensor, attention: Any, heads: int, dropout: float) -> torch.Tensor:
    """What some positions (B, Q, D) take in from all (B, T, D): (B, Q, D); by SDPA, whatever the tower's backend."""
    query, key, value = (
        states.unflatten(-1, (heads, -1)).transpose(1, 2)
        for states in (attention.q_proj(asking), attention.k_proj(normed), attention.v_proj(normed))
    )
    attended = scaled_dot_product_attention(query, key, value, dropout_p=dropout if attention.training else 0.0)
    return attended.transpose(1, 2).flatten(2)


_FAMILIES = {
    "clip_vision_model": _Family(
        embed=lambda tower, pixels: tower.pre_layrnorm(tower.embeddings(pixels)),
        layers=lambda tower: tower.encoder.layers,
        run_cls=_run_clip_cls,
        run_quick=_run_quick_clip,
    ),
    "siglip_vision_model": _Family(
        embed=lambda tower, pixels: tower.embeddings(pixels),
        layers=lambda tower: tower.encoder.layers,
        run_cls=None,
    ),
    "dinov2": _Family(
        embed=lambda tower, pixels: tower.embeddings(pixels),
        layers=lambda tower: tower.encoder.layer,
        run_cls=_run_dinov2_cls,
    ),
}


def _family(config: PretrainedConfig) -> _Family:
    if config.model_type not in _FAMILIES:
        raise LongVLMError(
            f"Vision towers of type {config.model_type!r} are not supported; choose one of "
            f"{', '.join(sorted(_FAMILIES))}."
        )
    return _FAMILIES[config.model_type]


def _unwrap(tower: Any) -> Any:
    """The model that holds the layers; some releases of transformers wrap it once more as `vision_model`."""
    return getattr(tower, "vision_model", tower)


def _used_modules(tower: PreTrainedModel) -> list[nn.Module]:
    inner = _unwrap(tower)
    before = [module for name, module in inner.named_children() if name in ("embeddings", "pre_layrnorm")]
    return [*before, _family(tower.config).layers(inner)]


def _hash_samples(weight: torch.Tensor) -> str:
    """A digest of a weight's shape and some values, an odd step apart so as not to walk down one column."""
    step = weight.numel() // _SAMPLES_PER_WEIGHT | 1
    values = weight.detach().flatten()[::step].to(torch.bfloat16).cpu().contiguous()
    return hashlib.sha256(repr(tuple(weight.shape)).encode() + values.view(torch.uint8).numpy().tobytes()).hexdigest()


def _check_strategy(select_strategy: str) -> None:
    if select_strategy not in ("default", "full"):
        raise LongVLMError(f"Unknown select_strategy {select_strategy!r}; choose 'default' or 'full'.")


def _side(size: int | Sequence[int], name: str) -> int:
    """The side of a square that a config gives as one number or as two equal ones."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise LongVLMError(f"The vision tower's {name} is {size}; only square ones are supported.")
    return sides.pop()
