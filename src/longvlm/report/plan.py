"""The plan: what a video and a model will cost in tokens, memory and time, before anything is encoded.

Counts are exact. Times are measured on this machine: a few layers of the model with random weights, extended
to all of them, and the decoding of the video's beginning, extended to its whole. Starting up and reading the
weights from disk are left out.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig

from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.prompting import context_length
from longvlm.pipeline import LongVLM
from longvlm.stages.merging import merge_segments
from longvlm.stages.tokens import count_segments, count_visual_tokens
from longvlm.stages.video import VideoReader
from longvlm.stages.vision import MLP_WIDENING, count_frames_at_once, count_patches, encode_pixels, image_side
from longvlm.types import Sampling

EXAMPLE_QUESTION = "What happens in this video, from its beginning to its end?"
ANSWER_TOKENS = 50
DECODING_TRIAL_SECONDS = 1.0
MEASURED_WHOLE = 100_000_000  # models up to this many parameters are measured with all their layers
MEASURED_LAYERS = 4  # of others; a difference of one layer, times as many as there are, would be mostly noise
MEASURED_PROMPT_TOKENS = 512  # longer prompts are taken to be as fast per token
BYTES_PER_4BIT_WEIGHT = 0.53  # with the scales of its block


@dataclass(frozen=True)
class Counts:
    """`context_tokens` is how many tokens the language model can read, or None if it states no limit."""

    frames: int
    segments: int
    visual_tokens: int
    prompt_tokens: int
    context_tokens: int | None

    @property
    def fits(self) -> bool:
        return self.context_tokens is None or self.prompt_tokens < self.context_tokens


@dataclass(frozen=True)
class Memory:
    """Bytes. Encoding needs the program, the encoder and its activations; asking needs all but those.

    The language model's file is mapped while weights are read that have another dtype on disk, and gone before
    activations come.
    """

    program: int
    encoder_weights: int
    language_model_weights: int
    language_model_file: int
    kv_cache: int
    encoding_activations: int
    prefill_activations: int

    @property
    def encoding_total(self) -> int:
        return self.program + self.encoder_weights + self.encoding_activations

    @property
    def asking_total(self) -> int:
        weights = self.encoder_weights + self.language_model_weights
        running = self.kv_cache + max(self.prefill_activations, self.encoding_activations)
        return self.program + weights + max(running, self.language_model_file)


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds; `generate` is for an answer of ANSWER_TOKENS tokens."""

    decode: float
    encode: float
    merge: float
    prefill: float
    generate: float

    @property
    def total(self) -> float:
        return self.decode + self.encode + self.merge + self.prefill + self.generate


@dataclass(frozen=True)
class Plan:
    """What `make_plan` foretells."""

    counts: Counts
    memory: Memory
    seconds: Seconds


def make_plan(
    model: LongVLM, reader: VideoReader, sampling: Sampling, *, program_bytes: int, load_in_4bit: bool = False
) -> Plan:
    """Foretell the cost of encoding the opened video and asking one question; `model`'s weights are not read.

    `program_bytes` is the memory of the process before any of it; `load_in_4bit` counts for memory alone.
    Raises LongVLMError for a live stream and for sampling that makes no sense.
    """
    counts = count_tokens(model, reader, sampling)
    encoder_parameters, other_parameters = _count_parameters(model)
    prefill_seconds, token_seconds = _measure_language_model(model, counts.prompt_tokens, other_parameters)
    encode_seconds, merge_seconds = _measure_encoder(model, encoder_parameters)
    return Plan(
        counts,
        Memory(
            program=program_bytes,
            encoder_weights=encoder_parameters * model.dtype.itemsize,
            language_model_weights=_language_model_bytes(model, other_parameters, load_in_4bit),
            language_model_file=other_parameters * _bytes_mapped(model),
            kv_cache=_kv_cache_bytes(model, counts.prompt_tokens + ANSWER_TOKENS),
            encoding_activations=_encoding_bytes(model),
            prefill_activations=_prefill_bytes(model, counts.prompt_tokens),
        ),
        Seconds(
            decode=_measure_decoding(model, reader, sampling, counts.segments),
            encode=encode_seconds * counts.segments,
            merge=merge_seconds * counts.segments,
            prefill=prefill_seconds,
            generate=token_seconds * ANSWER_TOKENS,
        ),
    )


def count_tokens(model: LongVLM, reader: VideoReader, sampling: Sampling) -> Counts:
    times = reader.planned_times(sampling)
    compression = model.compression
    segments = count_segments(len(times), compression.frames_per_segment)
    starts = [min(times[0], sampling.start_seconds), *times[:: compression.frames_per_segment][1:]]
    content = [{"type": "video"}, {"type": "text", "text": EXAMPLE_QUESTION}]
    prompt = model.processor.prompt(
        [{"role": "user", "content": content}],
        num_segments=segments,
        compression=compression,
        segment_spans=[(start, start) for start in starts] if model.config.timestamps else None,
    )
    return Counts(
        frames=len(set(times)),
        segments=segments,
        visual_tokens=count_visual_tokens(segments, compression),
        prompt_tokens=len(model.processor.encode(prompt)),
        context_tokens=context_length(model.config),
    )


def _language_model_bytes(model: LongVLM, parameters: int, load_in_4bit: bool) -> int:
    if not load_in_4bit:
        return parameters * model.dtype.itemsize
    text = model.config.text_config
    whole = text.vocab_size * text.hidden_size * (1 if model.config.tie_word_embeddings else 2)
    return round(whole * model.dtype.itemsize + (parameters - whole) * BYTES_PER_4BIT_WEIGHT)


def _bytes_mapped(model: LongVLM) -> int:
    """Bytes of one weight on disk; 0 where it is taken as it stands there."""
    stored = model.config.dtype
    return stored.itemsize if isinstance(stored, torch.dtype) and stored != model.dtype else 0


def _kv_cache_bytes(model: LongVLM, tokens: int) -> int:
    text = model.config.text_config
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * kv_heads * head_width * tokens * model.dtype.itemsize


def _encoding_bytes(model: LongVLM) -> int:
    """The copies of a segment's features that are alive at once in a layer of the tower, or while merging."""
    vision = model.config.vision_config
    patches, num_frames = _patches_per_segment(model), model.compression.frames_per_segment
    at_once = patches // num_frames * count_frames_at_once(vision, num_frames, model.device, model.dtype)
    in_layer = at_once * (6 + 2 * MLP_WIDENING) * vision.hidden_size * model.dtype.itemsize
    in_merging = 4 * (3 * patches * model.config.visual_width + 2 * (patches // 2) ** 2)  # float32; similarities
    return max(in_layer, in_merging)


def _prefill_bytes(model: LongVLM, tokens: int) -> int:
    text = model.config.text_config
    return tokens * (8 * text.hidden_size + 3 * text.intermediate_size) * model.dtype.itemsize


def _patches_per_segment(model: LongVLM) -> int:
    config = model.config
    per_frame = count_patches(config.vision_config, config.vision_feature_select_strategy)
    return model.compression.frames_per_segment * per_frame


def _count_parameters(model: LongVLM) -> tuple[int, int]:
    """Parameters of the vision tower, and of all the rest."""
    with torch.device("meta"):
        skeleton = LongVLMForConditionalGeneration(model.config)
    tower = sum(parameter.numel() for parameter in skeleton.model.vision_tower.parameters())
    return tower, sum(parameter.numel() for parameter in skeleton.parameters()) - tower


@torch.inference_mode()
def _measure_encoder(model: LongVLM, parameters: int) -> tuple[float, float]:
    """Seconds that one segment takes to encode, and to merge."""
    config, settings = model.config.vision_config, model.compression
    side = image_side(config)
    pixels = torch.rand((settings.frames_per_segment, 3, side, side), device=model.device).to(model.dtype)

    def run_tower(num_layers: int) -> float:
        tower = AutoModel.from_config(_with_layers(config, num_layers), dtype=model.dtype).to(model.device).eval()
        parts = pixels.split(count_frames_at_once(config, len(pixels), model.device, model.dtype))
        run = partial(encode_pixels, tower, feature_layer=-1, select_strategy="full", global_layers=0)
        return _time(lambda: [run(some) for some in parts], model.device)

    features = torch.randn(1, _patches_per_segment(model), model.config.visual_width, device=model.device).to(
        model.dtype
    )

    def merge() -> None:
        merge_segments(features, settings)

    encode_seconds = _extend(run_tower, config.num_hidden_layers, parameters)
    return encode_seconds, _time(merge, model.device)


@torch.inference_mode()
def _measure_language_model(model: LongVLM, prompt_tokens: int, parameters: int) -> tuple[float, float]:
    """Seconds to prefill the prompt, and to generate one token after it."""
    config = model.config.text_config
    measured_tokens = min(prompt_tokens, MEASURED_PROMPT_TOKENS)
    prompt = torch.zeros(1, measured_tokens, dtype=torch.long, device=model.device)

    def build(num_layers: int) -> nn.Module:
        built = AutoModelForCausalLM.from_config(_with_layers(config, num_layers), dtype=model.dtype)
        return built.to(model.device).eval()

    def prefill(num_layers: int) -> float:
        language_model = build(num_layers)
        return _time(lambda: language_model(input_ids=prompt, logits_to_keep=1), model.device)

    def generate(num_layers: int) -> float:
        language_model = build(num_layers)
        cache = language_model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values
        return _time(lambda: language_model(input_ids=prompt[:, :1], past_key_values=cache), model.device)

    prefill_seconds = _extend(prefill, config.num_hidden_layers, parameters) * prompt_tokens / measured_tokens
    return prefill_seconds, _extend(generate, config.num_hidden_layers, parameters)


def _measure_decoding(model: LongVLM, reader: VideoReader, sampling: Sampling, num_segments: int) -> float:
    """Seconds to read all segments, from those of the video's beginning that a short trial gets through."""
    settings = model.compression
    began, num_read = time.perf_counter(), 0
    for _ in reader.segments(
        sampling,
        frames_per_segment=settings.frames_per_segment,
        image_size=image_side(model.config.vision_config),
        fit=settings.fit,
    ):
        num_read += 1
        if time.perf_counter() - began > DECODING_TRIAL_SECONDS:
            break
    return (time.perf_counter() - began) / max(1, num_read) * num_segments


def _with_layers(config: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = num_layers
    if getattr(shallow, "layer_types", None):
        shallow.layer_types = shallow.layer_types[:num_layers]
    return shallow


def _extend(measure: Callable[[int], float], num_layers: int, parameters: int) -> float:
    """Seconds of all layers: measured whole if that is cheap, else with one and some more layers and extended."""
    if parameters <= MEASURED_WHOLE or num_layers <= MEASURED_LAYERS:
        return measure(num_layers)
    one, some = measure(1), measure(MEASURED_LAYERS)
    return one + (num_layers - 1) * max(0.0, some - one) / (MEASURED_LAYERS - 1)


def _time(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of three runs after one to warm up, in seconds."""
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
