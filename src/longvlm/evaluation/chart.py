"""The bar chart of a benchmark's results: means with their intervals, and the published figures as marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longvlm.evaluation.measures import Measure
from longvlm.evaluation.results import Results
from longvlm.whole_files import replacing

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_MARKS = ("D", "s", "^", "v")
_COLOURS = ("tab:blue", "tab:orange")  # a judge, and the offline one
_PANELS = (("of 5", 5.0, "score, 0 to 5"), ("%", 100.0, "%"))


def draw_chart(results: Results, path: Path) -> None:
    """Write a PNG: one panel of scores and one of shares, as far as there are any."""
    from matplotlib.figure import Figure

    panels = [
        (shown, limit, label)
        for unit, limit, label in _PANELS
        if (shown := [measure for measure in results.measures if measure.unit == unit and measure.value.n])
    ]
    heights = [len(shown) for shown, _, _ in panels] or [1]
    figure = Figure(figsize=(8.0, 1.6 + 0.34 * sum(heights) + 0.7 * len(heights)), layout="constrained")
    heading = f"{results.task}: {_plain(results.model, 70)}\nbars: mean; lines: 95 % interval, clustered by video"
    figure.suptitle(heading, fontsize=11)
    colours = dict(zip(dict.fromkeys(measure.judge for measure in results.measures), _COLOURS, strict=False))
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (shown, limit, label) in zip(axes, panels, strict=False):
        _draw_panel(panel, shown, limit, colours)
        panel.set_xlabel(label)
    handles: dict[str, Artist] = {}
    for panel in axes:
        handles |= {text: handle for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), list(handles), loc="outside lower center", ncols=3, frameon=False)
    with replacing(path) as whole:
        figure.savefig(whole, dpi=130, format="png")


def _draw_panel(panel: Axes, shown: Sequence[Measure], limit: float, colours: dict[str, str]) -> None:
    places = range(len(shown))
    means = [measure.value.mean for measure in shown]
    spread = [
        [max(0.0, measure.value.mean - measure.value.low) for measure in shown],
        [max(0.0, measure.value.high - measure.value.mean) for measure in shown],
    ]
    for judge in dict.fromkeys(measure.judge for measure in shown):
        own = [place for place in places if shown[place].judge == judge]
        panel.barh(own, [means[place] for place in own], color=colours[judge], alpha=0.75, label=_plain(judge, 50))
    panel.errorbar(means, places, xerr=spread, fmt="none", ecolor="black", elinewidth=1.2, capsize=3, clip_on=False)
    names = dict.fromkeys(name for measure in shown for name, _ in measure.published)
    for mark, name in zip(_MARKS, names, strict=False):
        points = [
            (dict(shown[place].published)[name], place) for place in places if name in dict(shown[place].published)
        ]
        xs, ys = zip(*points, strict=True)
        label = f"{name} (published, other judge)"
        panel.scatter(xs, ys, marker=mark, facecolor="white", edgecolor="black", zorder=3, label=label)
    for place in places:
        panel.text(1.01 * limit, place, shown[place].show(means[place]), va="center", fontsize=9)
    panel.set(yticks=list(places), yticklabels=[_plain(measure.label, 45) for measure in shown])
    panel.set(xlim=(0, limit), ylim=(len(shown) - 0.4, -0.6))
    panel.grid(axis="x", alpha=0.3)
    panel.set_axisbelow(True)


def _plain(text: str, most: int) -> str:
    """At most so many characters, the last ones, and no formula in them."""
    return (text if len(text) <= most else f"…{text[1 - most :]}").replace("$", r"\$")
