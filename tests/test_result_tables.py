"""The documents' tables are those of the files of results that they come from."""

import json
from pathlib import Path

import pytest

from benchmarks import report

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_the_speeds_are_those_that_were_measured(name: str) -> None:
    assert "\n".join(report.table("cpu")) in (ROOT / name).read_text(encoding="utf-8")


def test_the_study_is_the_one_that_was_run() -> None:
    document = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "docs" / "results" / "study.json").read_text(encoding="utf-8"))
    assert len(found["rows"]) > 10
    for row in found["rows"]:
        accuracy, (low, high) = row["scores"]["all"]["accuracy"], row["scores"]["all"]["interval_95"]
        assert row["row"] in document
        assert any(
            f"{100 * (accuracy + off):.1f} ({100 * (low + off):.1f} to {100 * (high + off):.1f})" in document
            for off in (0, 1e-9, -1e-9)
        ), row["row"]
