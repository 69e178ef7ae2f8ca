"""The check of an ActivityNet folder against its lists, on small real videos."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from media import write_video

from longvlm.errors import LongVLMError
from longvlm.training.activitynet import SPLITS, SplitCheck, check_dataset


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    return [write_video(folder / f"{number}.mp4", 5 + number) for number in range(4)]


@pytest.fixture
def root(tmp_path: Path, films: list[Path]) -> Path:
    """A sound little data set: one video in each split, in different containers' names."""
    anet = tmp_path / "datasets" / "anet"
    for number, (split, list_name) in enumerate(SPLITS.items()):
        (anet / split).mkdir(parents=True)
        shutil.copy(films[number], anet / split / f"v_{number}.{'mkv' if number == 1 else 'mp4'}")
        (anet / list_name).write_text(f"v_{number}.mp4\n")
    return tmp_path


def check_one(root: Path, split: str = "v1-2/train", **options: bool) -> SplitCheck:
    return next(check for check in check_dataset(root, **options) if check.split == split)


def test_a_sound_data_set_is_complete_wherever_one_points_at_it(root: Path) -> None:
    for place in (root, root / "datasets", root / "datasets" / "anet"):
        checks = check_dataset(place)
        assert [check.split for check in checks] == list(SPLITS)
        assert all(check.is_complete for check in checks)
        assert all((len(check.present), check.num_listed, check.duplicates) == (1, 1, []) for check in checks)


def test_lists_may_lie_in_the_root(root: Path) -> None:
    for name in SPLITS.values():
        shutil.move(root / "datasets" / "anet" / name, root / name)
    for place in (root, root / "datasets", root / "datasets" / "anet"):
        assert all(check.is_complete for check in check_dataset(place))


def test_everything_wrong_is_told_by_name(root: Path, films: list[Path]) -> None:
    folder = root / "datasets" / "anet" / "v1-2" / "train"
    (folder / "v_cut.mp4").write_bytes(films[0].read_bytes()[:500])
    shutil.copy(folder / "v_0.mp4", folder / "v_copy.mp4")
    shutil.copy(films[3], folder / "v_0.mkv")
    listed = ["v_0.mp4", "", "v_cut.mp4", "v_gone.mp4", "v_0.mp4"]
    (root / "datasets" / "anet" / SPLITS["v1-2/train"]).write_text("\r\n".join(listed))
    done: list[tuple[int, int]] = []
    check = check_dataset(root, on_progress=lambda *state: done.append(state))[0]
    assert (check.num_listed, check.num_listed_present, len(check.present)) == (3, 2, 4)
    assert check.missing == ["v_gone.mp4"]
    assert list(check.unreadable) == ["v_cut.mp4"] and "moov" in check.unreadable["v_cut.mp4"]
    assert check.listed_twice == ["v_0.mp4"]
    assert check.unlisted == ["v_copy.mp4"]
    assert sorted(map(sorted, check.duplicates)) == [["v_0.mkv", "v_0.mp4", "v_copy.mp4"]]
    assert not check.is_complete
    assert done[-1] == (7, 7)


def test_names_only_opens_nothing(root: Path) -> None:
    path = root / "datasets" / "anet" / "v1-2" / "train" / "v_0.mp4"
    path.write_bytes(b"")
    assert not check_one(root).is_complete
    assert check_one(root, names_only=True).is_complete


def test_without_list_or_folder_a_split_is_not_complete(root: Path) -> None:
    (root / "datasets" / "anet" / SPLITS["v1-2/val"]).unlink()
    shutil.rmtree(root / "datasets" / "anet" / "Test_Videos")
    val, test = check_one(root, "v1-2/val"), check_one(root, "Test_Videos")
    assert val.list_file is None and not val.is_complete and not val.missing
    assert not test.folder_exists and test.missing == ["v_3.mp4"]


def test_the_benchmarks_list_may_have_bare_ids(root: Path) -> None:
    (root / "datasets" / "anet" / SPLITS["Test_Videos"]).write_text("3\n")
    assert check_one(root, "Test_Videos").is_complete


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LongVLMError, match="no ActivityNet data in"):
        check_dataset(tmp_path)
