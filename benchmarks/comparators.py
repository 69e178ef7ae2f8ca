"""What users would otherwise run, written plainly: the reference's path from a video to merged features, and the same
with PyAV and in the dtype that the machine multiplies fast.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
from torch.nn.functional import interpolate, normalize
from transformers import CLIPVisionModel

from longvlm.model.processing import CLIP_MEAN, CLIP_STD
from longvlm.pipeline import LongVLM
from longvlm.stages.video import sample_indices

SCHEDULE = (1280, 640, 320, 160, 80, 40, 10)  # the paper's: 2,560 tokens to 30
HEADS, FRAMES_PER_SEGMENT, SIDE = 16, 10, 224


def plain_tower(model: LongVLM, dtype: torch.dtype) -> CLIPVisionModel:
    """The checkpoint's tower as transformers alone would run it."""
    tower = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.encoder.tower.state_dict())
    return tower.to(dtype).eval()


def decode_with_decord(video: Path, num_frames: int) -> np.ndarray:
    """Exactly these frames, (T, H, W, 3) uint8."""
    from decord import VideoReader

    reader = VideoReader(str(video))
    return reader.get_batch(sample_indices(len(reader), num_frames)).asnumpy()


def decode_with_pyav(video: Path, num_frames: int) -> np.ndarray:
    """The same frames: seek to the keyframe before each, and decode on."""
    pictures = []
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        ticks_per_frame = 1 / (stream.average_rate * stream.time_base)
        for index in sample_indices(stream.frames, num_frames):
            wanted = round(index * ticks_per_frame) + (stream.start_time or 0)
            container.seek(wanted, stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.pts >= wanted)
            pictures.append(frame.to_ndarray(format="rgb24"))
    return np.stack(pictures)


def to_pixels(pictures: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """(T, H, W, 3) uint8 -> normalised (T, 3, 224, 224), nearest neighbour as in the reference."""
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (CLIP_MEAN, CLIP_STD))
    planes = [interpolate(torch.from_numpy(p).permute(2, 0, 1)[None].float(), (SIDE, SIDE))[0] for p in pictures]
    return ((torch.stack(planes) / 255 - mean) / std).to(dtype)


@torch.inference_mode()
def encode(tower: CLIPVisionModel, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch features (T, 256, D) of the second to last layer, and global features (5, D)."""
    states = tower(pixel_values=pixels.to(tower.device), output_hidden_states=True).hidden_states
    return states[-2][:, 1:], torch.stack([state[:, 0].mean(0) for state in states])[-5:]


@torch.inference_mode()
def merge(patches: torch.Tensor) -> torch.Tensor:
    """(T, P, D) -> (T / 10 · 30, D), level by level on whole features."""
    tokens = patches.reshape(-1, FRAMES_PER_SEGMENT * patches.shape[1], patches.shape[2])
    sizes = torch.ones_like(tokens[..., :1])
    for removed in SCHEDULE:
        metric = normalize(tokens.unflatten(2, (HEADS, -1)).mean(2), dim=-1)
        similarity, destination = (metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)).max(-1)
        order = similarity.argsort(descending=True)
        merged, kept = order[:, :removed], order[:, removed:]
        destination = destination.gather(1, merged)
        weighted = tokens * sizes
        even_tokens, odd_tokens = weighted[:, ::2], weighted[:, 1::2]
        even_sizes, odd_sizes = sizes[:, ::2], sizes[:, 1::2]

        def pick(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))

        def add(values: torch.Tensor, more: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return values.scatter_reduce(1, index[..., None].expand_as(more), more, reduce="sum")

        odd_tokens = add(odd_tokens, pick(even_tokens, merged), destination)
        odd_sizes = add(odd_sizes, pick(even_sizes, merged), destination)
        sizes = torch.cat([pick(even_sizes, kept), odd_sizes], dim=1)
        tokens = torch.cat([pick(even_tokens, kept), odd_tokens], dim=1) / sizes
    return tokens.flatten(0, 1)


def reference_path(tower: CLIPVisionModel, video: Path, num_frames: int = 100) -> torch.Tensor:
    """Global and local features (305, D), by decord and in float32."""
    patches, whole = encode(tower, to_pixels(decode_with_decord(video, num_frames), torch.float32))
    return torch.cat([whole, merge(patches)])


def plain_path(tower: CLIPVisionModel, video: Path, num_frames: int = 100) -> torch.Tensor:
    """The same, by PyAV and in the tower's dtype."""
    patches, whole = encode(tower, to_pixels(decode_with_pyav(video, num_frames), tower.dtype))
    return torch.cat([whole, merge(patches)])
