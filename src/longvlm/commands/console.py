"""What the user sees on stderr: notes, warnings, errors, progress. Answers alone go to stdout."""

from __future__ import annotations

import gc
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import typer

from longvlm.errors import one_line
from longvlm.stages.video_access import printable

PROGRESS_AFTER_SECONDS = 2.0


def note(text: str) -> None:
    say(f"Note: {one_line(text)}", dim=True)


def warn(text: str) -> None:
    say(f"Warning: {one_line(text)}", fg="yellow")


def error(text: str) -> None:
    say(f"Error: {one_line(text)}", fg="red")


def say(line: str, **style: Any) -> None:
    """A line on stderr, in colour where a terminal is not told otherwise; nothing in it steers the terminal."""
    typer.secho(printable(line), err=True, color=False if os.environ.get("NO_COLOR") else None, **style)


def tell_failure(video: str, reason: str) -> None:
    """A line on stderr that names the video once."""
    print(printable(one_line(reason if video in reason else f"{video}: {reason}")), file=sys.stderr)


class Progress:
    """A bar on a terminal's stderr that appears if the work takes longer than two seconds, and goes.

    `update` has the signature of `LongVLM.encode(on_progress=...)`.
    """

    def __init__(self, task: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bar

        words = TextColumn("{task.description}")
        columns = (SpinnerColumn(), words, BarColumn(), TaskProgressColumn())
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(task, total=None)
        self._timer = threading.Timer(PROGRESS_AFTER_SECONDS, self._bar.start)
        self._timer.daemon = True

    def update(self, done_fraction: float, task: str) -> None:
        self._bar.update(self._task, completed=done_fraction, total=1.0, description=task)

    def begin(self, task: str) -> None:
        """Go on to work whose length isn't known."""
        self._bar.update(self._task, completed=0.0, total=None, description=task)

    def __enter__(self) -> Progress:
        if self._bar.console.is_terminal:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._bar.live.is_started:
            self._bar.stop()


def silence_libraries() -> None:
    """Keep the libraries' warnings, progress bars and log lines off stderr; call before importing them.

    PyAV is silent by itself. Any level set there would make FFmpeg's threads wait for Python's lock to say an error:
    for ever, where the thread that holds it is closing their decoder.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")

    import transformers

    transformers.utils.logging.disable_progress_bar()


@contextmanager
def collecting_no_garbage() -> Iterator[None]:
    """For the import of large libraries: nothing of them is garbage, and to look for it a hundred times, and once more
    when the process ends, takes longer than a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
