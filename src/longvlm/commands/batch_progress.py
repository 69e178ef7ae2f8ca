"""Progress of work on many videos: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from types import TracebackType

import typer

from longvlm.pace import SECONDS_BETWEEN_LINES, describe_pace


class BatchProgress:
    """Shows how far a batch is, on stderr; `count` or `update` at any rate. Use it in a `with` block."""

    def __init__(self, task: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        screen = Console(stderr=True)
        self._is_terminal = screen.is_terminal
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
        self._bar = Bar(*columns, console=screen, transient=True)
        self._task = self._bar.add_task(task, total=None)
        self._began_seconds = self._last_line_seconds = time.monotonic()

    def count(self, done: int, total: int) -> None:
        """Show how many videos are done since the beginning, and how long the others will take."""
        self.update(done, total, describe_pace(done, total, time.monotonic() - self._began_seconds))

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
