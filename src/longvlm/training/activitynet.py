"""The ActivityNet folder that the paper trains and tests on, compared with its lists of videos.

    datasets/anet/v1-2/train   video_list_v1_2_train.txt
    datasets/anet/v1-2/val     video_list_v1_2_val.txt
    datasets/anet/v1-3/train_val   video_list_v1_3_trainval.txt
    datasets/anet/Test_Videos  anet_benchmark_video_id.txt

Lists hold one file name a line. They lie in the folder of the splits, or in one of the two above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from longvlm.errors import LongVLMError
from longvlm.index.video_folders import list_videos, read_list, video_id

SPLITS = {
    "v1-2/train": "video_list_v1_2_train.txt",
    "v1-2/val": "video_list_v1_2_val.txt",
    "v1-3/train_val": "video_list_v1_3_trainval.txt",
    "Test_Videos": "anet_benchmark_video_id.txt",
}


@dataclass
class SplitCheck:
    """What a split has and lacks.

    All lists are of names: `present` of files there, `unlisted` of those among them that the list doesn't know,
    `missing` of entries of the list that no file answers to. `unreadable` gives the reason by file. `duplicates` are
    groups of files of one id or of one content; `listed_twice` are entries that repeat an earlier one. `list_file` is
    None where there is none: then nothing can be called missing or unlisted.
    """

    split: str
    folder: Path
    list_name: str
    list_file: Path | None
    folder_exists: bool
    num_listed: int = 0
    present: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    listed_twice: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)

    @property
    def num_listed_present(self) -> int:
        """Of the listed videos, those that are there; of all files, where there is no list."""
        return len(self.present) if self.list_file is None else self.num_listed - len(self.missing)

    @property
    def is_complete(self) -> bool:
        """Whether the list is there, and every video of it, readable."""
        return self.list_file is not None and self.folder_exists and not self.missing and not self.unreadable


def check_dataset(
    root: Path, *, names_only: bool = False, num_threads: int = 2, on_progress: Callable[[int, int], None] | None = None
) -> list[SplitCheck]:
    """Compare every split below `root` with its list; `root` holds `datasets/anet`, or is a part of that path.

    Each video is opened, its packets read and its first frame decoded, unless `names_only`; `on_progress` is
    told how many are, and of how many. Raises LongVLMError where there is no split below `root`.
    """
    folder = _find_splits(root)
    checks = [_check_names(folder, root, split, list_name) for split, list_name in SPLITS.items()]
    if not names_only:
        _check_contents(checks, num_threads, on_progress)
    return checks


def _find_splits(root: Path) -> Path:
    for folder in (root, root / "anet", root / "datasets" / "anet"):
        if any((folder / split).is_dir() for split in SPLITS):
            return folder
    raise LongVLMError(
        f"There is no ActivityNet data in {root}: expected are the folders {', '.join(SPLITS)} in it, or in "
        "datasets/anet below it."
    )


def _check_names(folder: Path, root: Path, split: str, list_name: str) -> SplitCheck:
    places = [folder, *folder.absolute().parents[:2], root]
    list_file = next((place / list_name for place in places if (place / list_name).is_file()), None)
    check = SplitCheck(split, folder / split, list_name, list_file, (folder / split).is_dir())
    files: dict[str, list[str]] = {}
    for path in list_videos(check.folder) if check.folder_exists else []:
        check.present.append(path.name)
        files.setdefault(video_id(path.name), []).append(path.name)
    check.duplicates = [names for names in files.values() if len(names) > 1]
    if list_file is None:
        return check
    listed: set[str] = set()
    for entry in read_list(list_file):
        # the benchmark's list may have YouTube's ids, which ActivityNet's files precede with "v_"
        name = next((name for name in (video_id(entry), f"v_{video_id(entry)}") if name in files), video_id(entry))
        if name in listed:
            check.listed_twice.append(entry)
        elif name not in files:
            check.missing.append(entry)
        listed.add(name)
    check.num_listed = len(listed)
    check.unlisted = [name for name in check.present if video_id(name) not in listed]
    return check


def _check_contents(checks: list[SplitCheck], num_threads: int, on_progress: Callable[[int, int], None] | None) -> None:
    work = [(check, name) for check in checks for name in check.present]
    by_content: dict[tuple[str, str], list[str]] = {}
    for done, (check, name, outcome) in enumerate(_open_all(work, num_threads), 1):
        if isinstance(outcome, LongVLMError):
            check.unreadable[name] = str(outcome)
        else:
            by_content.setdefault((check.split, outcome), []).append(name)
        if on_progress is not None:
            on_progress(done, len(work))
    for (split, _), names in by_content.items():
        check = next(check for check in checks if check.split == split)
        if len(names) > 1:
            alike = [group for group in check.duplicates if set(group) & set(names)]
            merged = sorted({*names, *(name for group in alike for name in group)})
            check.duplicates = [*(group for group in check.duplicates if group not in alike), merged]


def _open_all(
    work: list[tuple[SplitCheck, str]], num_threads: int
) -> Iterator[tuple[SplitCheck, str, str | LongVLMError]]:
    """Each file with the fingerprint of its content, or with what keeps it from being read."""
    with ThreadPoolExecutor(num_threads) as threads:
        try:
            outcomes = threads.map(lambda item: open_whole(item[0].folder / item[1]), work)
            for (check, name), outcome in zip(work, outcomes, strict=True):
                yield check, name, outcome
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def open_whole(path: Path) -> str | LongVLMError:
    """The fingerprint of a video's content, or why it can't be opened to its end."""
    from longvlm.stages.video import open_video

    try:
        with open_video(path) as reader:
            if reader.lost_seconds > 0:
                return LongVLMError(f"The last {reader.lost_seconds:.1f} s of {path} are damaged or missing.")
            return reader.info.fingerprint
    except LongVLMError as error:
        return error
