"""LongVLMConfig: a vision tower, a projector, a language model, and how a video is compressed between."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlavaConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from longvlm.errors import LongVLMError
from longvlm.types import Compression, Fit


@strict
class LongVLMConfig(PreTrainedConfig):
    """Configuration of a LongVLM; without arguments, of the paper's (CLIP ViT-L/14, LLaMA-7B).

    Args:
        projector_num_layers: 1, a linear layer (the paper), or 2 with `projector_hidden_act` between (LLaVA).
        vision_feature_layer: which of the tower's `hidden_states` is read; several are concatenated.
        vision_feature_select_strategy: `default` leaves out the first position ([CLS]), `full` keeps all.
        video_token_index: id of the token that stands for one visual token in `input_ids`.
        compression: settings of `longvlm.types.Compression`; an unknown key raises LongVLMError.
        default_num_frames, default_fps, default_max_frames: how a video is sampled, unless told otherwise.
        timestamps: whether the segments' times are written as text between their visual tokens.
        vision_tower: folder or hub id of a tower to load in place of the checkpoint's; None once loaded.
        projector: path of a reference's mm_projector.bin to lay over the checkpoint; None once loaded.
        base: folder or hub id of the model that a trained part is applied to, if it has moved; None once loaded.
    """

    model_type = "longvlm"
    attribute_map = {"video_token_id": "video_token_index"}  # noqa: RUF012 - transformers' convention
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="clip_vision_model",
            init_kwargs={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "patch_size": 14,
                "image_size": 224,
                "projection_dim": 768,
            },
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: Any = None  # a dict or a config; a config once this is built
    text_config: Any = None
    projector_num_layers: Literal[1, 2] = 1
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    vision_feature_layer: int | list[int] = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    video_token_index: int = 32000
    tie_word_embeddings: bool = False
    compression: dict | None = None
    default_num_frames: int | None = 100
    default_fps: float | None = None
    default_max_frames: int | None = None
    timestamps: bool = False
    vision_tower: str | None = None
    projector: str | None = None
    base: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # LLaVA checkpoints of some language models state tied weights in the text config alone.
        self.tie_word_embeddings = self.tie_word_embeddings or bool(self.text_config.tie_word_embeddings)
        settings = Compression.from_dict(self.compression or {})
        self.compression = json.loads(settings.to_json())
        self._require_one_width(settings)

    @property
    def compression_settings(self) -> Compression:
        return Compression.from_dict(self.compression or {})

    def override_compression(self, changes: Compression | Mapping[str, Any]) -> None:
        """Take single settings from a mapping, or all of a Compression; LongVLMError for what they can't be."""
        if not isinstance(changes, Compression):
            changes = Compression.from_dict({**(self.compression or {}), **changes})
        self._require_one_width(changes)
        self.compression = json.loads(changes.to_json())

    def _require_one_width(self, settings: Compression) -> None:
        layers = self.vision_feature_layer
        if settings.global_layers and isinstance(layers, list) and len(layers) > 1:
            raise LongVLMError(
                f"global_layers is {settings.global_layers}, but patch features of several layers "
                f"(vision_feature_layer {layers}) are wider than one layer's [CLS]; set global_layers to 0."
            )

    @property
    def visual_width(self) -> int:
        """D, the width of a visual token before the projector."""
        layers = self.vision_feature_layer
        return self.vision_config.hidden_size * (len(layers) if isinstance(layers, list) else 1)

    @classmethod
    def from_llava(cls, llava: LlavaConfig, *, fit: Fit = "crop") -> LongVLMConfig:
        """The same model read as a long-video model, with no training: merging happens before its projector.

        - No global tokens: the projector of a LLaVA checkpoint has only ever seen patch features, and a [CLS]
          of another layer lies outside what it can translate.
        - Temporal order inside a segment: its language model learned from patches in a meaningful order.
        - The similarity's heads are the paper's 16 where that divides the features' width, else the tower's.
        - `fit` should be what the checkpoint's image processor does to a picture that is not square.
        """
        compression: dict[str, Any] = {"global_layers": 0, "merge_order": "temporal", "fit": fit}
        if llava.vision_config.hidden_size % Compression.merge_heads:
            compression["merge_heads"] = llava.vision_config.num_attention_heads
        return cls(
            vision_config=copy.deepcopy(llava.vision_config),
            text_config=copy.deepcopy(llava.text_config),
            projector_num_layers=2,
            projector_hidden_act=llava.projector_hidden_act,
            multimodal_projector_bias=llava.multimodal_projector_bias,
            vision_feature_layer=llava.vision_feature_layer,
            vision_feature_select_strategy=llava.vision_feature_select_strategy,
            video_token_index=llava.image_token_index,
            tie_word_embeddings=llava.tie_word_embeddings,
            compression=compression,
            dtype=llava.dtype,
        )
