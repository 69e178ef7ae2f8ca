"""What the study found: mean and interval of every row, as a table, as JSON and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longvlm.study.course import KINDS, Run
from longvlm.study.rows import Row
from longvlm.world.evaluate import interval_of_share

ALL = "all"
PLOT_TITLE = "All questions, with 95 % intervals"
_RESAMPLES = 2000


@dataclass(frozen=True)
class RowScore:
    """Shares of 1 right, by kind of question and over `all`: (mean, low, high), with the 95 % interval."""

    row: Row
    seeds: int
    tokens_per_video: float
    shares: dict[str, tuple[float, float, float]]


def score_row(row: Row, runs: Sequence[Run]) -> RowScore:
    """The row's score over its runs, which were asked the same questions."""
    kinds = [*[kind for kind in KINDS if any(kind == asked for _, asked, _ in runs[0].answers)], ALL]
    shares = {kind: _mean_and_interval(runs, kind) for kind in kinds}
    return RowScore(row, len(runs), float(np.mean([run.tokens_per_video for run in runs])), shares)


def _mean_and_interval(runs: Sequence[Run], kind: str) -> tuple[float, float, float]:
    """A percentile bootstrap that draws runs, and whole videos: both would be others another time.

    Where all answers are alike, Wilson's interval for as many videos.
    """
    videos = sorted({video for video, _, _ in runs[0].answers})
    right, asked = np.zeros((2, len(runs), len(videos)))
    for i, run in enumerate(runs):
        for video, its_kind, is_right in run.answers:
            if kind in (its_kind, ALL):
                right[i, videos.index(video)] += is_right
                asked[i, videos.index(video)] += 1
    share = float(right.sum() / asked.sum())
    if share in (0.0, 1.0):
        num_asked = int((asked.sum(0) > 0).sum())
        return share, *interval_of_share(np.full(num_asked, share), np.arange(num_asked))
    rng = np.random.RandomState(0)
    means = []
    for _ in range(_RESAMPLES):
        drawn = np.ix_(rng.randint(0, len(runs), len(runs)), rng.randint(0, len(videos), len(videos)))
        means.append(right[drawn].sum() / max(1, asked[drawn].sum()))
    low, high = np.percentile(means, [2.5, 97.5])
    return share, float(low), float(high)


def as_markdown(scores: Sequence[RowScore]) -> str:
    """A table for each group of rows, in percent."""
    kinds = list(scores[0].shares)
    parts = []
    for group in dict.fromkeys(score.row.group for score in scores):
        lines = [
            f"| {group} | tokens | {' | '.join(kinds)} |",
            "|---|--:|" + "--:|" * len(kinds),
        ]
        for score in scores:
            if score.row.group == group:
                cells = [
                    f"{100 * mean:.1f} ({100 * low:.0f}–{100 * high:.0f})" for mean, low, high in score.shares.values()
                ]
                lines.append(f"| {score.row.name} | {score.tokens_per_video:.0f} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def as_json(scores: Sequence[RowScore]) -> list[dict[str, Any]]:
    return [
        {
            "row": score.row.name,
            "group": score.row.group,
            "seeds": score.seeds,
            "tokens_per_video": round(score.tokens_per_video, 1),
            "scores": {
                kind: {"accuracy": round(mean, 4), "interval_95": [round(low, 4), round(high, 4)]}
                for kind, (mean, low, high) in score.shares.items()
            },
        }
        for score in scores
    ]


def plot(scores: Sequence[RowScore], path: Path) -> None:
    """Tokens of a video against right answers; rows of one sweep share a colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for colour, group in enumerate(dict.fromkeys(score.row.group for score in scores)):
        members = [score for score in scores if score.row.group == group]
        tokens = [score.tokens_per_video for score in members]
        means, lows, highs = (100 * np.array(column) for column in zip(*(s.shares[ALL] for s in members), strict=True))
        spread = np.stack([means - lows, highs - means])
        axes.errorbar(tokens, means, yerr=spread, fmt="o", capsize=3, color=f"C{colour}", label=group)
        for x, y, score in zip(tokens, means, members, strict=True):
            axes.annotate(score.row.name, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="visual tokens a video (mean)", ylabel="right answers, %")
    axes.set(title=PLOT_TITLE)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
