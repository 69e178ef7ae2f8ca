"""Accuracy against the length of a video and the depth at which the event asked about lies in it.

The visual needle in a haystack: an object is on screen for 4 to 24 seconds somewhere in up to an hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvlm.errors import LongVLMError
from longvlm.intervals import interval_of_share
from longvlm.text_table import TextTable
from longvlm.whole_files import replacing, require_writable
from longvlm.world.evaluate import Record, evaluate
from longvlm.world.planned_videos import plan_videos
from longvlm.world.scene import MIN_DURATION_SECONDS

if TYPE_CHECKING:
    from longvlm.pipeline import LongVLM

FRAMES_PER_SECOND = 2  # drawn; one of them a second is looked at, and an hour is long to draw
QUESTIONS_PER_KIND = 3
DEPTHS = 5
# Questions that name one object, which may lie at any depth.
NEEDLE_KINDS = ("after", "before", "direction", "action")


@dataclass(frozen=True)
class LengthScore:
    """Accuracy at one length: over all questions with its 95 % interval, and by depth; shares of 1.

    `by_depth` holds (accuracy, n) of NEEDLE_KINDS from the start of the video to its end; accuracy is NaN at n = 0.
    """

    minutes: float
    n: int
    accuracy: float
    low: float
    high: float
    by_depth: tuple[tuple[float, int], ...]


def require_lengths(minutes: Sequence[float]) -> None:
    """Raise LongVLMError, before any work is done, where a length is none that a video can have."""
    for length in minutes:
        if not MIN_DURATION_SECONDS <= 60 * length < float("inf"):
            raise LongVLMError(
                f"--minutes has {length:g}; videos are {MIN_DURATION_SECONDS / 60:.2g} minutes or longer."
            )


def measure_lengths(
    model: LongVLM, minutes: Sequence[float], *, videos: int, seed: int, kept: Path | None = None
) -> list[LengthScore]:
    """Write `videos` videos of every length, ask about them, and score; `kept`: see `evaluate`."""
    plans = [plan_videos(videos, seed=seed, min_seconds=60 * length, max_seconds=60 * length) for length in minutes]
    scores = []
    for length, of_length in zip(minutes, plans, strict=True):
        slow = [replace(plan, fps=FRAMES_PER_SECOND) for plan in of_length]
        records = evaluate(model, slow, seed=seed, per_kind=QUESTIONS_PER_KIND, with_controls=False, kept=kept)
        scores.append(score_length(length, records))
    return scores


def score_length(minutes: float, records: Sequence[Record]) -> LengthScore:
    """Raises LongVLMError where there is nothing to score."""
    if not records:
        raise LongVLMError(f"No question could be asked about videos of {minutes:g} minutes; take more videos.")
    right = np.array([record.correct for record in records], dtype=float)
    low, high = interval_of_share(right, np.array([record.video for record in records]))
    by_depth = []
    for depth in range(DEPTHS):
        here = [record.correct for record in records if _depth_of(record) == depth]
        by_depth.append((float(np.mean(here)) if here else float("nan"), len(here)))
    return LengthScore(minutes, len(records), float(right.mean()), low, high, tuple(by_depth))


def _depth_of(record: Record) -> int | None:
    span = record.question.span_seconds
    if span is None or record.kind not in NEEDLE_KINDS:
        return None
    return min(DEPTHS - 1, int(DEPTHS * sum(span) / 2 / record.duration_seconds))


def tabulate(scores: Sequence[LengthScore]) -> TextTable:
    """All questions, and how much is left of the accuracy at the first length; then by depth, with the number of
    questions in brackets.
    """
    rows = []
    for one in scores:
        left = _share_of(one, scores[0])
        rows.append(
            (
                f"{one.minutes:g} min",
                str(one.n),
                f"{one.accuracy:.1%}",
                f"{one.low:.1%} – {one.high:.1%}",
                "–" if left is None else f"{left:.0%}",
                *(f"{share:.0%} ({n})" if n else "–" for share, n in one.by_depth),
            )
        )
    columns = ("length", "n", "right", "95 % interval", "of the first", *_name_depths())
    return TextTable("Right answers by length, and by when the object asked about is on screen", columns, rows)


def _name_depths() -> list[str]:
    return [f"{100 * depth // DEPTHS}–{100 * (depth + 1) // DEPTHS} %" for depth in range(DEPTHS)]


def _share_of(one: LengthScore, first: LengthScore) -> float | None:
    return round(one.accuracy / first.accuracy, 4) if first.accuracy else None


def as_json(scores: Sequence[LengthScore]) -> list[dict[str, Any]]:
    return [
        {
            "minutes": one.minutes,
            "n": one.n,
            "accuracy": round(one.accuracy, 4),
            "interval_95": [round(one.low, 4), round(one.high, 4)],
            "of_the_first": _share_of(one, scores[0]),
            "by_depth": [{"accuracy": round(share, 4) if n else None, "n": n} for share, n in one.by_depth],
        }
        for one in scores
    ]


def require_matplotlib() -> None:
    """Raise LongVLMError, before any work is done, where plots can't be drawn."""
    if find_spec("matplotlib") is None:
        raise LongVLMError("Plots need matplotlib; install it with: pip install 'longvlm[eval]'.")


def require_plottable(path: Path) -> None:
    """Raise LongVLMError, before any work is done, where no plot can be drawn into `path`."""
    require_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    if path.suffix.lower().lstrip(".") not in FigureCanvasBase.get_supported_filetypes():
        raise LongVLMError(f"Can't draw {path}: a plot is named .png, .svg or .pdf; give it such a name.")
    require_writable(path)


def plot(scores: Sequence[LengthScore], path: Path) -> None:
    """The heat map, one column a length and one row a depth, over a line of the accuracy on all questions."""
    from matplotlib.figure import Figure

    labels = [f"{one.minutes:g} min" for one in scores]
    figure = Figure(figsize=(1.6 + 1.3 * len(scores), 6.4), layout="constrained")
    line, heat = figure.subplots(2, 1, height_ratios=[1, 1.5])
    places = np.arange(len(scores))
    shares = 100 * np.array([one.accuracy for one in scores])
    spread = 100 * np.array([[one.accuracy - one.low for one in scores], [one.high - one.accuracy for one in scores]])
    line.errorbar(places, shares, yerr=spread, marker="o", capsize=4, color="tab:blue")
    line.set(xticks=places, xticklabels=labels, xlim=(-0.5, len(scores) - 0.5), ylim=(0, 100))
    line.set(ylabel="right answers, %", title="All questions, with 95 % intervals")
    line.grid(axis="y", alpha=0.3)
    table = 100 * np.array([[share for share, _ in one.by_depth] for one in scores]).T
    image = heat.imshow(table, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for column, one in enumerate(scores):
        for row, (share, n) in enumerate(one.by_depth):
            text = f"{share:.0%}\nn={n}" if n else "–"
            shade = "black" if n and share > 0.6 else "white"
            heat.text(column, row, text, ha="center", va="center", color=shade if n else "grey", fontsize=9)
    heat.set(xticks=places, xticklabels=labels, yticks=range(DEPTHS), yticklabels=_name_depths())
    heat.set(
        xlabel="length of the video",
        ylabel="when in the video the object is on screen",
        title="Questions about one object",
    )
    figure.colorbar(image, ax=heat, label="right answers, %")
    with replacing(path) as whole:
        figure.savefig(whole, dpi=110)
