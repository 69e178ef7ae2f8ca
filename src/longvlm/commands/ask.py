"""`longvlm ask`: questions about one video, answered on stdout as text or as one JSON object."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvlm.commands import console
from longvlm.commands.loading import load_model, obtain_index, require_room, require_source
from longvlm.commands.options import AnswerOptions, ModelOptions, VideoOptions
from longvlm.errors import LongVLMError
from longvlm.stages.video_access import display_source

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from longvlm.pipeline import LongVLM
    from longvlm.types import Answer
    from longvlm.video_index import VideoIndex


def ask(
    video: str,
    questions: list[str],
    video_options: VideoOptions,
    model_options: ModelOptions,
    answer_options: AnswerOptions,
    kept_in: Path | None,
    as_json: bool,
) -> None:
    started = time.perf_counter()
    for question in questions:
        if not question.strip():
            raise LongVLMError("The question is empty; write what you want to know, in quotes.")
    if len(questions) > 1 and not any(" " in question for question in questions):
        console.note(f"these are {len(questions)} questions of one word each; to ask one, put it in quotes.")
    require_source(video)
    with console.Progress("Loading the model") as progress:
        model = load_model(model_options)
        require_settings(answer_options)
        from longvlm.model.prompting import require_answerable

        for question in questions:
            require_answerable(model.processor, model.config, question)
        require_room(model, video, video_options)
        index = obtain_index(model, video, video_options, kept_in, progress)
        progress.begin("Reading the question")
        # All prompts are made, and found to fit, before the first word is printed.
        streams = [model.stream(index, question, **dataclasses.asdict(answer_options)) for question in questions]
        if as_json:
            answers = [stream.answer for stream in streams]
    if as_json:
        print(json.dumps(describe(video, model, index, answers, time.perf_counter() - started)))
    else:
        for question, stream in zip(questions, streams, strict=True):
            if len(questions) > 1:
                console.say(f"> {question}", dim=True)
            print_stream(stream)
        answers = [stream.answer for stream in streams]
    tell_of_cut_answers(answers, answer_options)


def require_settings(options: AnswerOptions) -> None:
    """Refuse settings of answers before a video is encoded for them."""
    from longvlm.stages.answer import Decoding

    Decoding(**dataclasses.asdict(options))


def print_stream(pieces: Iterator[str]) -> None:
    """Print an answer as it comes, with a sign of life on stderr until its first word."""
    with console.Progress("Reading the question"):
        first = next(pieces, "")
    print(first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def tell_of_cut_answers(answers: list[Answer], options: AnswerOptions) -> None:
    cut = [answer for answer in answers if answer.finish_reason == "length"]
    if not cut:
        return
    subject = "the answer is" if len(answers) == 1 else f"{len(cut)} of {len(answers)} answers are"
    if all(answer.new_tokens == options.max_new_tokens for answer in cut):
        reason = f"more tokens were not allowed (--max-new-tokens {options.max_new_tokens})"
    else:
        reason = "the language model's context is full; look at fewer frames, or ask more briefly"
    console.note(f"{subject} cut short: {reason}.")


def describe(
    video: str, model: LongVLM, index: VideoIndex, answers: list[Answer], total_seconds: float
) -> dict[str, Any]:
    """What `--json` prints. Prefill and generation add up over the answers; the total includes loading."""
    from longvlm.stages.tokens import count_visual_tokens
    from longvlm.types import Timings

    timings = Timings(
        decode_seconds=index.timings.decode_seconds,
        encode_seconds=index.timings.encode_seconds,
        merge_seconds=index.timings.merge_seconds,
        prefill_seconds=sum(answer.timings.prefill_seconds for answer in answers),
        generate_seconds=sum(answer.timings.generate_seconds for answer in answers),
        total_seconds=total_seconds,
    )
    return {
        "video": console.printable(display_source(video)),
        "duration_seconds": index.video.duration_seconds,
        "frames": index.num_frames,
        "frame_times": index.frame_times,
        "segments": index.num_segments,
        "visual_tokens": count_visual_tokens(index.num_segments, index.compression),
        "model": model.name,
        "answers": [{"question": answer.question, "answer": answer.text} for answer in answers],
        "timings": dataclasses.asdict(timings),
        "peak_memory_bytes": measure_peak_memory(),
    }


def measure_peak_memory() -> int | None:
    """The most memory this process has held so far, in bytes: resident, and on the GPU if it used one.

    None on Windows, where Python can't tell.
    """
    if sys.platform == "win32":
        return None
    import torch

    status = Path("/proc/self/status")
    # getrusage may tell the peak of the program that started this one
    if status.is_file() and (peak := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        resident_bytes = int(peak[1]) * 1024
    else:
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resident_bytes = resident if sys.platform == "darwin" else resident * 1024
    on_gpu = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return resident_bytes + on_gpu
