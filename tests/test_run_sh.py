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
