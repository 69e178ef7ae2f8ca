"""The demo, with the bundled model: what it says of the bundled video, and of one drawn for the call."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors import safe_open

import longvlm
from longvlm.commands.demo import KINDS_ASKED, NUM_QUESTIONS, choose_questions, demo
from longvlm.commands.options import ModelOptions

MODEL = Path(longvlm.__file__).parent / "assets" / "default_model"


@pytest.mark.parametrize(("dtype", "right"), [("float32", "6"), ("bfloat16", "[56]")])  # rounding depends on machines
def test_the_bundled_model_answers_all_of_the_sample(
    capsys: pytest.CaptureFixture[str], dtype: str, right: str
) -> None:
    demo(None, ModelOptions(dtype=dtype))
    said = capsys.readouterr().out
    assert re.search(rf"{right} of 6 right. Encoding 180 s of video took", said)


def test_a_drawn_video_is_another_one_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    demo(7, ModelOptions())
    said = capsys.readouterr().out
    assert "drawn from seed 7" in said
    assert re.search(r"[56] of 6 right. Encoding 180 s of video took", said)
    assert not list(tmp_path.iterdir())


def test_kinds_that_a_video_lacks_are_made_up_for_by_others() -> None:
    def entry(kind: str) -> dict[str, str]:
        return {"kind": kind, "question": f"{kind}?", "answer": "yes", "subject": ""}

    chosen = choose_questions({"questions": [entry(kind) for kind in KINDS_ASKED if kind not in ("after", "when")]})
    assert [one.kind for one in chosen] == ["first", "last", "exists", "action", "before", "count"]
    assert len(chosen) == NUM_QUESTIONS


def test_thirds_are_asked_for_where_they_are_clear() -> None:
    spans = {"red ring": (1.0, 9.5), "blue star": (14.0, 16.0), "pink heart": (21.0, 29.0)}
    truth = {
        "duration_seconds": 30.0,
        "events": [{"object": o, "start_seconds": a, "end_seconds": b} for o, (a, b) in spans.items()],
        "questions": [{"kind": "when", "question": f"{o}?", "answer": "early", "subject": o} for o in spans],
    }
    assert [one.subject for one in choose_questions(truth)] == ["blue star"]


def test_the_bundled_weights_are_small_and_bfloat16() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 40e6
    with safe_open(str(MODEL / "model.safetensors"), "pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 (no mapping)
    assert kinds == {"BF16"}
