"""LongVLMForConditionalGeneration: a language model that reads a video's visual tokens.

Modules carry the names of `LlavaForConditionalGeneration` (vision_tower, multi_modal_projector,
language_model, lm_head), so that the weights of a LLaVA checkpoint load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaModelOutputWithPast,
    LlavaPreTrainedModel,
)
from transformers.utils.generic import can_return_tuple

from longvlm.model.configuration import LongVLMConfig
from longvlm.stages.merging import merge_segments
from longvlm.stages.tokens import average_globals
from longvlm.stages.vision import encode_pixels
from longvlm.types import fill_places

VisualTokens = torch.Tensor | Sequence[torch.Tensor]


def flatten_visual_tokens(visual_tokens: VisualTokens) -> torch.Tensor:
    """(V, n, D), (n, D) or a sequence of (n_i, D) -> (sum of n_i, D), in order."""
    if isinstance(visual_tokens, torch.Tensor):
        return visual_tokens.reshape(-1, visual_tokens.shape[-1])
    return torch.cat(list(visual_tokens))


class LongVLMProjector(nn.Module):
    """From the tower's width to the language model's: one linear layer (the paper) or two (LLaVA)."""

    def __init__(self, config: LongVLMConfig) -> None:
        super().__init__()
        width, bias = config.text_config.hidden_size, config.multimodal_projector_bias
        self.linear_1 = nn.Linear(config.visual_width, width, bias=bias)
        if config.projector_num_layers == 2:
            self.act = ACT2FN[config.projector_hidden_act]
            self.linear_2 = nn.Linear(width, width, bias=bias)
        self.num_layers = config.projector_num_layers

    def reset_parameters(self) -> None:
        """Draw random weights as torch does for a linear layer, which LLaVA's first stage starts from, too."""
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.linear_1(features)
        return self.linear_2(self.act(hidden)) if self.num_layers == 2 else hidden


class LongVLMPreTrainedModel(LlavaPreTrainedModel):
    config: LongVLMConfig
    config_class = LongVLMConfig  # the annotation alone is a string to transformers
    input_modalities = ("video", "text")
    # How many visual tokens a prompt holds is data, so the whole forward can't be one graph.
    _can_compile_fullgraph = False


class LongVLMModel(LongVLMPreTrainedModel):
    """Vision tower, projector and language model, without the language model's head."""

    def __init__(self, config: LongVLMConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LongVLMProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_video_features(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Normalised frames (V, T, 3, R, R) -> visual tokens before the projector (V, G + S·M, D).

        Every K frames make a segment; a short last one is filled up by repeating its frames. Segments pass
        one by one, as they do when a file is encoded, so both routes give the same numbers where all frames differ
        (what a file repeats to have `num_frames` of them does not weigh in its global tokens; here nobody can tell).
        """
        return torch.stack([self._encode_video(video) for video in pixel_values_videos])

    def _encode_video(self, frames: torch.Tensor) -> torch.Tensor:
        config, settings = self.config, self.config.compression_settings
        size = settings.frames_per_segment
        local_tokens, segment_globals, num_distinct = [], [], []
        for segment in frames.split(size):
            positions = torch.tensor(fill_places(len(segment), size), device=frames.device)
            patches, layer_globals = encode_pixels(
                self.vision_tower,
                segment[positions],
                feature_layer=config.vision_feature_layer,
                select_strategy=config.vision_feature_select_strategy,
                global_layers=settings.global_layers,
            )
            merged = merge_segments(patches.flatten(0, 1)[None], settings)
            local_tokens.append(merged.features[0])
            is_first = positions.diff(prepend=positions.new_tensor([-1])) > 0
            segment_globals.append(layer_globals[is_first].mean(0))
            num_distinct.append(len(segment))
        counts = torch.tensor(num_distinct, device=frames.device)
        return torch.cat([average_globals(torch.stack(segment_globals), counts), *local_tokens])

    def _find_places(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.eq(input_ids, self.config.video_token_index)

    def embed(self, input_ids: torch.Tensor, visual_tokens: VisualTokens | None = None) -> torch.Tensor:
        """Embeddings (B, T, width) of `input_ids` (B, T); projected features in place of video tokens.

        Raises ValueError unless there are as many visual tokens as places for them.
        """
        embeddings = self.get_input_embeddings()
        if visual_tokens is None:
            return embeddings(input_ids)
        is_visual = self._find_places(input_ids)
        # The placeholder's own row is never used, and the tables of some LLaVA layouts have none.
        inputs_embeds = embeddings(input_ids.masked_fill(is_visual, 0))
        features, num_places = flatten_visual_tokens(visual_tokens), int(is_visual.sum())
        if len(features) != num_places:
            raise ValueError(
                f"{len(features)} visual tokens for {num_places} video tokens "
                f"(id {self.config.video_token_index}) in input_ids; they must be equal."
            )
        projector_dtype = self.multi_modal_projector.linear_1.weight.dtype
        projected = self.multi_modal_projector(features.to(inputs_embeds.device, projector_dtype))
        return inputs_embeds.masked_scatter(is_visual[..., None], projected.to(inputs_embeds))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        visual_tokens: VisualTokens | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        if pixel_values_videos is not None:
            if visual_tokens is not None:
                raise ValueError("Give either pixel_values_videos or visual_tokens.")
            visual_tokens = self.get_video_features(pixel_values_videos)
        if inputs_embeds is not None:
            if input_ids is not None or visual_tokens is not None:
                raise ValueError("inputs_embeds stand alone; `embed` makes them with visual tokens in place.")
        elif input_ids is None:
            raise ValueError("Give either input_ids or inputs_embeds.")
        else:
            is_prefill = past_key_values is None or past_key_values.get_seq_length() == 0
            if visual_tokens is None and is_prefill and self._find_places(input_ids).any():
                raise ValueError("input_ids hold video tokens, but no visual_tokens or pixels are given.")
            inputs_embeds = self.embed(input_ids, visual_tokens)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return LlavaModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class LongVLMForConditionalGeneration(LongVLMPreTrainedModel, GenerationMixin):
    """LongVLMModel with the language model's head; the class to ask, to train and to save."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LongVLMConfig) -> None:
        super().__init__(config)
        self.model = LongVLMModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        visual_tokens: VisualTokens | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """Logits (B, T, vocabulary); with `labels` (B, T; -100: nothing to learn) the next-token loss.

        Args:
            pixel_values_videos: (V, T, 3, R, R), normalised frames of V videos, in the order in which their
                places stand in `input_ids`; or instead
            visual_tokens: features before the projector: (V, G + S·M, D), (n, D), or a sequence of (n_i, D).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values_videos=pixel_values_videos,
            visual_tokens=visual_tokens,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return LlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """As in transformers; visual tokens are read once, at prefill, as pixel values are already."""
        if not is_first_iteration and kwargs.get("use_cache", True):
            kwargs.pop("visual_tokens", None)
        return super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, input_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Rows are repeated for beams and several return sequences: their visual tokens have to follow them.

        transformers repeats tensors along their first axis, which is right only where each row has one video.
        """
        visual_tokens, pixels = kwargs.pop("visual_tokens", None), kwargs.pop("pixel_values_videos", None)
        if expand_size > 1 and pixels is not None:
            visual_tokens, pixels = self.model.get_video_features(pixels), None
        if expand_size > 1 and visual_tokens is not None and input_ids is not None:
            tokens_per_row = (input_ids == self.config.video_token_index).sum(1).tolist()
            rows = flatten_visual_tokens(visual_tokens).split(tokens_per_row)
            visual_tokens = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, input_ids=input_ids, **kwargs)
        visual = {"visual_tokens": visual_tokens, "pixel_values_videos": pixels}
        return input_ids, kwargs | {name: value for name, value in visual.items() if value is not None}
