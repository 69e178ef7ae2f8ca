"""What an extraction tells: how far it is, what failed and what was damaged, also as files beside the features."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longvlm.errors import LongVLMError
from longvlm.pace import describe_pace
from longvlm.whole_files import write_whole

FAILURES_FILE, DAMAGED_FILE = "failures.json", "damaged.json"


@dataclass(frozen=True)
class Failure:
    """A video that gave no features, and why."""

    video: str
    reason: str


@dataclass(frozen=True)
class Progress:
    """How far an extraction is; videos that were done before don't count."""

    videos_done: int
    videos_total: int
    frames_encoded: int
    elapsed_seconds: float

    @property
    def frames_per_second(self) -> float:
        return self.frames_encoded / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0

    def describe(self) -> str:
        """Videos, frames a second, and the time left; before the first frame, videos that failed at once."""
        if not self.frames_encoded:
            return f"{self.videos_done} of {self.videos_total} videos"
        rate = f"{self.frames_per_second:.1f} frames/s"
        return describe_pace(self.videos_done, self.videos_total, self.elapsed_seconds, rate)


@dataclass
class Report:
    """What came of an extraction: counts, failures in order, and seconds lost at damaged ends by video, now or
    when its features, which were there already, were made."""

    num_written: int = 0
    num_skipped: int = 0
    failures: list[Failure] = field(default_factory=list)
    lost_seconds: dict[str, float] = field(default_factory=dict)


def read_failures(path: Path) -> list[Failure]:
    """What `write_failures` wrote; nothing where there is no such file. Raises LongVLMError for any other's."""
    try:
        return [Failure(str(row["video"]), str(row["reason"])) for row in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _not_ours(path) from error


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Write the list of failures; where there are none, there is no file."""
    if failures:
        rows = [dataclasses.asdict(failure) for failure in failures]
        write_whole(path, as_written(json.dumps(rows, indent=1, ensure_ascii=False)).encode())
    else:
        path.unlink(missing_ok=True)


def as_written(text: str) -> str:
    """A text as these files have it: what is no UTF-8 in a file's name is a question mark there."""
    return text.encode("utf-8", "replace").decode()


def read_damaged(path: Path) -> dict[str, float]:
    """Seconds lost at the ends of videos, by id, that `write_damaged` wrote, in the same way."""
    try:
        return {str(video): float(seconds) for video, seconds in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _not_ours(path) from error


def _not_ours(path: Path) -> LongVLMError:
    return LongVLMError(f"{path} is none that an extraction wrote; remove it, or write to another folder.")


def write_damaged(path: Path, lost_seconds: dict[str, float]) -> None:
    """Write what was lost at the ends of videos; where nothing was, there is no file."""
    if damaged := {video: seconds for video, seconds in lost_seconds.items() if seconds > 0}:
        write_whole(path, json.dumps(damaged, indent=1).encode())
    else:
        path.unlink(missing_ok=True)
