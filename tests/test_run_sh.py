"""The script that goes the whole way, as the README names it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "run.sh"

pytestmark = pytest.mark.slow


def test_the_script_goes_from_data_to_scores_and_on_after_a_stop(tmp_path: Path) -> None:
    shutil.copy(SCRIPT, tmp_path)
    few = {"VIDEOS": "6", "CHANGES": "schedule.max_steps=3 machine.threads=1", "PYTHON": sys.executable}

    def run() -> str:
        done = subprocess.run(
            ["sh", "run.sh"], cwd=tmp_path, env={**os.environ, **few}, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    run()
    axes = json.loads((tmp_path / "runs/run/results/video-chatgpt/results.json").read_text())
    assert {"correctness", "detail", "context", "temporal", "consistency"} <= {
        one["measure"].partition(":")[0] for one in axes["measures"]
    }
    assert (tmp_path / "runs/run/results/activitynet-qa/results.md").is_file()
    (video, *_) = sorted((tmp_path / "datasets/generated/v1-2/train").iterdir())
    video.write_bytes(b"no video")
    shutil.rmtree(tmp_path / "runs")
    said = run()
    assert "run.sh goes on without them." in said and video.name in said


def test_as_it_is_the_trained_model_beats_its_untrained_start(tmp_path: Path) -> None:
    """The whole script, within the twenty minutes that it is to take on two cores."""
    shutil.copy(SCRIPT, tmp_path)
    here = {"cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run(
        ["sh", "run.sh"], env={**os.environ, "PYTHON": sys.executable}, timeout=1200, check=False, **here
    )
    assert done.returncode == 0, done.stderr[-3000:]
    data, run = "datasets/generated", "runs/run"
    untrained = [sys.executable, "-m", "longvlm", "eval", "activitynet-qa", "--model", f"{run}/training/base"]
    untrained += ["--videos", f"{run}/features/test", "-o", f"{run}/results/untrained"]
    untrained += ["--annotations", f"{data}/test_q.json", f"{data}/test_a.json"]
    done = subprocess.run(untrained, timeout=600, check=False, **here)
    assert done.returncode == 0, done.stderr[-3000:]
    trained, start = (_intervals(tmp_path / run / "results" / name) for name in ("activitynet-qa", "untrained"))
    assert set(trained) == set(start) == {"exact match", "token F1"}
    for measure, (low, _) in trained.items():
        assert low > start[measure][1], measure


def _intervals(folder: Path) -> dict[str, list[float]]:
    """Of the measures of all questions, 95 %."""
    measures = json.loads((folder / "results.json").read_text())["measures"]
    return {one["measure"]: one["interval_95"] for one in measures if one["group"] is None}
