import errno
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from longvlm.errors import LongVLMError
from longvlm.whole_files import (
    give_usual_mode,
    hidden_beside,
    locked,
    make_folder,
    require_writable,
    write_whole,
)


def test_a_file_is_replaced_whole_and_a_place_that_is_none_is_named(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"old")
    write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(LongVLMError, match=r"Can't write .*gone/file \("):
        write_whole(tmp_path / "gone" / "file", b"")
    with pytest.raises(LongVLMError, match=r"Can't make the folder .*file/folder \("):
        make_folder(tmp_path / "file" / "folder")


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(tmp_path / "file", b"old")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LongVLMError, match=r"Can't write .*file.*No space left on device"):
        write_whole(tmp_path / "file", b"new")
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_get_the_mode_that_files_get_here(tmp_path: Path) -> None:
    for name in ("closed", "usual"):
        (tmp_path / name).touch()
    (tmp_path / "closed").chmod(0o600)
    give_usual_mode(tmp_path)
    assert (tmp_path / "closed").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"closed", "usual"}


def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.touch()
    private.chmod(0o600)
    write_whole(private, b"new")
    assert private.stat().st_mode & 0o777 == 0o600 and private.read_bytes() == b"new"


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(LongVLMError, match="Another process is at work in"), locked(tmp_path):
        pass
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()
    with pytest.raises(LongVLMError, match=r"Can't write to .* choose another folder"), locked(tmp_path):
        pass
    (tmp_path / "lock").rmdir()
    with locked(tmp_path):
        pass


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with hidden_beside(target) as living, hidden_beside(tmp_path / "other") as other:
        abandoned = tmp_path / ".saving-target-abandoned"
        shutil.copytree(living, abandoned)  # with a lock that nobody holds
        (abandoned / "checkpoint").mkdir()
        (tmp_path / ".saving-other-abandoned").mkdir()
        with hidden_beside(target) as hidden:
            assert not abandoned.exists()
            assert {living, other, hidden} < set(tmp_path.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == [".saving-other-abandoned"]


def test_a_child_of_a_killed_process_does_not_keep_its_lock(tmp_path: Path) -> None:
    """A data loader's worker notices only after seconds that the training was killed, which is begun again at once."""
    program = (
        "import os, pathlib, sys, time\n"
        "from longvlm.whole_files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    if not os.fork():\n"
        "        print(os.getpid(), flush=True)\n"  # from the child itself, which has let go by then
        "        time.sleep(60)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(LongVLMError, match="Another process is at work"), locked(tmp_path):
                pass
            parent.kill()
            parent.wait()
            os.kill(child, 0)  # it lives
            with locked(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_link_stays_one_and_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    for content in (b"old", b"new"):
        require_writable(tmp_path / "link")
        write_whole(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "file").read_bytes() == content
    os.mkfifo(tmp_path / "pipe")
    require_writable(tmp_path / "pipe")
    with ThreadPoolExecutor() as threads:
        read = threads.submit((tmp_path / "pipe").read_bytes)
        write_whole(tmp_path / "pipe", b"page")
        assert read.result() == b"page"
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path), hidden_beside(tmp_path / "target") as hidden, hidden_beside(tmp_path / "target"):
        assert hidden.is_dir(), "whether another process writes there can't be told"
