"""Folders and lists of videos: ids, order, containers, and what is listed twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvlm.errors import LongVLMError
from longvlm.index.video_folders import (
    ListedVideo,
    find_video_files,
    find_videos,
    list_ids,
    list_videos,
    read_list,
    video_id,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos and other files; their content is of no interest here."""
    folder = tmp_path / "videos"
    (folder / "deeper").mkdir(parents=True)
    for name in ("v_b.MP4", "v_a.mkv", "notes.txt", "v_a.pkl", "deeper/v_c.webm", "deeper/v_d.longvlm"):
        (folder / name).touch()
    return folder


def test_ids_are_names_without_the_suffix_of_a_video_or_of_features() -> None:
    names = ["v_1.mp4", "val/v_1.MKV", "v_1.pkl", "v_1.longvlm", "v_1", "https://a.org/v_1.mp4"]
    assert {video_id(name) for name in names} == {"v_1"}
    assert video_id("clip.003") == "clip.003"


def test_the_query_of_an_address_is_not_in_its_id() -> None:
    assert video_id("https://a.org/v%201.mp4?X-Sig=secret#t=1") == "v 1"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/", "names no file"),
        ("https://a.org/?v=1", "names no file"),
        ('{"video": "' + "v" * 300, "is no file name .*one file name a line"),
        ("https://[::1/v.mp4", "malformed"),
    ],
)
def test_lines_that_are_no_names_are_quoted(folder: Path, line: str, words: str) -> None:
    (folder / "list.txt").write_text(line)
    with pytest.raises(LongVLMError, match=words) as caught:
        find_videos(folder / "list.txt")
    assert len(str(caught.value)) < 250


def test_a_folder_gives_its_videos_by_name(folder: Path) -> None:
    assert [path.name for path in list_videos(folder)] == ["v_a.mkv", "v_b.MP4"]
    assert [video.id for video in find_videos(folder).videos] == ["v_a", "v_b"]
    assert list_ids(folder) == {"v_a", "v_b", "v_c", "v_d"}


def test_folders_below_are_searched_where_links_lead_to_them_too(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "anet"
    root.mkdir()
    (root / "train").symlink_to(folder)
    (root / "again").symlink_to(root)  # around in a circle
    (root / "._v_e.mp4").touch()
    assert list_ids(root) == {"v_a", "v_b", "v_c", "v_d"}
    assert find_video_files(root, {"v_a", "v_e"}) == {"v_a": root / "train" / "v_a.mkv"}
    (root / "v_a.mp4").symlink_to(folder / "v_a.mkv")
    assert find_video_files(root, {"v_a"}) == {"v_a": root / "v_a.mp4"}
    (root / "v_a.mp4").unlink()
    (root / "v_a.mp4").write_bytes((folder / "v_a.mkv").read_bytes())
    assert find_video_files(root, {"v_a"}) == {"v_a": root / "v_a.mp4"}
    (root / "v_a.mp4").write_text("another")
    with pytest.raises(LongVLMError, match=r"v_a.mp4 and .*v_a.mkv are the video v_a, and they differ; remove one"):
        find_video_files(root, {"v_a"})


def test_a_list_gives_its_videos_in_its_order_missing_ones_included(folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "list.txt"
    names.write_bytes("\ufeffv_b.MP4\r\n\r\n  v_gone.mp4 \r\nv_a.mp4\r\nhttp://a.org/v_x.mp4\r\n".encode())
    assert read_list(names) == ["v_b.MP4", "v_gone.mp4", "v_a.mp4", "http://a.org/v_x.mp4"]
    assert find_videos(names, folder).videos == (
        ListedVideo("v_b", str(folder / "v_b.MP4")),
        ListedVideo("v_gone", str(folder / "v_gone.mp4")),
        ListedVideo("v_a", str(folder / "v_a.mkv")),  # there in another container
        ListedVideo("v_x", "http://a.org/v_x.mp4"),
    )


def test_a_list_may_have_bare_ids(folder: Path) -> None:
    """Of YouTube, which ActivityNet's files precede with "v_"; a file of just that name comes first."""
    (folder / "c.mp4").touch()
    (folder / "v_c.mp4").touch()
    (folder / "list.txt").write_text("a\nb.mp4\nc\ngone\n")
    assert find_videos(folder / "list.txt").videos == (
        ListedVideo("v_a", str(folder / "v_a.mkv")),
        ListedVideo("v_b", str(folder / "v_b.MP4")),
        ListedVideo("c", str(folder / "c.mp4")),
        ListedVideo("gone", str(folder / "gone")),
    )


def test_names_count_from_the_lists_own_folder_by_default(folder: Path) -> None:
    (folder / "list.txt").write_text("deeper/v_c.webm")
    assert find_videos(folder / "list.txt").videos == (ListedVideo("v_c", str(folder / "deeper" / "v_c.webm")),)


def test_what_is_listed_twice_is_there_once_and_clashing_ids_are_told(folder: Path) -> None:
    (folder / "v_a.mp4").touch()
    (folder / "list.txt").write_text("v_a.mkv\nv_b.MP4\nv_a.mkv\nv_a.mp4\n")
    found = find_videos(folder / "list.txt")
    assert [video.id for video in found.videos] == ["v_a", "v_b"]
    assert found.repeated == (str(folder / "v_a.mkv"),)
    assert [(one.source, other.source) for one, other in found.clashing] == [
        (str(folder / "v_a.mkv"), str(folder / "v_a.mp4"))
    ]


@pytest.mark.parametrize(
    ("source", "video_folder", "words"),
    [
        ("none", None, "No such folder or list file"),
        ("videos/deeper", "videos", "folder itself"),
        ("empty", None, "no video file right in"),
        ("empty.txt", None, "is empty"),
        ("binary.txt", None, "not a text file"),
        ("videos/v_a.mkv", None, "single video"),
        ("list.txt", "none", "is not a folder"),
    ],
)
def test_what_is_wrong_is_named(
    folder: Path, tmp_path: Path, source: str, video_folder: str | None, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "list.txt").write_text("v_a.mkv\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(LongVLMError, match=words):
        find_videos(tmp_path / source, None if video_folder is None else tmp_path / video_folder)
