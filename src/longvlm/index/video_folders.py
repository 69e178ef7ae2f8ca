"""Folders and lists of videos: which files are videos, what their ids are, and where a listed one lies.

A video's id is the name of its file without the suffix. Free of heavy imports.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import unquote

from longvlm.errors import LongVLMError
from longvlm.stages.video_access import split_address

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp")
FEATURE_SUFFIXES = (".longvlm", ".pkl")
_LONGEST_NAME_SHOWN = 120  # characters


@dataclass(frozen=True)
class ListedVideo:
    """A video to work on: its id, and the path or address of it."""

    id: str
    source: str


@dataclass(frozen=True)
class VideoList:
    """Videos of distinct ids, in order; the entries that repeat one, and those whose id another file has."""

    videos: tuple[ListedVideo, ...]
    repeated: tuple[str, ...]
    clashing: tuple[tuple[ListedVideo, ListedVideo], ...]


def shorten(name: str) -> str:
    """A name as a message shows it, which may be a text given in the place of one."""
    return name if len(name) <= _LONGEST_NAME_SHOWN else f"{name[:_LONGEST_NAME_SHOWN]}…"


def video_id(name: str) -> str:
    """The id in a file's name or address: "val/v_1.mp4", "https://host/v_1.mp4?key=1" and "v_1" are all of "v_1".

    Raises LongVLMError for what names no file.
    """
    last = PurePath(unquote(split_address(name).path) if "://" in name else name).name
    if not last:
        raise LongVLMError(f"{name!r} names no file; a list has one file name or address a line.")
    suffix = PurePath(last).suffix
    return last.removesuffix(suffix) if suffix.lower() in VIDEO_SUFFIXES + FEATURE_SUFFIXES else last


def list_videos(folder: Path) -> list[Path]:
    """The video files right in a folder, by name; hidden ones, as macOS leaves beside others, are none.

    Raises LongVLMError where the folder can't be read.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        return [path for path in entries if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    except OSError as error:
        raise LongVLMError(f"Can't read the folder {folder}: {error.strerror or error}.") from error


def list_ids(folder: Path) -> set[str]:
    """The ids of all videos and feature files in a folder and the folders below it."""
    if not folder.is_dir():
        raise LongVLMError(f"{folder} is not a folder; give one with videos or feature files.")
    known = VIDEO_SUFFIXES + FEATURE_SUFFIXES
    return {video_id(path.name) for path in _walk(folder) if path.suffix.lower() in known}


def find_video_files(folder: Path, ids: Collection[str]) -> dict[str, Path]:
    """The files of those of the videos that are in `folder`, or in folders below it.

    Raises LongVLMError where two files of one video differ.
    """
    if not folder.is_dir():
        raise LongVLMError(f"There is no folder of videos {folder}; give another.")
    found: dict[str, Path] = {}
    for path in _walk(folder):
        if path.suffix.lower() in VIDEO_SUFFIXES and video_id(path.name) in ids:
            first = found.setdefault(video_id(path.name), path)
            if first != path and not (first.samefile(path) or filecmp.cmp(first, path, shallow=False)):
                raise LongVLMError(
                    f"Both {first} and {path} are the video {video_id(path.name)}, and they differ; remove one of "
                    "them, or give a folder that holds but one."
                )
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """The files in a folder and in the folders below it, also where links lead to those, in order; each folder once.

    What is hidden is left out: the trash, and what a killed process was writing.
    """
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def read_list(path: Path) -> list[str]:
    """The entries of a list file, one a line; blank lines don't count. Raises LongVLMError, naming the file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise LongVLMError(f"Can't read the list {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise LongVLMError(f"{path} is not a text file; a list has one file name a line, and no more.") from error
    return [line.strip() for line in lines if line.strip()]


def find_videos(source: Path, video_folder: Path | None = None) -> VideoList:
    """The videos of a folder, or of a list file whose names count from `video_folder` (default: beside it).

    A listed video that is not there may be there in another container, as v_1.mkv for v_1.mp4, or be listed by the
    bare id of v_ID.mp4. One that is missing altogether is in the list all the same; who opens it will hear of it.
    Raises LongVLMError where there is nothing at `source`, or no video in it.
    """
    if source.is_dir():
        if video_folder is not None:
            raise LongVLMError(f"{source} is a folder itself, so a folder for listed names has no use; leave it out.")
        found = [ListedVideo(video_id(path.name), str(path)) for path in list_videos(source)]
        if not found:
            raise LongVLMError(f"There is no video file right in {source}; known are {', '.join(VIDEO_SUFFIXES)}.")
    elif source.is_file():
        if source.suffix.lower() in VIDEO_SUFFIXES:
            raise LongVLMError(f"{source} is a single video; give a folder, or a text file that lists videos.")
        folder = source.parent if video_folder is None else video_folder
        if not folder.is_dir():
            raise LongVLMError(f"{folder} is not a folder; give the one that the names in {source} count from.")
        found = [_locate(name, folder) for name in read_list(source)]
        if not found:
            raise LongVLMError(f"The list {source} is empty; write one file name a line into it.")
    else:
        raise LongVLMError(f"No such folder or list file: {source}.")
    return _separate(found)


def _locate(name: str, folder: Path) -> ListedVideo:
    if "://" in name:
        return ListedVideo(video_id(name), name)
    path, identity = folder / name, video_id(name)
    try:
        if not path.is_file():
            # lists may have YouTube's ids, which ActivityNet's files precede with "v_"
            stems = (identity, f"v_{identity}")
            ends = [end for suffix in VIDEO_SUFFIXES for end in (suffix, suffix.upper())]
            names = (stem + end for stem in stems for end in ends)
            path = next((other for other in map(path.with_name, names) if other.is_file()), path)
    except OSError as error:  # too long for a name: a line of prose, or of JSON
        raise LongVLMError(
            f"{shorten(name)} is no file name ({error.strerror}); a list has one file name a line."
        ) from error
    return ListedVideo(video_id(path.name), str(path))


def _separate(found: Iterable[ListedVideo]) -> VideoList:
    first: dict[str, ListedVideo] = {}
    repeated, clashing = [], []
    for video in found:
        earlier = first.setdefault(video.id, video)
        if earlier is video:
            continue
        if earlier == video:
            repeated.append(video.source)
        else:
            clashing.append((earlier, video))
    return VideoList(tuple(first.values()), tuple(repeated), tuple(clashing))


def is_file(path: Path) -> bool:
    """Whether there is such a file; no file has a name that is too long."""
    try:
        return path.is_file()
    except OSError:
        return False
