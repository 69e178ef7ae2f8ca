"""What the study found: mean and interval of every row, as tables, as JSON and as a plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longvlm.intervals import RESAMPLES, interval_of_share
from longvlm.study.course import Run
from longvlm.study.rows import Row
from longvlm.text_table import TextTable
from longvlm.whole_files import replacing
from longvlm.world.questions import KINDS

ALL = "all"
PLOT_TITLE = "All questions, with 95 % intervals"
_NEAR = 1.08  # times as many tokens are drawn beside each other
_TICKS = (5, 10, 20, 50, 100, 200, 400)
Estimate = tuple[float, float, float]  # a mean, and its 95 % interval
Finished = tuple[Row, Sequence[Run]]


@dataclass(frozen=True)
class RowScore:
    """A row in its group, by kind of question and over `all`, shares of 1.

    Args:
        shown_objects: the share of objects that some token of their video shows.
        shares: right answers.
        chances: what the best guess without a video would reach.
        asked: how many questions each run was asked.
        share_by_seed: of all questions.
        gain: right answers of all questions, less those of the row it is compared with; none for that row itself.
    """

    row: Row
    tokens_per_video: float
    shown_objects: float
    shares: dict[str, Estimate]
    chances: dict[str, float]
    asked: dict[str, int]
    share_by_seed: list[float]
    gain: Estimate | None


def score_rows(finished: Sequence[Finished]) -> list[RowScore]:
    """Every row's score, group by group. All rows were asked the same questions, and are compared with the first row:
    with as many of its runs, so that a sweep of one seed shows that seed of it, too. A row that was trained for another
    number of steps is compared with the first row trained for as many, if there is that.
    """
    (reference, reference_runs), *_ = finished
    of_other_lengths = {row.steps: runs for row, runs in finished if row.steps and _is_alike(row, reference)}
    scores = []
    for group in dict.fromkeys(row.group for row, _ in finished):
        members = [(row, runs) for row, runs in finished if row.group == group and row != reference]
        num_runs = max((len(runs) for _, runs in members), default=len(reference_runs))
        compared = reference_runs if group == reference.group else reference_runs[:num_runs]
        scores.append(_score_row(dataclasses.replace(reference, group=group), compared))
        for row, runs in members:
            against = of_other_lengths.get(row.steps or 0, compared)
            scores.append(_score_row(row, runs, None if against is runs else against))
    return scores


def _is_alike(row: Row, reference: Row) -> bool:
    """Whether a row differs from the reference in its training's length alone."""
    name, group, seeds, steps = reference.name, reference.group, reference.seeds, reference.steps
    return dataclasses.replace(row, name=name, group=group, seeds=seeds, steps=steps) == reference


def _score_row(row: Row, runs: Sequence[Run], compared: Sequence[Run] | None = None) -> RowScore:
    answers = runs[0].answers
    kinds = [*[kind for kind in KINDS if any(kind == answer.kind for answer in answers)], ALL]
    chances = {kind: [answer.chance for answer in answers if kind in (answer.kind, ALL)] for kind in kinds}
    _, asked = _tally(runs, ALL)
    right = [sum(answer.is_right for answer in run.answers) for run in runs]
    return RowScore(
        row,
        float(np.mean([run.tokens_per_video for run in runs])),
        float(np.mean([run.shown_objects for run in runs])),
        {kind: _estimate_share(runs, kind) for kind in kinds},
        {kind: float(np.mean(values)) for kind, values in chances.items()},
        {kind: len(values) for kind, values in chances.items()},
        [float(count / total) for count, total in zip(right, asked.sum(1), strict=True)],
        None if compared is None else _estimate_gain(runs, compared),
    )


def _tally(runs: Sequence[Run], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and questions asked, (runs, videos)."""
    videos = sorted({answer.video for answer in runs[0].answers})
    places = {video: place for place, video in enumerate(videos)}
    right, asked = np.zeros((2, len(runs), len(videos)))
    for number, run in enumerate(runs):
        for answer in run.answers:
            if kind in (answer.kind, ALL):
                right[number, places[answer.video]] += answer.is_right
                asked[number, places[answer.video]] += 1
    return right, asked


def _estimate_share(runs: Sequence[Run], kind: str) -> Estimate:
    """Where all answers are alike, with Wilson's interval for as many videos."""
    right, asked = _tally(runs, kind)
    share = float(right.sum() / asked.sum())
    if share in (0.0, 1.0):
        num_asked = int((asked.sum(0) > 0).sum())
        return share, *interval_of_share(np.full(num_asked, share), np.arange(num_asked))
    return share, *_bootstrap(right, asked)


def _estimate_gain(runs: Sequence[Run], compared: Sequence[Run]) -> Estimate:
    """Paired: seeds and videos are the same in both, so what is hard for all rows does not widen the interval; of two
    numbers of seeds, as many as both have."""
    paired = min(len(runs), len(compared))
    runs, compared = runs[:paired], compared[:paired]
    (right, asked), (compared_right, _) = _tally(runs, ALL), _tally(compared, ALL)
    more = right - compared_right
    return float(more.sum() / asked.sum()), *_bootstrap(more, asked)


def _bootstrap(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """95 % interval of sum(values) / sum(counts), (runs, videos) each: percentiles over draws of runs, and of whole
    videos, both of which would be others another time."""
    num_runs, num_videos = values.shape
    rng = np.random.RandomState(0)
    means = []
    for _ in range(RESAMPLES):
        runs, videos = rng.randint(0, num_runs, (num_runs, 1)), rng.randint(0, num_videos, num_videos)
        means.append(values[runs, videos].sum() / max(1, counts[runs, videos].sum()))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def tabulate(scores: Sequence[RowScore]) -> list[TextTable]:
    """A table for each group: kinds of questions down, rows of the study across; in percent."""
    return [_tabulate_group(members) for members in _by_group(scores).values()]


def _by_group(scores: Sequence[RowScore]) -> dict[str, list[RowScore]]:
    groups: dict[str, list[RowScore]] = {}
    for score in scores:
        groups.setdefault(score.row.group, []).append(score)
    return groups


def _tabulate_group(members: Sequence[RowScore]) -> TextTable:
    first, *others = members
    rows = [
        (
            kind,
            f"{first.asked[kind]:,}",
            f"{100 * first.chances[kind]:.0f}",
            *(_in_percent(score.shares[kind], ".1f") for score in members),
        )
        for kind in first.shares
    ]
    gains = [_in_percent(score.gain, "+.1f") if score.gain else "" for score in others]
    has_such = any(score.row.steps and score.gain is None for score in others)  # what it is then compared with
    as_long = " trained as long" if has_such else ""
    rows.append((f"{ALL}, less {first.row.name}{as_long}", "", "", "", *gains))
    rows.append(("visual tokens a video", "", "", *(f"{score.tokens_per_video:.0f}" for score in members)))
    rows.append(("objects that a token shows", "", "", *(f"{100 * score.shown_objects:.0f}" for score in members)))
    return TextTable(_title(members), ("question", "n", "guessing", *(score.row.name for score in members)), rows)


def _title(members: Sequence[RowScore]) -> str:
    """The group, and what its intervals are of."""
    seeds = max(len(score.share_by_seed) for score in members)
    drawn = f"{seeds} seeds each" if seeds > 1 else "1 seed each: intervals tell of videos alone"
    return f"{members[0].row.group}: {drawn}"


def _in_percent(estimate: Estimate, form: str) -> str:
    mean, low, high = (f"{100 * number:{form}}" for number in estimate)
    return f"{mean} ({low} to {high})"


def as_markdown(scores: Sequence[RowScore]) -> str:
    """The tables for a document, each under its title."""
    return "\n\n".join(f"**{table.title}**\n\n{table.as_markdown()}" for table in tabulate(scores))


def as_json(scores: Sequence[RowScore]) -> list[dict[str, Any]]:
    return [
        {
            "row": score.row.name,
            "group": score.row.group,
            "seeds": len(score.share_by_seed),
            "tokens_per_video": round(score.tokens_per_video, 1),
            "shown_objects": round(score.shown_objects, 4),
            "accuracy_by_seed": [round(share, 4) for share in score.share_by_seed],
            "gain": score.gain and _named("difference", score.gain),
            "scores": {
                kind: {"n": score.asked[kind], **_named("accuracy", share), "chance": round(score.chances[kind], 4)}
                for kind, share in score.shares.items()
            },
        }
        for score in scores
    ]


def _named(name: str, estimate: Estimate) -> dict[str, Any]:
    mean, *interval = (round(number, 4) for number in estimate)
    return {name: mean, "interval_95": interval}


def plot(scores: Sequence[RowScore], path: Path) -> None:
    """Tokens of a video against right answers, a panel for each group; small dots are single seeds."""
    from matplotlib.figure import Figure

    groups = _by_group(scores)
    tokens = [score.tokens_per_video for score in scores]
    limits = (0.8 * min(_TICKS[0], *tokens), 1.25 * max(_TICKS[-1], *tokens))
    figure = Figure(figsize=(11, 3.8 * ((len(groups) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(groups) + 1) // 2, 2, sharex=True, sharey=True, squeeze=False).flat
    for members, axes in zip(groups.values(), panels, strict=False):  # in this order, or an unused panel is lost
        axes.set(xscale="log", xlim=limits)
        places = _set_apart([score.tokens_per_video for score in members])
        for number, (place, score) in enumerate(zip(places, members, strict=True)):
            mean, low, high = (100 * value for value in score.shares[ALL])
            colour = f"C{number}"
            axes.errorbar(place, mean, yerr=[[mean - low], [high - mean]], fmt="o", capsize=3, color=colour)
            axes.plot([place] * len(score.share_by_seed), 100 * np.array(score.share_by_seed), ".", color=colour, ms=4)
            axes.plot([], [], "o", color=colour, label=f"{score.row.name}, {score.tokens_per_video:.0f}")
        axes.axhline(100 * members[0].chances[ALL], color="grey", linestyle=":", label="guessing")
        axes.set(
            title=_title(members),
            xlabel="visual tokens a video (nearly equal numbers side by side)",
            ylabel="right answers, %",
        )
        axes.set_xticks(_TICKS, [str(tick) for tick in _TICKS], minor=False)
        axes.tick_params(labelbottom=True, labelleft=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    for unused in panels:
        unused.set_visible(False)
    figure.suptitle(PLOT_TITLE)
    with replacing(path) as whole:
        figure.savefig(whole, dpi=110)


def _set_apart(tokens: Sequence[float]) -> list[float]:
    """Numbers of tokens that (nearly) coincide, drawn side by side in their order, around their common middle."""
    clusters: list[list[int]] = []
    for number in sorted(range(len(tokens)), key=lambda number: tokens[number]):
        if clusters and tokens[number] < _NEAR * tokens[clusters[-1][-1]]:
            clusters[-1].append(number)
        else:
            clusters.append([number])
    places = [0.0] * len(tokens)
    for cluster in clusters:
        middle = float(np.exp(np.mean(np.log([tokens[number] for number in cluster]))))
        for step, number in enumerate(cluster):
            places[number] = middle * _NEAR ** (step - (len(cluster) - 1) / 2)
    return places
