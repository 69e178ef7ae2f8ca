"""What passing a video on costs: the same questions about the original files and about the re-encoded ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import numpy as np

from longvlm.intervals import clustered_interval
from longvlm.text_table import TextTable
from longvlm.world.evaluate import Record
from longvlm.world.planned_videos import VideoPlan


@dataclass(frozen=True)
class Loss:
    """Accuracies as shares of 1, over the same questions; `low` and `high` bound the 95 % interval of the loss, and are
    NaN where the questions are about one video.
    """

    reencoding: str
    n: int
    original: float
    reencoded: float
    low: float
    high: float

    @property
    def loss(self) -> float:
        return self.original - self.reencoded


def measure_losses(plans: Sequence[VideoPlan], records: Sequence[Record]) -> list[Loss]:
    """One loss for every re-encoding among the plans, then one over all."""
    before = np.array([record.correct for record in records], dtype=float)
    after = np.array([record.correct_reencoded for record in records], dtype=float)
    videos = np.array([record.video for record in records])
    names = np.array([how.name if (how := plans[video].reencoding) else "" for video in videos])
    losses = []
    for name in [*dict.fromkeys(names), "all"]:
        here = np.full(len(names), True) if name == "all" else names == name
        low, high = clustered_interval((before - after)[here], videos[here])
        losses.append(Loss(name, int(here.sum()), float(before[here].mean()), float(after[here].mean()), low, high))
    return losses


def tabulate(losses: Sequence[Loss]) -> TextTable:
    rows = [
        (
            one.reencoding,
            str(one.n),
            f"{one.original:.1%}",
            f"{one.reencoded:.1%}",
            f"{100 * one.loss:.1f}",
            "–" if isnan(one.low) else f"{100 * one.low:.1f} – {100 * one.high:.1f}",
        )
        for one in losses
    ]
    columns = ("re-encoding", "n", "original", "re-encoded", "points lost", "95 % interval")
    return TextTable("The same questions about the original files and the re-encoded ones", columns, rows)


def as_json(losses: Sequence[Loss]) -> list[dict[str, Any]]:
    """The same for machines: shares of 1."""
    return [
        {name: _for_json(value) for name, value in asdict(one).items()} | {"loss": round(one.loss, 6)} for one in losses
    ]


def _for_json(value: str | float) -> str | float | None:
    if not isinstance(value, float):
        return value
    return None if isnan(value) else round(value, 6)
