"""`longvlm data`: what is printed, what is written, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import RunCommand as Run
from media import write_video

ROWS = [{"q": "What?", "a": "A dog.", "video_id": f"v_{number}"} for number in range(3)]


@pytest.fixture
def anet(tmp_path: Path) -> Path:
    """A video in each of three splits, of which one is unreadable and one isn't listed; a fourth is missing."""
    anet = tmp_path / "datasets" / "anet"
    for number, split in enumerate(("v1-2/train", "v1-2/val", "v1-3/train_val", "Test_Videos")):
        (anet / split).mkdir(parents=True)
        if number < 3:
            write_video(anet / split / f"v_{number}.mp4", 5)
    (anet / "v1-2" / "val" / "v_1.mp4").write_bytes(b"no video")
    for name, text in (
        ("video_list_v1_2_train.txt", "v_0.mp4\nv_0.mp4\n"),
        ("video_list_v1_2_val.txt", "v_1.mp4\n"),
        ("anet_benchmark_video_id.txt", "v_3.mp4\n"),
    ):
        (anet / name).write_text(text)
    return tmp_path


class TestCheck:
    def test_prints_a_table_and_the_names(self, run: Run, anet: Path) -> None:
        shown = run("data", "check", anet).must_end_with(1).stdout
        assert all(word in shown for word in ("Split", "Missing", "Unreadable", "Duplicate", "Repeated"))
        assert "Test_Videos: missing: v_3.mp4" in shown
        assert "v1-2/val: unreadable: v_1.mp4 (" in shown
        assert "v1-3/train_val: no list video_list_v1_3_trainval.txt in" in shown
        assert "v1-2/train: listed twice: v_0.mp4" in shown

    def test_json_is_one_object(self, run: Run, anet: Path) -> None:
        ended = run("data", "check", anet, "--json").must_end_with(1)
        told = json.loads(ended.stdout)
        assert told["complete"] is False and told["root"] == str(anet)
        splits = {split["split"]: split for split in told["splits"]}
        assert splits["v1-2/train"]["complete"] and splits["v1-2/train"]["present"] == ["v_0.mp4"]
        assert splits["Test_Videos"]["missing"] == ["v_3.mp4"]
        assert list(splits["v1-2/val"]["unreadable"]) == ["v_1.mp4"]
        table = run("data", "check", anet).must_end_with(1).stdout.splitlines()
        headings = table[0].split()
        assert headings == ["Split", "Listed", "Present", "Missing", "Unreadable", "Duplicate", "Repeated", "Unlisted"]
        shown = {
            name: dict(zip(headings[1:], map(int, counts), strict=True)) for name, *counts in map(str.split, table[1:5])
        }
        assert shown["v1-2/train"] == {"Listed": 1, "Present": 1} | dict.fromkeys(headings[3:], 0) | {"Repeated": 1}
        assert (shown["Test_Videos"]["Missing"], shown["v1-2/val"]["Unreadable"]) == (1, 1)

    def test_ends_well_where_all_is_there(self, run: Run, anet: Path) -> None:
        folder = anet / "datasets" / "anet"
        (folder / "video_list_v1_3_trainval.txt").write_text("v_2.mp4\n")
        write_video(folder / "Test_Videos" / "v_3.mp4", 5)
        write_video(folder / "v1-2" / "val" / "v_1.mp4", 5)
        assert "missing:" not in run("data", "check", anet).must_end_with(0).stdout

    def test_a_folder_of_something_else_is_one_line(self, run: Run, tmp_path: Path) -> None:
        run("data", "check", tmp_path).must_complain("no ActivityNet data", str(tmp_path))


class TestList:
    def test_writes_names_that_extract_takes(self, run: Run, anet: Path, tmp_path: Path) -> None:
        folder = anet / "datasets" / "anet" / "v1-2" / "train"
        (folder / "v_00.mkv").touch()
        assert run("data", "list", folder).must_end_with(0).stdout == "v_0.mp4\nv_00.mkv\n"
        ended = run("data", "list", folder, "-o", tmp_path / "list.txt").must_end_with(0)
        assert (tmp_path / "list.txt").read_text() == "v_0.mp4\nv_00.mkv\n" and "2 videos" in ended.stderr

    def test_a_folder_without_videos_or_none_at_all(self, run: Run, tmp_path: Path) -> None:
        run("data", "list", tmp_path).must_complain("no video file", str(tmp_path))
        run("data", "list", tmp_path / "none").must_complain("Can't read the folder")


class TestConvert:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        (tmp_path / "short.json").write_text(json.dumps(ROWS))
        return tmp_path / "short.json"

    def test_writes_the_training_format_and_says_how_many(self, run: Run, source: Path, tmp_path: Path) -> None:
        ended = run("data", "convert", source, "-o", tmp_path / "train.json").must_end_with(0)
        assert "3 rows" in ended.stderr and "left out" not in ended.stderr
        rows = json.loads((tmp_path / "train.json").read_text())
        assert [row["video"] for row in rows] == ["v_0", "v_1", "v_2"]

    def test_drops_rows_only_when_asked_and_says_how_many(self, run: Run, source: Path, tmp_path: Path) -> None:
        for folder, name in (("a", "v_0.pkl"), ("a", "v_1.pkl"), ("b", "v_1.longvlm"), ("b", "v_2.mp4")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).touch()
        command = ["data", "convert", source, "-o", tmp_path / "train.json", "--pickle-names"]
        ended = run(*command, "--drop-missing", tmp_path / "a", "--drop-missing", tmp_path / "b").must_end_with(0)
        assert "1 rows, 2 were left out" in ended.stderr
        assert [row["video"] for row in json.loads((tmp_path / "train.json").read_text())] == ["v_1.pkl"]

    def test_mistakes_are_one_line_and_leave_no_file(self, run: Run, source: Path, tmp_path: Path) -> None:
        target = tmp_path / "train.json"
        source.write_text(json.dumps([*ROWS, {"q": "What?", "video_id": "v_1"}]))
        run("data", "convert", source, "-o", target).must_complain("short.json, row 3", "'a'")
        run("data", "convert", source, "-o", target, "--drop-missing", tmp_path / "none").must_complain("not a folder")
        run("data", "convert", tmp_path / "none.json", "-o", target).must_complain("No such file")
        source.write_text(json.dumps(ROWS))
        run("data", "convert", source, "-o", tmp_path / "none" / "train.json").must_complain("does not exist")
        (tmp_path / "empty").mkdir()
        run("data", "convert", source, "-o", target, "--drop-missing", tmp_path / "empty").must_complain("No row")
        assert not target.exists()

    def test_no_room_leaves_the_old_file(
        self, run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, content: bytes) -> None:
            with path.open("wb") as file:
                file.write(content[:5])
            raise OSError(28, "No space left on device")

        target = tmp_path / "train.json"
        target.write_text("old")
        monkeypatch.setattr(Path, "write_bytes", full)
        run("data", "convert", source, "-o", target).must_complain("No space left on device", "train.json")
        assert target.read_text() == "old" and sorted(tmp_path.iterdir()) == [source, target]
