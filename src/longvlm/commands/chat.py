"""`longvlm chat`: a conversation about one video, typed or piped in line by line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from longvlm.commands import console
from longvlm.commands.ask import print_stream, require_settings, tell_of_cut_answers
from longvlm.commands.loading import load_model, obtain_index, require_room, require_source
from longvlm.commands.options import AnswerOptions, ModelOptions, VideoOptions
from longvlm.errors import LongVLMError


def chat(
    video: str,
    video_options: VideoOptions,
    model_options: ModelOptions,
    answer_options: AnswerOptions,
    kept_in: Path | None,
) -> None:
    require_source(video)
    with console.Progress("Loading the model") as progress:
        model = load_model(model_options)
        require_settings(answer_options)
        require_room(model, video, video_options)
        index = obtain_index(model, video, video_options, kept_in, progress)
    conversation = model.chat(index)
    interactive = sys.stdin.isatty()
    if interactive:
        console.note("ask away, one question a line; /new starts over, /quit or Ctrl-D ends.")
    for question in read_questions(interactive):
        if question == "/new":
            conversation = model.chat(index)
            continue
        try:
            stream = conversation.stream(question, **dataclasses.asdict(answer_options))
            print_stream(stream)
            tell_of_cut_answers([stream.answer], answer_options)
        except LongVLMError as mistake:
            if not interactive:
                raise
            console.error(str(mistake))


def read_questions(interactive: bool) -> Iterator[str]:
    """Yield the lines of stdin that are not empty, until /quit or the end."""
    if interactive:
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  (importing it gives input() line editing and a history)
    while True:
        try:
            if interactive and not sys.stdout.isatty():  # where answers go, and nothing else
                print("> ", end="", file=sys.stderr, flush=True)
            question = input("> " if interactive and sys.stdout.isatty() else "").strip()
        except EOFError:
            if interactive:
                print(file=sys.stdout if sys.stdout.isatty() else sys.stderr)
            return
        except UnicodeDecodeError as error:
            raise LongVLMError("The questions are not UTF-8 text; convert them to UTF-8.") from error
        if question == "/quit":
            return
        if question:
            yield question
