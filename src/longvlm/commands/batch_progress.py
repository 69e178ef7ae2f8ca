"""Progress of work on many videos: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from types import TracebackType

import typer

SECONDS_BETWEEN_LINES = 30.0  # where stderr is a file or a pipe


class BatchProgress:
    """Shows how far a batch is, on stderr; `update` at any rate. Use it in a `with` block."""

    def __init__(self, task: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        screen = Console(stderr=True)
        self._is_terminal = screen.is_terminal
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
        self._bar = Bar(*columns, console=screen, transient=True)
        self._task = self._bar.add_task(task, total=None)
        self._last_line_seconds = time.monotonic()

    def update(self, done: int, total: int, text: str) -> None:
        self._bar.update(self._task, completed=done, total=total, description=text)
        now = time.monotonic()
        if not self._is_terminal and now - self._last_line_seconds >= SECONDS_BETWEEN_LINES:
            self._last_line_seconds = now
            typer.echo(text, err=True)

    def __enter__(self) -> BatchProgress:
        if self._is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_terminal:
            self._bar.stop()


def describe_pace(done: int, total: int, rate: str, seconds_left: float | None) -> str:
    """Words for a bar: "12 of 100 videos, 8.1 frames/s, 0:03:20 left"."""
    parts = [f"{done} of {total} videos", rate]
    if seconds_left is not None:
        minutes, seconds = divmod(round(seconds_left), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    return ", ".join(part for part in parts if part)
