"""The documents' tables are those of the files of results that they come from."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_the_speeds_are_those_that_were_measured(name: str) -> None:
    assert "\n".join(report.table("cpu")) in (ROOT / name).read_text(encoding="utf-8")


def test_the_study_is_the_one_that_was_run() -> None:
    """Every number of its tables; the file holds four digits of what the tables round."""
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "docs" / "results" / "study.json").read_text(encoding="utf-8"))["rows"]
    by_name = {(row["group"], row["row"]): row for row in found}
    told = set()
    for group, lines in re.findall(r"^\*\*(.+?): .*\*\*\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()]
        for column, name in enumerate(header[3:], start=3):
            told.add((group, name))
            compare({row[0]: (*row[1:3], row[column]) for row in rows}, by_name[group, name])
    assert told == by_name.keys() and len(told) > 10


def compare(cells: dict[str, tuple[str, str, str]], row: dict[str, Any]) -> None:
    """A column, by question with how often it was asked and guessing beside it, and what the file holds of the row."""
    gain = cells.pop(next(name for name in cells if name.startswith("all, less ")))[2]
    tokens, shown = cells.pop("visual tokens a video")[2], cells.pop("objects that a token shows")[2]
    assert float(tokens) == pytest.approx(row["tokens_per_video"], abs=0.6)
    assert float(shown) == pytest.approx(100 * row["shown_objects"], abs=0.51)
    assert numbers(gain) == pytest.approx(in_percent(row["gain"], "difference"), abs=0.056)
    assert cells.keys() == row["scores"].keys()
    for name, (asked, guessing, share) in cells.items():
        score = row["scores"][name]
        assert int(asked.replace(",", "")) == score["n"]
        assert float(guessing) == pytest.approx(100 * score["chance"], abs=0.51)
        assert numbers(share) == pytest.approx(in_percent(score, "accuracy"), abs=0.056)


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?[\d.]+", cell)]


def in_percent(estimate: dict[str, Any] | None, name: str) -> list[float]:
    return [] if estimate is None else [100 * number for number in (estimate[name], *estimate["interval_95"])]
