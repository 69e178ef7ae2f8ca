"""Files written whole or not at all: beside their place first, then moved there. And folders for one process alone."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from longvlm.errors import LongVLMError

_LOCK = "lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # what network file systems without them say
_held: set[TextIO] = set()  # locks of this process


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by `replacing` it. Raises LongVLMError, naming it and the remedy."""
    try:
        with replacing(path) as whole:
            whole.write_bytes(content)
    except OSError as error:
        reason = error.strerror or str(error)
        raise LongVLMError(f"Can't write {path} ({reason}); choose a place with room that you may write to.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file of the same ending to write, which takes the place of `path` when all has gone well. Raises OSError.

    It keeps the mode of the file that was there, or gets the one that files usually get here; safetensors would let
    nobody but the owner read its files. A link stays one, and a device or a pipe, which holds nothing to keep, is
    written to itself.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".saving-") as folder:
        whole = Path(folder) / f"file{path.suffix}"  # by which libraries know the format
        whole.touch()
        mode = (target if target.exists() else whole).stat().st_mode
        yield whole
        whole.chmod(mode)
        whole.replace(target)


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Raise as OSError what the system refuses to libraries in Rust that have no class of their own for it, as
    tokenizers.
    """
    try:
        yield
    except Exception as error:
        refused = re.search(r"\(os error (\d+)\)", str(error))
        if type(error) is not Exception or refused is None:
            raise
        number = int(refused[1])
        raise OSError(number, os.strerror(number)) from error


def require_writable(path: Path) -> None:
    """Refuse an output that can't be written before the work is done, not after it."""
    folder = path.parent
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError as error:
        raise LongVLMError(f"Can't write {path}: {error.strerror}; choose another place.") from error
    if not folder.is_dir():
        raise LongVLMError(f"Can't write {path}: the folder {folder} does not exist; create it first.")
    if is_folder:
        raise LongVLMError(f"Can't write {path}: it is a folder; give a file name.")
    needed = [path.resolve()] if is_there else []
    if not is_there or path.is_file():  # it is written beside its place
        needed.append(path.resolve().parent)
    if not all(os.access(place, os.W_OK) for place in needed):
        raise LongVLMError(f"Can't write {path}: permission denied; choose another place.")


def give_usual_mode(folder: Path) -> None:
    """Let files that safetensors wrote, for their owner's eyes alone, have the mode that files usually get here."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".mode-") as place:
        usual = Path(place) / "file"
        usual.touch()
        mode = usual.stat().st_mode
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there. Raises LongVLMError, naming it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise LongVLMError(f"Can't make the folder {path} ({reason}); choose another place.") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it no other process can hold `folder`; the system lets go of it for a process that is killed.

    Raises LongVLMError where one does, or where nothing can be written there.
    """
    if fcntl is None:
        yield
        return
    try:
        lock = (folder / _LOCK).open("w")
    except OSError as error:
        raise LongVLMError(f"Can't write to {folder} ({error.strerror}); choose another folder.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LongVLMError(
                f"Another process is at work in {folder}; wait for it or stop it, or choose another output."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise LongVLMError(f"Can't write to {folder} ({error.strerror}); choose another folder.") from error
        _held.add(lock)
        try:
            yield
        finally:
            _held.remove(lock)


def _leave_locks_to_the_parent() -> None:
    """In a forked child, which may outlive a parent that is killed by a few seconds, as a data loader's workers do."""
    for lock in _held:
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


@contextmanager
def hidden_beside(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to prepare it in, deleted at the end.

    A process that is killed leaves its own behind, but not the lock in it, by which the next one for the same target
    knows that nobody writes there any more, and deletes it. Raises OSError where that or writing is not permitted.
    """
    prefix = f".saving-{target.name}-"
    for earlier in target.parent.iterdir():
        if earlier.name.startswith(prefix) and _is_abandoned(earlier):
            shutil.rmtree(earlier)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as folder, locked(Path(folder)):
        yield Path(folder)


def _is_abandoned(folder: Path) -> bool:
    """Whether the process that had it `locked` is gone; without such locks that can't be told."""
    path = folder / _LOCK
    if fcntl is None or not path.is_file():
        return False
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # it is held, or the file system has no locks
            return False
    return True
