"""Files that grow line by line: what is in them survives a kill, and is not done twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from longvlm.errors import LongVLMError


class JsonLines:
    """A file of one JSON object a line; `lines` are those that are there, `append` adds one and flushes it.

    A last line that was broken off is cut away. Raises LongVLMError for a file that is anything else, and where
    nothing more can be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise LongVLMError(f"Can't read {path}: {error.strerror or error}; choose another output.") from error
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise self._damaged(number) from error
            if not isinstance(entry, dict):
                raise self._damaged(number)
            self.lines.append(entry)
        if len(whole) < len(content):
            with self._naming_what_is_not_written(), path.open("r+b") as file:
                file.truncate(len(whole))

    def _damaged(self, number: int) -> LongVLMError:
        return LongVLMError(f"{self.path}, line {number} is not a JSON object; remove that line, or the file.")

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line; it is with the operating system when this returns."""
        with self._naming_what_is_not_written():
            if self._file is None:
                self._file = self.path.open("ab")
            self._file.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            self._file.flush()
        self.lines.append(dict(entry))

    @contextmanager
    def _naming_what_is_not_written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LongVLMError(
                f"Can't write {self.path}: {error.strerror or error}. What was done is kept; see to that and run the "
                "same command again."
            ) from error

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:  # it tries once more to write the line of which `append` has said that it can't be written
                if value is None:
                    raise
