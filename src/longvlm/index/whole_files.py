"""Writing a file whole or not at all: beside its place first, then moved there."""

from __future__ import annotations

import tempfile
from pathlib import Path

from longvlm.errors import LongVLMError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step; an older one stays until then. Raises LongVLMError, naming it and the remedy."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as folder:
            whole = Path(folder) / "file"
            whole.write_bytes(content)
            whole.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise LongVLMError(f"Can't write {path} ({reason}); choose a place with room that you may write to.") from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there. Raises LongVLMError, naming it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise LongVLMError(f"Can't make the folder {path} ({reason}); choose another place.") from error
