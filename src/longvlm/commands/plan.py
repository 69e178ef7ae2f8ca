"""`longvlm plan`: what a video and a model will cost, before anything runs."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from longvlm.commands import console
from longvlm.commands.ask import measure_peak_memory
from longvlm.commands.loading import load_model, plan_sampling, require_source
from longvlm.commands.options import ModelOptions, VideoOptions
from longvlm.errors import LongVLMError
from longvlm.stages.video_access import display_source, is_index

if TYPE_CHECKING:
    from longvlm.pipeline import LongVLM
    from longvlm.report.plan import Plan
    from longvlm.types import VideoInfo


def plan(video: str, video_options: VideoOptions, model_options: ModelOptions, as_json: bool) -> None:
    require_source(video)
    if is_index(video):
        raise LongVLMError(f"{video} is encoded already, so there is nothing to plan; give a video.")
    with console.Progress("Measuring this machine"):
        model = load_model(model_options)
        from longvlm.report.plan import make_plan
        from longvlm.stages.video import open_video

        with open_video(video, fps=video_options.frame_rate, allow_references=video_options.allow_references) as reader:
            sampling = plan_sampling(model, video_options)
            made = make_plan(
                model,
                reader,
                sampling,
                program_bytes=measure_peak_memory() or 0,
                load_in_4bit=model_options.load_in_4bit,
            )
            info = reader.info
    if not made.counts.fits:
        console.warn(
            f"the prompt of {made.counts.prompt_tokens:,} tokens is too long for the language model, which "
            f"reads fewer than {made.counts.context_tokens:,}; look at fewer frames (--num-frames)."
        )
    if as_json:
        print(json.dumps(describe(video, info, model, made)))
    else:
        print_table(info, model, made)


def describe(video: str, info: VideoInfo, model: LongVLM, made: Plan) -> dict[str, Any]:
    counts, memory, seconds = made.counts, made.memory, made.seconds
    return {
        "video": console.printable(display_source(video)),
        "duration_seconds": info.duration_seconds,
        **dataclasses.asdict(counts),
        "fits_context": counts.fits,
        "model": model.name,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "memory_bytes": {
            **dataclasses.asdict(memory),
            "encoding_total": memory.encoding_total,
            "asking_total": memory.asking_total,
        },
        "seconds": {**dataclasses.asdict(seconds), "total": seconds.total},
    }


def print_table(info: VideoInfo, model: LongVLM, made: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    from longvlm.report.plan import ANSWER_TOKENS

    counts, memory, seconds = made.counts, made.memory, made.seconds
    dtype = str(model.dtype).removeprefix("torch.")
    duration = "" if info.duration_seconds is None else f", {info.duration_seconds:.1f} s"
    context = "" if counts.context_tokens is None else f" of at most {counts.context_tokens:,}"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("Frames looked at", f"{counts.frames:,}"),
        ("Segments", f"{counts.segments:,}"),
        ("Visual tokens", f"{counts.visual_tokens:,}"),
        ("Prompt tokens", f"{counts.prompt_tokens:,}{context}"),
        ("", ""),
        ("Memory: the program itself", _bytes(memory.program)),
        ("  encoder", _bytes(memory.encoder_weights)),
        ("  language model", _bytes(memory.language_model_weights)),
        ("  KV cache", _bytes(memory.kv_cache)),
        ("  activations", _bytes(max(memory.encoding_activations, memory.prefill_activations))),
        ("  (while loading: the file)", _bytes(memory.language_model_file)),
        ("Memory for encode", _bytes(memory.encoding_total)),
        ("Memory for ask", _bytes(memory.asking_total)),
        ("", ""),
        ("Time: reading frames", _seconds(seconds.decode)),
        ("  encoding", _seconds(seconds.encode)),
        ("  merging", _seconds(seconds.merge)),
        ("  reading the prompt", _seconds(seconds.prefill)),
        (f"  {ANSWER_TOKENS} tokens of answer", _seconds(seconds.generate)),
        ("Time for ask", _seconds(seconds.total)),
    ):
        table.add_row(name, value)
    screen = Console(highlight=False, markup=False)
    screen.print(f"{console.printable(info.name)}{duration}, with {model.name} on {model.device} in {dtype}\n")
    screen.print(table)
    screen.print("\nStarting up and reading the weights from disk come on top of the time.")


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _seconds(count: float) -> str:
    return f"{count:.0f} s" if count >= 100 else f"{count:.2f} s"
