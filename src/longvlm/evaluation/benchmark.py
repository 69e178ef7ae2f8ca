"""What the run needs to know of a benchmark; each one declares it in a file of `benchmarks/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longvlm.evaluation.rows import Row
from longvlm.index.video_folders import VIDEO_SUFFIXES, is_file

# The two models whose figures the paper's comparison has, as (name, figure by measure).
Published = tuple[tuple[str, Mapping[str, float]], ...]


@dataclass(frozen=True)
class Axis:
    """One thing that a judge is asked about every row of one part; `prompt` is the file that asks it.

    A "rating" is a score from 0 to 5, a "verdict" yes or no with such a score. `num_questions`: wordings in a row.
    """

    name: str
    part: str
    prompt: str
    kind: Literal["rating", "verdict"]
    num_questions: Literal[1, 2] = 1


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. `axes` is empty where no judge is needed: the answers are letters.

    `video_stems` gives the file names, without suffix, that a video's name in the annotations may stand for.
    `published` holds figures by the name of the measure that they are compared with.
    """

    name: str
    read: Callable[[Sequence[str]], list[Row]]
    axes: tuple[Axis, ...] = ()
    published: Published = ()
    video_suffixes: tuple[str, ...] = VIDEO_SUFFIXES
    video_stems: Callable[[str], Sequence[str]] = lambda name: (name, f"v_{name}")


def find_video(folder: Path, name: str, benchmark: Benchmark) -> Path | None:
    """The file of a video: a stored index if there is one, else the video; None where neither is there.

    A name in the annotations may carry a suffix already, and folders, but none outside `folder`.
    """
    from longvlm.video_index import VideoIndex

    written = Path(name)
    if written.is_absolute() or ".." in written.parts:
        return None
    known = written.suffix.lower() in (*benchmark.video_suffixes, VideoIndex.SUFFIX)
    stems = benchmark.video_stems(str(written.with_suffix("")) if known else name)
    candidates = [folder / f"{stem}{VideoIndex.SUFFIX}" for stem in stems]
    candidates += [folder / written] if known else []
    candidates += [folder / f"{stem}{suffix}" for stem in stems for suffix in benchmark.video_suffixes]
    candidates += [path.with_suffix(path.suffix.upper()) for path in candidates if path.suffix]
    return next((path for path in candidates if is_file(path)), None)
