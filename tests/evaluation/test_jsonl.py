"""What is written stays, and a broken end does not spoil it."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvlm import LongVLMError
from longvlm.evaluation.jsonl import JsonLines


def test_lines_are_there_at_once_and_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with JsonLines(path) as file:
        assert not path.exists(), "an empty list leaves no file"
        file.append({"text": "é\u2028\n", "n": 1})
        assert path.read_bytes().count(b"\n") == 1, "flushed"
    with JsonLines(path) as file:
        file.append({"n": 2})
    assert JsonLines(path).lines == [{"text": "é\u2028\n", "n": 1}, {"n": 2}]


def test_a_broken_last_line_is_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": \xc3')
    with JsonLines(path) as file:
        assert file.lines == [{"n": 1}]
        file.append({"n": 2})
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2}\n'


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b"\xff"])
def test_a_line_of_something_else_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n" + line + b"\n{}\n")
    with pytest.raises(LongVLMError, match=r"a\.jsonl, line 2"):
        JsonLines(path)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "a.jsonl").symlink_to("/dev/full")
    file = JsonLines.__new__(JsonLines)  # /dev/full can't be read to its end
    file.path, file.lines, file._file = tmp_path / "a.jsonl", [], None
    with pytest.raises(LongVLMError, match=r"No space left.*What was done is kept"), file:
        file.append({"n": 1})
