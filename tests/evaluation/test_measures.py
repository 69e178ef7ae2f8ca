"""Verdicts of a judge, added up by hand."""

from __future__ import annotations

import pytest

from longvlm.evaluation.benchmarks import BENCHMARKS
from longvlm.evaluation.judging import Judgement
from longvlm.evaluation.measures import measure_judged
from longvlm.evaluation.rows import Row


def test_accuracy_is_of_verdicts_and_the_score_of_scores() -> None:
    benchmark = BENCHMARKS["activitynet-qa"]
    (axis,) = benchmark.axes
    kinds = ("colour", "colour", "number", "number", "number")
    rows = [Row(axis.part, f"v{n}", ("What?",), "x", {"n": n}, {"type": kind}) for n, kind in enumerate(kinds)]
    predictions = {row.key: ("y",) for row in rows}
    said = [Judgement(1, True), Judgement(5, False), Judgement(4, True), None]  # the last row was not reached
    judgements = {(axis.name, row.key): one for row, one in zip(rows, said, strict=False)}
    measures = measure_judged(benchmark, rows, predictions, judgements, "judge")
    shown = {(one.name, one.group): (one.value.n, one.value.mean) for one in measures}
    assert shown == {
        ("accuracy", None): (3, pytest.approx(200 / 3)),
        ("score", None): (3, pytest.approx(10 / 3)),
        ("accuracy", "type colour"): (2, 50.0),
        ("accuracy", "type number"): (1, 100.0),
    }
    assert all((one.unreadable, one.unreached, one.judge) == (1, 1, "judge") for one in measures if one.group is None)
