"""What turns a video's frames into an index without any language model: an encoder and its settings.

It comes from a whole checkpoint, or from a vision tower alone, which is then read as the paper reads its CLIP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from longvlm.errors import LongVLMError
from longvlm.index_builder import IndexBuilder
from longvlm.model.checkpoints import load_encoder, load_tower_config, resolve_model
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.placement import choose_device, choose_dtype
from longvlm.pipeline import LongVLM
from longvlm.stages.merging import merge_segments
from longvlm.stages.video import VideoReader, parse_time
from longvlm.stages.vision import VisionEncoder
from longvlm.types import Compression, FrameFeatures, Frames, MergedSegments, Sampling, SamplingMode, VideoInfo
from longvlm.video_index import VideoIndex


@dataclass(frozen=True)
class Extractor:
    """An encoder, how its features are compressed, and which frames are looked at.

    The encoder may give more global layers than `compression` keeps: indexes of `start` have all that it gives.
    """

    encoder: VisionEncoder
    compression: Compression
    sampling: Sampling

    def read(self, reader: VideoReader) -> Iterator[Frames]:
        """A video's segments as the encoder wants them."""
        return reader.segments(
            self.sampling,
            frames_per_segment=self.compression.frames_per_segment,
            image_size=self.encoder.image_size,
            fit=self.compression.fit,
        )

    def start(self) -> Building:
        return Building(self)

    def encode(self, segments: Sequence[tuple[Building, Frames]]) -> None:
        """Encode and merge segments of one video or several together, and add each to its video's index.

        A video's own must come in order. A batch that the device has no room for is halved. Raises LongVLMError where
        it has none for a single segment.
        """
        try:
            encoded = self._encode([frames for _, frames in segments])
        except torch.OutOfMemoryError as error:
            if len(segments) == 1:
                num_frames, device = self.compression.frames_per_segment, self.encoder.tower.device
                raise LongVLMError(
                    f"{device} has no room to encode a segment of {num_frames} frames; choose another --device."
                ) from error
            encoded = None
        if encoded is None:  # here the error, and with it what was half done, is gone
            half = len(segments) // 2
            self.encode(segments[:half])
            self.encode(segments[half:])
            return
        for (building, _), (features, merged) in zip(segments, encoded, strict=True):
            building.add(features, merged)

    def _encode(self, segments: Sequence[Frames]) -> list[tuple[FrameFeatures, MergedSegments]]:
        features = self.encoder.encode_segments(segments)
        patches = torch.stack([one.patches.flatten(0, 1) for one in features])  # (S, K·P, D)
        merged = merge_segments(patches, self.compression)
        return [(one, merged[place : place + 1]) for place, one in enumerate(features)]


class Building:
    """One video's index in the making: its segments are added in order, then it is finished."""

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor
        self._builder = IndexBuilder()
        self._global_layers = 0

    def add(self, features: FrameFeatures, merged: MergedSegments) -> None:
        """The next segment's features, and its merged tokens (S = 1)."""
        self._global_layers = features.layer_globals.shape[1]
        self._builder.add(features, merged)

    def finish(self, info: VideoInfo, lost_seconds: float) -> VideoIndex:
        encoder, settings = self._extractor.encoder, self._extractor.compression
        return self._builder.build(
            video=info,
            sampling=self._extractor.sampling,
            compression=dataclasses.replace(settings, global_layers=self._global_layers),
            encoder_name=encoder.name,
            encoder_fingerprint=encoder.fingerprint,
            lost_seconds=lost_seconds,
        )


def extractor_of_model(model: LongVLM, sampling: Sampling, *, all_layers: bool = False) -> Extractor:
    """The extractor that gives what `model.encode` gives; with `all_layers`, the [CLS] of every hidden state.

    Only the vision tower is loaded.
    """
    if not all_layers:
        return Extractor(model.encoder, model.compression, sampling)
    encoder = load_encoder(
        model.folder,
        model.config,
        compression=_with_all_layers(model.compression, model.config.vision_config),
        device=model.device,
        dtype=model.dtype,
    )
    return Extractor(encoder, model.compression, sampling)


def extractor_of_tower(
    tower: str,
    sampling: Sampling,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    all_layers: bool = False,
) -> Extractor:
    """An extractor with the paper's settings from the folder or hub id of a CLIP, SigLIP or DINOv2 model.

    Raises LongVLMError where that can't be read.
    """
    chosen_device = choose_device(device)
    folder = resolve_model(tower)
    vision_config = load_tower_config(folder)
    compression = Compression()
    if vision_config.hidden_size % compression.merge_heads:
        compression = dataclasses.replace(compression, merge_heads=vision_config.num_attention_heads)
    encoder = load_encoder(
        folder,
        LongVLMConfig(vision_config=vision_config),
        compression=_with_all_layers(compression, vision_config) if all_layers else compression,
        device=chosen_device,
        dtype=choose_dtype(dtype, chosen_device),
    )
    return Extractor(encoder, compression, sampling)


def _with_all_layers(compression: Compression, vision_config: PreTrainedConfig) -> Compression:
    """As many global layers as the tower has hidden states: the embeddings' output, and one a layer."""
    return dataclasses.replace(compression, global_layers=vision_config.num_hidden_layers + 1)


def plan_paper_sampling(
    num_frames: int | None,
    fps: float | None,
    max_frames: int | None,
    start: float | str | None,
    end: float | str | None,
    mode: SamplingMode,
) -> Sampling:
    """The frames to look at where there is no model to have settings of its own: the paper's 100 by default."""
    return Sampling(
        num_frames=Sampling.num_frames if num_frames is None and fps is None else num_frames,
        fps=fps,
        max_frames=max_frames,
        start_seconds=0.0 if start is None else parse_time(start),
        end_seconds=None if end is None else parse_time(end),
        mode=mode,
    )
