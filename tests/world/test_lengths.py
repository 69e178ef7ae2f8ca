"""Scores by length and depth are what the records say, and the plot can be opened."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from longvlm.errors import LongVLMError
from longvlm.world.evaluate import Record
from longvlm.world.lengths import DEPTHS, as_json, plot, score_length, tabulate
from longvlm.world.questions import Question


def record(video: int, kind: str, is_right: bool, span: tuple[float, float] | None, turn: int = 0) -> Record:
    right, wrong = {"direction": ("left", "right"), "when": ("early", "late"), "exists": ("yes", "no")}[kind]
    question = Question(kind, "?", right, 0.5, span, "red circle", turn)
    return Record(video, 100.0, question, right if is_right else wrong)


RECORDS = [
    record(0, "direction", True, (0.0, 10.0)),
    record(1, "direction", False, (5.0, 15.0)),
    record(0, "direction", True, (95.0, 100.0)),
    record(1, "direction", True, (38.0, 43.0)),
    record(1, "direction", False, None),  # nowhere: counts for the length only
    record(0, "when", True, (40.0, 60.0)),  # no needle
    record(0, "exists", True, (40.0, 60.0)),  # nor this: a "no" lies nowhere, and who always says yes were right
    record(0, "direction", True, (40.0, 60.0), turn=1),  # a later turn
]


def test_depth_is_the_middle_of_the_objects_time() -> None:
    scored = score_length(5, RECORDS)
    assert (scored.minutes, scored.n) == (5, 8)
    expected = [(0.5, 2), (float("nan"), 0), (1.0, 1), (float("nan"), 0), (1.0, 1)]
    assert len(expected) == DEPTHS
    for (share, n), (wanted_share, wanted_n) in zip(scored.by_depth, expected, strict=True):
        assert n == wanted_n
        assert share == wanted_share or (math.isnan(share) and math.isnan(wanted_share))


def test_the_numbers_are_plain_json_and_the_plot_opens(tmp_path: Path) -> None:
    scores = [score_length(1, RECORDS), score_length(60, RECORDS[:2])]
    first, second = as_json(scores)
    assert first["by_depth"][1] == {"accuracy": None, "n": 0}
    assert second["accuracy"] == 0.5 and second["interval_95"] == [0.0, 1.0]
    assert (first["of_the_first"], second["of_the_first"]) == (1.0, round(0.5 / (6 / 8), 4))
    assert [row[4] for row in tabulate(scores).rows] == ["100%", "67%"]
    assert tabulate(scores).rows[0][5:] == ("50% (2)", "–", "100% (1)", "–", "100% (1)")
    plot(scores, tmp_path / "lengths.png")
    assert Image.open(tmp_path / "lengths.png").size[0] > 300


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(LongVLMError, match="20 minutes"):
        score_length(20, [])
