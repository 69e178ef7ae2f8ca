"""From what the user named to a model and an encoded video: shared by the commands that answer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvlm.commands import console
from longvlm.commands.options import EncoderOptions, ModelOptions, VideoOptions
from longvlm.errors import LongVLMError
from longvlm.heap import keep_one_heap
from longvlm.index.video_folders import shorten
from longvlm.stages.video_access import is_index, local_path
from longvlm.whole_files import require_writable

if TYPE_CHECKING:
    from longvlm.pipeline import LongVLM
    from longvlm.types import Sampling
    from longvlm.video_index import VideoIndex


def require_source(source: str) -> None:
    """Refuse a path that can't be read at once, before seconds go into loading a model."""
    if "://" in source:
        return
    name = shorten(source)
    try:
        local_path(source).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LongVLMError(
            f"No such video: {name}. Give the path of a file or folder, or an http(s) or rtsp address."
        ) from error
    except OSError as error:
        raise LongVLMError(
            f"Can't open the video {name}: {error.strerror}. The video comes first, then the question."
        ) from error


@contextmanager
def loading_libraries(verbose: bool) -> Iterator[None]:
    """For the import of what brings torch and transformers, before a model is run."""
    keep_one_heap()
    with console.collecting_no_garbage():
        if not verbose:
            console.silence_libraries()
        yield


def load_model(options: EncoderOptions) -> LongVLM:
    """Open the chosen model, and say so if it is the bundled one, which knows little."""
    only_to_answer: dict[str, Any] = {}
    if isinstance(options, ModelOptions):
        only_to_answer = {"load_in_4bit": options.load_in_4bit}
    if options.model is None:
        console.note(
            "this is a small demonstration model that knows only its synthetic world of moving shapes; "
            "choose another with --model."
        )
    elif re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", options.model) and not Path(options.model).exists():
        console.note(f"{options.model} is loaded from the Hugging Face hub, or from its cache; -v shows progress.")
    with loading_libraries(options.verbose):
        from longvlm.pipeline import LongVLM

    return LongVLM.from_pretrained(
        options.model,
        vision_tower=options.vision_tower,
        base=options.base,
        projector=options.projector,
        device=options.device,
        dtype=options.dtype,
        **only_to_answer,
    )


def require_room(model: LongVLM, source: str, options: VideoOptions) -> None:
    """Refuse a file whose visual tokens don't fit the language model, before minutes go into its encoding."""
    if is_index(source) or "://" in source:  # what an address would show, costs as much to know as to read
        return
    from longvlm.model.prompting import context_length
    from longvlm.report.plan import count_tokens
    from longvlm.stages.tokens import count_segments, count_visual_tokens
    from longvlm.stages.video import open_video

    sampling, compression, limit = plan_sampling(model, options), model.compression, context_length(model.config)
    most_frames = sampling.num_frames or sampling.max_frames
    if limit is None or (
        most_frames is not None
        and count_visual_tokens(count_segments(most_frames, compression.frames_per_segment), compression) < limit // 2
    ):
        return
    with open_video(source, fps=options.frame_rate, allow_references=options.allow_references) as reader:
        if reader.info.duration_seconds is None:  # a live stream, whose frames nobody knows yet
            return
        counts = count_tokens(model, reader, sampling)
    if not counts.fits:
        raise LongVLMError(
            f"The prompt would have about {counts.prompt_tokens:,} tokens, {counts.visual_tokens:,} of them visual, "
            f"but the language model's context holds {counts.context_tokens:,}, the answer included. Look at fewer of "
            f"the {counts.frames:,} frames (--num-frames, or --fps with --max-frames), or at a part (--start, --end)."
        )


def obtain_index(
    model: LongVLM, source: str, options: VideoOptions, kept_in: Path | None, progress: console.Progress
) -> VideoIndex:
    """The index that `source` is, or that `kept_in` holds of it; else encode, and keep it there if asked."""
    if is_index(source):
        if kept_in is not None:
            raise LongVLMError(f"{source} is an index itself, so --index {kept_in} has no use; leave it out.")
        return _load_slice(source, options)
    if kept_in is None:
        return encode_video(model, source, options, progress)
    require_writable(kept_in)
    if kept_in.exists():
        from longvlm.video_index import VideoIndex

        index = VideoIndex.load(kept_in)
        misfit = _find_misfit(index, model, source, options)
        if misfit is None:
            tell_what_is_missing(index)
            return index
        console.note(f"{kept_in} is made anew: {misfit}")
    index = encode_video(model, source, options, progress)
    index.save(kept_in)
    return index


def _find_misfit(index: VideoIndex, model: LongVLM, source: str, options: VideoOptions) -> str | None:
    """Why a kept index does not answer for this video, model and sampling; None if it does."""
    from longvlm.stages.video import open_video

    with open_video(source, fps=options.frame_rate, allow_references=options.allow_references) as reader:
        if reader.info.fingerprint != index.video.fingerprint:
            return f"it holds another video ({index.video.name})."
        if reader.info.average_fps != index.video.average_fps:
            return f"it holds the images at another rate ({index.video.average_fps:g} a second)."
    if plan_sampling(model, options) != index.sampling or index.has_gaps:
        return f"it holds other frames ({index.num_frames} of them)."
    try:
        index.require_same_encoding(model.encoder.name, model.encoder.fingerprint, model.compression)
    except LongVLMError as misfit:
        return str(misfit)
    return None


def plan_sampling(model: LongVLM, options: VideoOptions) -> Sampling:
    """Which frames `encode_video` looks at."""
    return model.plan_sampling(
        options.num_frames, options.fps, options.max_frames, options.start, options.end, options.sampling
    )


def encode_video(model: LongVLM, source: str, options: VideoOptions, progress: console.Progress) -> VideoIndex:
    from longvlm.pipeline import DamageWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamageWarning)  # told in our own way below
        index = model.encode(
            source,
            num_frames=options.num_frames,
            fps=options.fps,
            max_frames=options.max_frames,
            start=options.start,
            end=options.end,
            sampling=options.sampling,
            frame_rate=options.frame_rate,
            allow_references=options.allow_references,
            on_progress=progress.update,
        )
    tell_what_is_missing(index)
    return index


def tell_what_is_missing(index: VideoIndex) -> None:
    """Say where less was looked at than asked for: a damaged tail, few frames, or few keyframes."""
    warn_of_loss(index)
    wanted = index.sampling.num_frames
    if wanted is None or index.num_frames >= wanted or index.lost_seconds > 0:
        return
    reason = "the video has no more to spread them over, so some were taken twice."
    if index.sampling.mode == "keyframe":
        reason = "the nearest keyframes coincide; --sampling exact, the default, finds more."
    console.note(f"looked at {index.num_frames} different frames instead of {wanted}: {reason}")


def warn_of_loss(index: VideoIndex) -> None:
    if index.lost_seconds > 0:
        console.warn(
            f"the end of {index.video.name} is damaged: the last {index.lost_seconds:.1f} s could not be "
            "decoded and were left out."
        )


def _load_slice(path: str, options: VideoOptions) -> VideoIndex:
    from longvlm.stages.video import parse_time
    from longvlm.video_index import VideoIndex

    if options.chooses_frames:
        raise LongVLMError(
            f"{path} is already encoded: --num-frames, --fps, --max-frames, --sampling and --frame-rate can't "
            "change it. Leave them out, or encode the video again."
        )
    index = VideoIndex.load(local_path(path))
    warn_of_loss(index)
    if options.start is None and options.end is None:
        return index
    start_seconds = 0.0 if options.start is None else parse_time(options.start)
    end_seconds = None if options.end is None else parse_time(options.end)
    if end_seconds is not None and end_seconds <= start_seconds:
        raise LongVLMError(f"--end {options.end} is not after --start {options.start or 0}; swap or widen them.")
    return index.slice(start_seconds, end_seconds)
