"""LongVLM: from a video to answers, one call per stage.

Encoding goes segment by segment and keeps only merged tokens, so a long video needs the memory of one
segment, and never the language model. The parts of a checkpoint are loaded when they are first needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast, overload

import torch

from longvlm.clock import StageClock
from longvlm.errors import LongVLMError
from longvlm.index_builder import IndexBuilder
from longvlm.model.checkpoints import (
    load_config,
    load_encoder,
    load_model,
    load_processor,
    require_four_bits,
    resolve_model,
)
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.placement import choose_device, choose_dtype
from longvlm.model.processing import LongVLMProcessor
from longvlm.model.prompting import (
    Message,
    assistant_message,
    build_prompt,
    context_length,
    require_answerable,
    user_message,
)
from longvlm.stages.answer import Answerer, AnswerStream, Decoding, Prompt
from longvlm.stages.merging import merge_segments
from longvlm.stages.tokens import format_timestamp
from longvlm.stages.video import VideoSource, open_video, parse_time
from longvlm.stages.video_access import is_index, local_path
from longvlm.stages.vision import VisionEncoder
from longvlm.types import (
    Answer,
    Compression,
    Sampling,
    SamplingMode,
    Timings,
    VideoInfo,
)
from longvlm.video_index import VideoIndex

Asked = VideoIndex | VideoSource | None  # what a question can be about; None is no video at all


class DamageWarning(UserWarning):
    """A part of a video could not be decoded and was left out."""


class LongVLM:
    """A checkpoint ready to encode videos and to answer questions about them; made by `from_pretrained`."""

    def __init__(
        self,
        folder: Path,
        config: LongVLMConfig,
        processor: LongVLMProcessor,
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        load_in_4bit: bool = False,
    ) -> None:
        self.config = config
        self.processor = processor
        self.name = name
        self.device = device
        self.dtype = dtype
        self.folder = folder
        self._load_in_4bit = load_in_4bit

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        vision_tower: str | None = None,
        projector: str | Path | None = None,
        base: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        load_in_4bit: bool = False,
        compression: Compression | Mapping[str, Any] | None = None,
        timestamps: bool | None = None,
    ) -> LongVLM:
        """Open a LongVLM or LLaVA checkpoint: a folder, a hub id, or None for the bundled default.

        Only configuration and tokenizer are read; weights follow when they are first needed. `vision_tower` (a
        folder or hub id) takes the place of the checkpoint's own; `projector`, the path of an mm_projector.bin that
        the reference has trained, is merged into the checkpoint, new tokens included; `base` (a folder or hub id) is
        where the base of a model that was trained in part lies, if it has moved. `device` is CUDA where there is
        any; `dtype` (None or "auto") is bfloat16 where the device multiplies it fast, else float32; None is float32 for
        the bundled model, which is small, and whose counts suffer from rounding. A mapping as `compression` changes
        single settings of the checkpoint's, a `Compression` replaces them all; `timestamps` decides whether segment
        times are written between visual tokens.
        Raises LongVLMError for an unknown model, device, dtype or setting, and for parts that don't fit.
        """
        if load_in_4bit:
            require_four_bits()
        chosen_device = choose_device(device)
        chosen_dtype = choose_dtype("float32" if model is None and dtype is None else dtype, chosen_device)
        folder = resolve_model(model)
        config = load_config(folder, vision_tower=vision_tower, projector=projector, base=base)
        if compression is not None:
            config.override_compression(compression)
        if timestamps is not None:
            config.timestamps = timestamps
        return cls(
            folder,
            config,
            load_processor(folder, config),
            name=folder.name if model is None else str(model),
            device=chosen_device,
            dtype=chosen_dtype,
            load_in_4bit=load_in_4bit,
        )

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"LongVLM({self.name!r}, {self.device}, {dtype}, {self.compression})"

    @property
    def precision(self) -> str:
        """In which numbers it computes, for records: "bfloat16", or "bfloat16, language model in 4 bits"."""
        return str(self.dtype).removeprefix("torch.") + (", language model in 4 bits" if self._load_in_4bit else "")

    @property
    def compression(self) -> Compression:
        return self.config.compression_settings

    @cached_property
    def encoder(self) -> VisionEncoder:
        """The vision tower, loaded without the rest of the checkpoint."""
        with torch.inference_mode(False):  # weights made in that mode could never be trained, nor counted as changed
            encoder = load_encoder(
                self.folder, self.config, compression=self.compression, device=self.device, dtype=self.dtype
            )
        if "language_model" in self.__dict__:
            self.language_model.model.vision_tower = encoder.tower
        return encoder

    @cached_property
    def language_model(self) -> LongVLMForConditionalGeneration:
        """The whole model, with the encoder's own tower, so that a tower is in memory once."""
        with torch.inference_mode(False):
            model = load_model(
                self.folder, self.config, device=self.device, dtype=self.dtype, load_in_4bit=self._load_in_4bit
            )
        if "encoder" in self.__dict__:
            model.model.vision_tower = self.encoder.tower
        return model

    @cached_property
    def _answerer(self) -> Answerer:
        return Answerer(self.language_model, self.processor.tokenizer, context_length(self.config))

    def encode(
        self,
        video: VideoSource,
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        start: float | str | None = None,
        end: float | str | None = None,
        sampling: SamplingMode = "exact",
        frame_rate: float | None = None,
        allow_references: bool = False,
        on_progress: Callable[[float, str], None] | None = None,
    ) -> VideoIndex:
        """Compress a video (file, address, images, or frames (T, H, W, 3) uint8) into an index to ask.

        Without `num_frames` and `fps` the model's own sampling is used. `start` and `end`, in seconds or as
        "hh:mm:ss", count from the first presented frame. `frame_rate` is how many images, or frames in memory,
        make a second (default 1); video files carry their own times. `on_progress` is told the fraction done,
        and in words. A damaged end of the video is left out, with a DamageWarning that says how much.
        Raises LongVLMError where the video can't be read or the sampling makes no sense.
        """
        plan = self.plan_sampling(num_frames, fps, max_frames, start, end, sampling)
        settings, clock, builder = self.compression, StageClock(self.device), IndexBuilder()
        with clock.running("total_seconds"):
            with clock.running("decode_seconds"):
                reader = open_video(video, fps=frame_rate, allow_references=allow_references)
            with reader:
                encoder = self.encoder
                all_frames = reader.segments(
                    plan,
                    frames_per_segment=settings.frames_per_segment,
                    image_size=encoder.image_size,
                    fit=settings.fit,
                )
                for frames in clock.each("decode_seconds", all_frames):
                    with clock.running("encode_seconds"):
                        features = encoder(frames)
                    with clock.running("merge_seconds"):
                        merged = merge_segments(
                            features.patches.flatten(0, 1)[None], settings
                        )  # (K, P, D) -> (S=1, N, D)
                    builder.add(features, merged)
                    if on_progress is not None:
                        on_progress(*_progress(frames.times_seconds[-1], plan, reader.info))
                info, lost_seconds = reader.info, reader.lost_seconds
        if lost_seconds > 0:
            message = f"the end of {info.name} is damaged: its last {lost_seconds:.1f} s can't be decoded"
            warnings.warn(message, DamageWarning, stacklevel=2)
        return builder.build(
            video=info,
            sampling=plan,
            compression=settings,
            encoder_name=encoder.name,
            encoder_fingerprint=encoder.fingerprint,
            lost_seconds=lost_seconds,
            timings=Timings(**clock.seconds),
        )

    @overload
    def ask(
        self,
        index: Asked,
        question: str,
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        seed: int | None = ...,
    ) -> Answer: ...
    @overload
    def ask(
        self,
        index: Sequence[Asked],
        question: list[str],
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        seed: int | None = ...,
    ) -> list[Answer]: ...
    def ask(
        self,
        index: Asked | Sequence[Asked],
        question: str | list[str],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Answer | list[Answer]:
        """Answer a question about an index, a `.longvlm` file, a video (encoded first), or None, no video.

        Greedy at temperature 0, else sampled, repeatably with a `seed`. The computation of the video's part
        of the prompt is kept for the next question about the same index. A list of questions with as many
        videos is answered as one batch.
        Raises LongVLMError for an empty question, one too long for the language model, or an index that was
        made by another encoder or with other settings.
        """
        if isinstance(question, str):
            if isinstance(index, list | tuple) and any(isinstance(a, VideoIndex) or is_index(str(a)) for a in index):
                raise LongVLMError(f"One question for {len(index)} videos: a batch needs a list of as many questions.")
            stream = self.stream(
                cast(Asked, index),
                question,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
            )
            return stream.answer
        if not isinstance(index, list | tuple) or len(index) != len(question):
            count = len(index) if isinstance(index, list | tuple) else 1
            raise LongVLMError(
                f"{len(question)} questions for {count} videos: a batch needs one video for each question; "
                "to ask one video several questions, repeat its index."
            )
        decoding = Decoding(max_new_tokens, temperature, seed)
        for asked, text in zip(index, question, strict=True):
            self._require_answerable(asked, text)
        prompts = [
            self._prompt(asked, [user_message(text, with_video=asked is not None)])
            for asked, text in zip(index, question, strict=True)
        ]
        return self._answerer.answer_batch(prompts, decoding) if prompts else []

    def stream(
        self,
        index: Asked,
        question: str,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> AnswerStream:
        """Like `ask`, piece by piece as the text is generated; the stream's `answer` is the whole."""
        self._require_answerable(index, question)
        return self._stream(
            index, [user_message(question, with_video=index is not None)], max_new_tokens, temperature, seed
        )

    def chat(self, index: Asked) -> Chat:
        """A conversation about one video, which is encoded first if it is not an index yet."""
        return Chat(self, self._obtain_index(index))

    def _stream(
        self,
        asked: Asked,
        messages: list[Message],
        max_new_tokens: int,
        temperature: float,
        seed: int | None,
    ) -> AnswerStream:
        decoding = Decoding(max_new_tokens, temperature, seed)
        prompt = self._prompt(asked, messages)
        return self._answerer.stream(prompt, decoding)

    def plan_sampling(
        self,
        num_frames: int | None,
        fps: float | None,
        max_frames: int | None,
        start: float | str | None,
        end: float | str | None,
        mode: SamplingMode,
    ) -> Sampling:
        """The frames that `encode` would look at with these settings; those left out are the model's own."""
        if num_frames is None and fps is None:
            fps = self.config.default_fps
            num_frames = self.config.default_num_frames if fps is None else None
            if fps is not None and max_frames is None:
                max_frames = self.config.default_max_frames
        return Sampling(
            num_frames=num_frames,
            fps=fps,
            max_frames=max_frames,
            start_seconds=0.0 if start is None else parse_time(start),
            end_seconds=None if end is None else parse_time(end),
            mode=mode,
        )

    def _require_answerable(self, asked: Asked, question: str) -> None:
        """Refuse what will be refused whatever the video, before hours go into encoding that."""
        if asked is not None and not isinstance(asked, VideoIndex):
            require_answerable(self.processor, self.config, question)

    def _obtain_index(self, asked: Asked) -> VideoIndex | None:
        """The index that is asked about, known to be one that this model reads."""
        if asked is None:
            return None
        if isinstance(asked, VideoIndex):
            index = asked
        elif isinstance(asked, str | Path) and is_index(asked):
            index = VideoIndex.load(local_path(str(asked)))
        else:
            index = self.encode(asked)
        index.require_same_encoding(self.encoder.name, self.encoder.fingerprint, self.compression)
        return index

    def _prompt(self, asked: Asked, messages: list[Message]) -> Prompt:
        index = self._obtain_index(asked)
        # What a video has cost counts to the answer only if it was read for this very question.
        spent = Timings() if index is None or index is asked else index.timings
        return build_prompt(self.processor, self.config, messages, index, spent)


class Chat:
    """A conversation about one video; every turn sees the earlier ones.

    `messages` holds the finished turns. A turn that was broken off leaves nothing behind. Words of an answer that the
    tokenizer would take for control tokens are remembered with a blank in them.
    """

    def __init__(self, model: LongVLM, index: VideoIndex | None) -> None:
        self.model = model
        self.index = index
        self.messages: list[Message] = []

    def ask(
        self, question: str, *, max_new_tokens: int = 256, temperature: float = 0.0, seed: int | None = None
    ) -> Answer:
        """Answer the next question; see `LongVLM.ask`."""
        stream = self.stream(question, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return stream.answer

    def stream(
        self, question: str, *, max_new_tokens: int = 256, temperature: float = 0.0, seed: int | None = None
    ) -> AnswerStream:
        """Like `ask`, piece by piece."""
        message = user_message(question, with_video=self.index is not None and not self.messages)
        conversation = [*self.messages, message]
        stream = self.model._stream(self.index, conversation, max_new_tokens, temperature, seed)

        def pieces() -> Generator[str, None, Answer]:
            yield from stream
            said = self.model.processor.break_up_reserved(stream.answer.text)
            self.messages = [*conversation, assistant_message(said)]
            return stream.answer

        return AnswerStream(pieces())


def _progress(seconds: float, plan: Sampling, info: VideoInfo) -> tuple[float, str]:
    """The fraction done when the frame at `seconds` is encoded (0 for a live stream), and words for it."""
    ends = [end for end in (plan.end_seconds, info.duration_seconds) if end is not None]
    length = min(ends) - plan.start_seconds if ends else 0.0
    fraction = min(1.0, (seconds - plan.start_seconds) / length) if length > 0 else 0.0
    return fraction, f"Encoded up to {format_timestamp(seconds)}"
