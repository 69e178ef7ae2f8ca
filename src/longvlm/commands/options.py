"""The options that several commands share, each group declared once as a dataclass. Free of heavy imports."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def _option(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, show_default=False, **settings)


@dataclass(frozen=True)
class VideoOptions:
    """Which frames of a video are looked at. Times are still text, as the user typed them."""

    num_frames: Annotated[
        int | None,
        _option(
            min=1,
            help="Look at this many frames, evenly spread. Default: the model's own; the paper's is 100.",
        ),
    ] = None
    fps: Annotated[float | None, _option(help="Instead: look at this many frames per second.")] = None
    max_frames: Annotated[int | None, _option(min=1, help="With --fps: at most this many frames.")] = None
    start: Annotated[
        str | None,
        _option(metavar="TIME", help="Begin here: seconds, mm:ss or hh:mm:ss on the player's clock."),
    ] = None
    end: Annotated[str | None, _option(metavar="TIME", help="Stop here.")] = None
    sampling: Annotated[
        Literal["exact", "keyframe"],
        _option(help="'exact' frames (default), or the nearest 'keyframe': faster, and times stay true."),
    ] = "exact"
    frame_rate: Annotated[
        float | None,
        _option(help="Images per second, if VIDEO is a folder of images or one image. Default: 1."),
    ] = None
    allow_references: Annotated[
        bool,
        _option("--allow-references", help="Open playlists and files that point at other files or addresses."),
    ] = False

    @property
    def chooses_frames(self) -> bool:
        """Whether an option asks for frames in a way that an index, already encoded, can't follow."""
        numbers = (self.num_frames, self.fps, self.max_frames, self.frame_rate)
        return self.sampling != "exact" or any(number is not None for number in numbers)


@dataclass(frozen=True)
class EncoderOptions:
    """Whose encoder looks at videos, where it runs, and how much is told."""

    model: Annotated[
        str | None,
        _option(
            metavar="FOLDER|HUB_ID",
            help="A LongVLM or LLaVA checkpoint. Default: the bundled demonstration model.",
        ),
    ] = None
    vision_tower: Annotated[
        str | None,
        _option(metavar="FOLDER|HUB_ID", help="Take the vision encoder from here, in place of the checkpoint's."),
    ] = None
    base: Annotated[
        str | None,
        _option(
            metavar="FOLDER|HUB_ID",
            help="For a model that holds only what `longvlm train` changed: what it started from, if that has moved.",
        ),
    ] = None
    projector: Annotated[
        Path | None,
        _option(metavar="FILE", help="Use the projector in this mm_projector.bin, as the original code saves it."),
    ] = None
    device: Annotated[str | None, _option(help="cpu, cuda, cuda:1, … Default: CUDA if there is any.")] = None
    dtype: Annotated[
        str | None,
        _option(
            help="float32, bfloat16 or float16. Default: bfloat16 where the machine is fast at it, but float32 for the "
            "bundled model."
        ),
    ] = None
    verbose: Annotated[bool, _option("--verbose", "-v", help="Let the libraries' own messages through to stderr.")] = (
        False
    )


@dataclass(frozen=True)
class ModelOptions(EncoderOptions):
    """Which model answers, besides."""

    load_in_4bit: Annotated[
        bool,
        _option("--load-in-4bit", help="Hold the language model in 4 bits (needs longvlm[quantization])."),
    ] = False


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are generated."""

    max_new_tokens: Annotated[int, _option(min=1, help="Longest answer, in tokens. Default: 256.")] = 256
    temperature: Annotated[float, _option(min=0.0, help="0 (default) always takes the likeliest word.")] = 0.0
    seed: Annotated[int | None, _option(help="Makes answers at a temperature above 0 repeatable.")] = None


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges free answers, besides the offline judge, which always does."""

    judge_model: Annotated[
        str | None,
        _option(
            metavar="NAME",
            help="Also ask this model, once an answer and axis; the key is read from OPENAI_API_KEY.",
        ),
    ] = None
    judge_url: Annotated[
        str | None, _option(metavar="URL", help="Its OpenAI-compatible endpoint. Default: that of OpenAI.")
    ] = None
    judge_concurrency: Annotated[
        int, _option(min=1, help="How many judgements are asked for at a time. Default: 8.")
    ] = 8
    prompts: Annotated[
        Path | None, _option(metavar="DIR", help="Judge with your own prompts: qa.txt, correctness.txt, …")
    ] = None


IndexOption = Annotated[
    Path | None,
    _option(
        "--index",
        metavar="FILE",
        help="A .longvlm file: used if it fits video, model and options; else the video is encoded and kept in it.",
    ),
]


def spread_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let `command` take option groups: a parameter whose type is a dataclass becomes an option per field.

    typer reads signatures, so the wrapper returned carries one with the fields in the group's place.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and dataclasses.is_dataclass(hint)}
    parameters = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name not in groups
    ]
    for group in groups.values():
        field_hints = typing.get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=field_hints[field.name],
            )
            for field in dataclasses.fields(group)
        ]
    parameters.sort(key=lambda parameter: parameter.kind)

    @functools.wraps(command)
    def gather(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        command(**given)

    del gather.__wrapped__  # typer would follow it to the ungrouped signature
    gather.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    gather.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return gather
