"""The script that goes the whole way, as the README names it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from longvlm import cli

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "run.sh"


def make_program(path: Path) -> Path:
    """In place of Python: does nothing, and writes a line with its name and arguments into `called`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/bin/sh\necho "$0 $*" >> called\n')
    path.chmod(0o755)
    return path


def calls(folder: Path, **variables: str) -> list[str]:
    """What the script runs in `folder`, where python3 is a program that does nothing."""
    shutil.copy(SCRIPT, folder)
    path = f"{make_program(folder / 'programs/python3').parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "run.sh"], cwd=folder, env={"PATH": path, **variables}, capture_output=True, check=False)
    return (folder / "called").read_text().splitlines()


def make_data(folder: Path) -> None:
    """Files by the names that the script looks for."""
    names = ["v1-2/train/v_1.mp4", "Test_Videos/v_2.mp4", "video_chatgpt_training.json", "test_q.json", "test_a.json"]
    for name in [*names, *(f"{kind}_qa.json" for kind in ("generic", "temporal", "consistency"))]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_it_takes_the_python_of_the_folders_own_environment_or_else_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    make_program(tmp_path / "own/.venv/bin/python")
    assert calls(tmp_path / "own")[0].split()[0] == ".venv/bin/python"
    (tmp_path / "none").mkdir()
    assert calls(tmp_path / "none")[0].split()[0] == str(tmp_path / "none/programs/python3")


def test_what_is_named_in_the_environment_reaches_the_commands(tmp_path: Path) -> None:
    make_data(tmp_path / "anet")
    named = {"DATA": "anet", "RECIPE": "paper.yaml", "BASE": "LLAVA_7B", "ENCODER": "clip", "OUTPUT": "out"}
    named |= {"ANSWERS": "--temperature 0.2 --seed 0", "JUDGE": "--judge-model gpt", "CHANGES": "schedule.epochs=1"}
    named |= {"OPENAI_API_KEY": "sk-1", "PROCESSES": "4"}
    scored = "--model out/training/model --videos out/features/test -o out/results"
    asked = "--temperature 0.2 --seed 0 --judge-model gpt --annotations"
    needed, *called = calls(tmp_path, **named)
    assert needed.endswith(" -c import longvlm, matplotlib, openai")
    together = f"{tmp_path / 'programs/python3'} -m torch.distributed.run --nproc-per-node 4 -m longvlm train "
    assert [line for line in called if "torch" in line] == [line for line in called if line.startswith(together)] != []
    recipe = (
        "paper.yaml output=out/training model.base=LLAVA_7B model.vision_tower=clip "
        "data.0.instructions=anet/video_chatgpt_training.json data.0.features=out/features/train data.0.missing=drop "
        "schedule.epochs=1"
    )
    assert [line.partition(" -m longvlm ")[2] for line in called] == [
        f"train --check {recipe}",
        "data check --names-only anet",
        "extract anet/v1-2/train -o out/features/train --vision-tower clip",
        f"train {recipe}",
        "extract anet/Test_Videos -o out/features/test --vision-tower clip",
        f"eval video-chatgpt {scored}/video-chatgpt {asked} "
        "anet/generic_qa.json anet/temporal_qa.json anet/consistency_qa.json",
        f"eval activitynet-qa {scored}/activitynet-qa {asked} anet/test_q.json anet/test_a.json",
    ]


@pytest.mark.parametrize("named", [{"BASE": "LLAVA_7B"}, {"RECIPE": "paper.yaml"}])
def test_a_base_without_its_encoder_is_refused_before_anything_runs(tmp_path: Path, named: dict[str, str]) -> None:
    shutil.copy(SCRIPT, tmp_path)
    environment = {**os.environ, **named, "PYTHON": str(make_program(tmp_path / "python3"))}
    done = subprocess.run(["sh", "run.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and not (tmp_path / "called").exists()
    (name,) = named.values()
    assert done.stderr.startswith(f"run.sh: {name} needs features of its own encoder; name in ENCODER the vision tower")


def test_a_recipe_of_ones_own_for_the_bundled_model_needs_no_encoder(tmp_path: Path) -> None:
    tiny = ROOT / "src/longvlm/training/recipes/tiny.yaml"
    shutil.copy(tiny, tmp_path / "mine.yaml")
    assert any("train --check mine.yaml" in line for line in calls(tmp_path, RECIPE="mine.yaml"))


def test_a_judge_without_a_key_is_refused_before_anything_runs(tmp_path: Path) -> None:
    shutil.copy(SCRIPT, tmp_path)
    environment = {
        "PATH": os.environ["PATH"],
        "JUDGE": "--judge-model gpt",
        "PYTHON": str(make_program(tmp_path / "py")),
    }
    done = subprocess.run(["sh", "run.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and not (tmp_path / "called").exists()
    assert done.stderr.startswith("run.sh: JUDGE is --judge-model gpt, and there is no key for it; set OPENAI_API_KEY")


def test_the_papers_run_in_its_first_lines_names_options_that_eval_has() -> None:
    options = dict(re.findall(r'(ANSWERS|JUDGE)="(.*?)"', SCRIPT.read_text()))
    words = shlex.split(" ".join(options.values()))
    found = typer.main.get_command(cli.app).commands["eval"].make_context("eval", ["activitynet-qa", "-o", "x", *words])
    wanted = {"temperature": 0.2, "max_new_tokens": 1024, "seed": 0, "judge_model": "gpt-4o-mini"}
    assert {name: found.params[name] for name in wanted} == wanted


def test_the_generated_data_is_made_alike_wherever_it_is_named(tmp_path: Path) -> None:
    """A folder that holds other videos is refused, and all of these write to the same one."""
    (command,) = {line.partition(" -m ")[2] for line in calls(tmp_path) if "longvlm.world" in line}
    for place in ("docs/workflow.md", "src/longvlm/training/recipes/tiny.yaml"):
        text = (ROOT / place).read_text(encoding="utf-8")
        assert re.findall(r"python -m (longvlm\.world dataset datasets/generated.*)", text) == [command], place


@pytest.mark.slow
@pytest.mark.timeout(700)  # it runs twice
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


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_as_it_is_the_trained_model_beats_its_untrained_start(tmp_path: Path) -> None:
    """The whole script, within the twenty minutes that it is to take on two cores."""
    shutil.copy(SCRIPT, tmp_path)
    here = {"cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run(
        ["sh", "run.sh"], env={**os.environ, "PYTHON": sys.executable}, timeout=1200, check=False, **here
    )
    assert done.returncode == 0, done.stderr[-3000:]
    data, run = "datasets/generated", "runs/run"
    longvlm = [sys.executable, "-m", "longvlm"]
    untrained = ["train", "tiny.yaml", f"output={run}/untrained", f"data.0.features={run}/features/train"]
    untrained += ["schedule.max_steps=1", "learning_rates={projector: 1.0e-12}"]
    asked = ["eval", "activitynet-qa", "--model", f"{run}/untrained/model", "--videos", f"{run}/features/test"]
    asked += ["-o", f"{run}/results/untrained", "--annotations", f"{data}/test_q.json", f"{data}/test_a.json"]
    for command in (untrained, asked):
        done = subprocess.run([*longvlm, *command], timeout=600, check=False, **here)
        assert done.returncode == 0, done.stderr[-3000:]
    trained, start = (_measures(tmp_path / run / "results" / name) for name in ("activitynet-qa", "untrained"))
    assert set(trained) == set(start) == {"exact match", "token F1"}
    assert trained["token F1"]["interval_95"][0] > start["token F1"]["interval_95"][1]
    # With no answer right, the upper end of 16 videos is 19 %, wherever the share of the trained model lies.
    assert trained["exact match"]["interval_95"][0] > start["exact match"]["mean"]


def _measures(folder: Path) -> dict[str, dict[str, Any]]:
    """Those of all questions, by name."""
    measures = json.loads((folder / "results.json").read_text())["measures"]
    return {one["measure"]: one for one in measures if one["group"] is None}
