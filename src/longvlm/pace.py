"""How far work on many videos is, in words."""

from __future__ import annotations

SECONDS_BETWEEN_LINES = 30.0  # of a log


def describe_pace(done: int, total: int, elapsed_seconds: float, rate: str = "") -> str:
    """Such as "12 of 100 videos, 8.1 frames/s, 1:03:20 left"; what is left is told by the mean time of those done."""
    parts = [f"{done} of {total} videos", rate]
    if done:
        minutes, seconds = divmod(round(elapsed_seconds / done * (total - done)), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    return ", ".join(part for part in parts if part)
