"""Results of a benchmark: measures with their intervals, beside the published ones, as JSON, markdown and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

from longvlm import __version__
from longvlm.evaluation.measures import LETTERS, Measure

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Results:
    """All measures of one run, with what has to be known to read them.

    `judge` holds model, url and versions (what the endpoint said it is), or is None for none but the offline one.
    `notes` are about this run, `explanations` about how its figures come about.
    """

    task: str
    model: str
    num_rows: int
    num_videos: int
    num_unanswered: int
    measures: tuple[Measure, ...]
    settings: Mapping[str, Any]
    judge: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    explanations: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "model": self.model,
            "rows": self.num_rows,
            "videos": self.num_videos,
            "unanswered": self.num_unanswered,
            "judge": self.judge,
            "longvlm": __version__,  # whose offline judge it was
            "measures": [_as_json(measure) for measure in self.measures],
            "settings": dict(self.settings),
            "notes": [*self.notes, *self.explanations],
        }

    def as_markdown(self) -> str:
        lines = [f"# {self.task}: {self.model}", "", self._summary(), ""]
        for judge, measures in self._by_judge():
            columns = _columns(measures)
            lines += [
                f"## {_heading(judge)}",
                "",
                f"| {' | '.join(columns)} |",
                "|---" + "|--:" * (len(columns) - 1) + "|",
            ]
            for measure in measures:
                cells = [cell.replace("|", "\\|") for cell in _cells(measure, measures)]
                lines.append(f"| {' | '.join(cells)} |")
            lines.append("")
        return "\n".join([*lines, *(f"- {note}" for note in (*self.notes, *self.explanations)), ""])

    def as_tables(self) -> Iterator[Table]:
        """One table for each judge, with headings broken so that all fits into 80 columns."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        for judge, measures in self._by_judge():
            heading = Text(f"{self.task}: {self.model}\n{_heading(judge)}")
            table = Table(title=heading, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
            for place, name in enumerate(_columns(measures)):
                column = name.replace(" (published)", "\npublished").replace("Video-", "Video-\n")
                table.add_column(column, justify="right" if place else "left", no_wrap=place > 0, overflow="fold")
            for before, measure in zip([None, *measures], measures, strict=False):
                if before is not None and before.group is None and measure.group is not None:
                    table.add_section()
                table.add_row(*map(Text, _cells(measure, measures)))
            yield table

    def _summary(self) -> str:
        answered = (
            f"{self.num_rows - self.num_unanswered} of {self.num_rows} rows about {self.num_videos} videos answered"
        )
        return f"{answered}." if self.judge is None else f"{answered}; judge: {judge_name(self.judge)}."

    def _by_judge(self) -> Iterator[tuple[str, list[Measure]]]:
        for judge in dict.fromkeys(measure.judge for measure in self.measures):
            yield judge, [measure for measure in self.measures if measure.judge == judge]


def _heading(judge: str) -> str:
    return "Letters compared" if judge == LETTERS else f"Judge: {judge}"


def _columns(measures: Sequence[Measure]) -> list[str]:
    return ["measure", "n", "mean", "95 % interval", *(f"{name} (published)" for name in published_names(measures))]


def _cells(measure: Measure, measures: Sequence[Measure]) -> list[str]:
    """The row of one measure under the headings that all of them have."""
    value, figures = measure.value, dict(measure.published)
    count = f"{value.n} of {value.n + measure.unjudged}" if measure.unjudged else str(value.n)
    published = [measure.show(figures[name]) if name in figures else "" for name in published_names(measures)]
    return [measure.label, count, measure.show(value.mean), measure.interval, *published]


def published_names(measures: Sequence[Measure]) -> list[str]:
    """The models that any of these measures is compared with."""
    return list(dict.fromkeys(name for measure in measures for name, _ in measure.published))


def judge_name(judge: Mapping[str, Any]) -> str:
    versions = [version for version in judge["versions"] if version != judge["model"]]
    return f"{judge['model']} [{', '.join(versions)}]" if versions else str(judge["model"])


def _as_json(measure: Measure) -> dict[str, Any]:
    value = measure.value
    return {
        "judge": measure.judge,
        "measure": measure.name,
        "group": measure.group,
        "unit": measure.unit,
        "n": value.n,
        "unreadable": measure.unreadable,
        "unreached": measure.unreached,
        "mean": None if isnan(value.mean) else round(value.mean, 4),
        "interval_95": None if isnan(value.low) else [round(value.low, 4), round(value.high, 4)],
        "published": dict(measure.published),
    }
