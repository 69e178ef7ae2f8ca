"""From rows, predictions and judgements to measures: letters compared, the offline judge, a judging model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from longvlm.evaluation.benchmark import Axis, Benchmark
from longvlm.evaluation.benchmarks.multiple_choice import parse_letter
from longvlm.evaluation.judging import Judgement
from longvlm.evaluation.metrics import (
    Estimate,
    estimate,
    estimate_mean_of_means,
    estimate_share,
    exact_match,
    token_f1,
)
from longvlm.evaluation.rows import Row

OFFLINE, LETTERS = "offline", "letters"
MEAN_OF_AXES = "mean of the axes"
Predictions = Mapping[str, tuple[str, ...]]  # by row key
# By axis name and row key, for every request that the judge replied to; None where no reply could be read.
Judgements = Mapping[tuple[str, str], Judgement | None]


@dataclass(frozen=True)
class Measure:
    """One line of the results. `unit` is "%" or "of 5"; a `group` is named where not all rows count.

    Rows with a prediction, but without a judgement, are not among the value's n: of `unreadable` ones no reply of the
    judge could be read, to `unreached` ones there is none.
    """

    judge: str
    name: str
    unit: str
    value: Estimate
    unreadable: int = 0
    unreached: int = 0
    group: str | None = None
    published: tuple[tuple[str, float], ...] = ()

    @property
    def unjudged(self) -> int:
        return self.unreadable + self.unreached

    @property
    def label(self) -> str:
        return self.name if self.group is None else f"{self.name}, {self.group}"

    def show(self, number: float) -> str:
        if math.isnan(number):
            return "–"
        return f"{number:.1f} %" if self.unit == "%" else f"{number:.2f}"

    @property
    def interval(self) -> str:
        if math.isnan(self.value.low):
            return "–"
        return f"{self.show(self.value.low).removesuffix(' %')} to {self.show(self.value.high)}"


def measure_letters(rows: Sequence[Row], predictions: Predictions) -> list[Measure]:
    """Accuracy of a multiple choice over all, then by every group; a reply without a letter is wrong."""
    answered = [row for row in rows if row.key in predictions]
    letters = {row.key: parse_letter(predictions[row.key][0], row.options) for row in answered}

    def accuracy(some: Sequence[Row], group: str | None) -> Measure:
        right = [letters[row.key] == row.answer for row in some]
        return Measure(LETTERS, "accuracy", "%", estimate_share(right, _videos(some)), group=group)

    chance = [100.0 / len(row.options) for row in answered]
    measures = [accuracy(answered, None)]
    measures += [accuracy(some, group) for group, some in _groups(answered)]
    return [*measures, Measure(LETTERS, "chance", "%", estimate(chance, _videos(answered)))]


def measure_offline(benchmark: Benchmark, rows: Sequence[Row], predictions: Predictions) -> list[Measure]:
    """Exact match and token F1 for every axis; where a row has two answers, the worse of them counts."""
    measures = []
    for axis, asked in _by_axis(benchmark, rows):
        answered = [row for row in asked if row.key in predictions]
        prefix = f"{axis.name}: " if len(benchmark.axes) > 1 else ""
        videos = _videos(answered)
        exact = [all(exact_match(text, row.answer) for text in predictions[row.key]) for row in answered]
        measures.append(Measure(OFFLINE, f"{prefix}exact match", "%", estimate_share(exact, videos)))
        f1 = {row.key: min(token_f1(text, row.answer) for text in predictions[row.key]) for row in answered}
        measures.append(
            Measure(OFFLINE, f"{prefix}token F1", "%", estimate_share([f1[row.key] for row in answered], videos))
        )
        measures += [
            Measure(OFFLINE, "token F1", "%", estimate_share([f1[row.key] for row in some], _videos(some)), group=group)
            for group, some in _groups(answered)
        ]
    return measures


def measure_judged(
    benchmark: Benchmark,
    rows: Sequence[Row],
    predictions: Predictions,
    judgements: Judgements,
    judge: str,
) -> list[Measure]:
    """Scores, and the share of right answers for verdicts."""
    measures: list[Measure] = []
    scored: list[tuple[list[float], list[str]]] = []
    for axis, asked in _by_axis(benchmark, rows):
        answered = [row for row in asked if row.key in predictions]
        replied = [(row, judgements[axis.name, row.key]) for row in answered if (axis.name, row.key) in judgements]
        found = [(row, one) for row, one in replied if one is not None]
        judged = [row for row, _ in found]
        missing = len(replied) - len(found), len(answered) - len(replied)
        videos, scores = _videos(judged), [one.score for _, one in found]
        scored.append((scores, videos))
        if axis.kind == "verdict":
            right = {row.key: bool(one.right) for row, one in found}
            value = estimate_share([right[row.key] for row in judged], videos)
            measures.append(_measure(benchmark, judge, "accuracy", "%", value, missing))
            measures.append(_measure(benchmark, judge, "score", "of 5", estimate(scores, videos), missing))
            for group, some in _groups(judged):
                value = estimate_share([right[row.key] for row in some], _videos(some))
                measures.append(Measure(judge, "accuracy", "%", value, group=group))
        else:
            measures.append(_measure(benchmark, judge, axis.name, "of 5", estimate(scores, videos), missing))
    if len(scored) == len(benchmark.axes) > 1 and all(scores for scores, _ in scored):
        measures.append(_measure(benchmark, judge, MEAN_OF_AXES, "of 5", estimate_mean_of_means(scored)))
    return measures


def _measure(
    benchmark: Benchmark, judge: str, name: str, unit: str, value: Estimate, missing: tuple[int, int] = (0, 0)
) -> Measure:
    published = tuple((model, figures[name]) for model, figures in benchmark.published if name in figures)
    return Measure(judge, name, unit, value, *missing, published=published)


def _by_axis(benchmark: Benchmark, rows: Sequence[Row]) -> Iterator[tuple[Axis, list[Row]]]:
    """The axes that are asked about any row, with those rows."""
    for axis in benchmark.axes:
        asked = [row for row in rows if row.part == axis.part]
        if asked:
            yield axis, asked


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Every group's name and rows, kind by kind ("duration", "task")."""
    for kind in dict.fromkeys(kind for row in rows for kind in row.groups):
        for name in sorted({row.groups[kind] for row in rows if kind in row.groups}, key=_group_order):
            yield f"{kind} {name}", [row for row in rows if row.groups.get(kind) == name]


def _group_order(name: str) -> tuple[int, int, str]:
    """Durations from short to long, by name and then by the longest they name; all else by the alphabet."""
    durations = ("short", "medium", "long")
    if name in durations:
        return durations.index(name), 0, name
    numbers = re.findall(r"\d+", name) if name.endswith((" s", " min")) else []
    return len(durations), int(numbers[-1]) + name.startswith("over") if numbers else 0, name


def _videos(rows: Iterable[Row]) -> list[str]:
    return [row.video_name for row in rows]
