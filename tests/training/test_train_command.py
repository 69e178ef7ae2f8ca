"""The command line: exit status 2 and one line for mistakes, as for every other command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from longvlm import cli
from longvlm.training.checkpointing import complete_checkpoints
from longvlm.training.run_folder import CHECKPOINTS


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, command: str = "train") -> int:
    monkeypatch.setattr("sys.argv", ["longvlm", command, *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_recipe_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_recipe: Path, tmp_path: Path
) -> None:
    assert run(monkeypatch, str(small_recipe), f"output={tmp_path / 'run'}", "schedule.max_steps=1") == 0
    told = capsys.readouterr()
    assert "part            parameters  trained  learning rate  stored as" in told.out
    assert f"the trained model is {tmp_path / 'run' / 'model'}" in told.err
    video, answers = str(small_recipe.parent / "features" / "v1.longvlm"), []
    (checkpoint,) = complete_checkpoints(tmp_path / "run" / CHECKPOINTS)
    for folder in (checkpoint, tmp_path / "run" / "model"):
        asked = [video, "What is in it?", "--model", str(folder), "--device", "cpu", "--max-new-tokens", "8", "--json"]
        assert run(monkeypatch, *asked, command="ask") == 0
        answers.append(json.loads(capsys.readouterr().out)["answers"][0]["answer"])
    assert answers[0] == answers[1]


def test_a_check_reads_no_data_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_recipe: Path, tmp_path: Path
) -> None:
    changes = [f"output={tmp_path / 'run'}", "data.0.instructions=nowhere.json"]
    assert run(monkeypatch, "--check", str(small_recipe), *changes) == 0
    told = capsys.readouterr()
    assert told.out == "" and told.err.endswith("recipe.yaml can be trained; its data was not read.\n")
    assert run(monkeypatch, "--check", str(small_recipe), *changes, "model.base=nowhere") == 2
    assert "Unknown model 'nowhere'" in capsys.readouterr().err
    wrong = ["learning_rates.lora=1e-3", "lora.targets=[q_prj]"]
    assert run(monkeypatch, "--check", str(small_recipe), *changes, *wrong) == 2
    assert "lora.targets has 'q_prj'; the known ones are q_proj" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "peft", None)
    assert run(monkeypatch, "--check", str(small_recipe), *changes, "learning_rates.lora=1e-3") == 2
    assert "peft" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_data_folder_called_datasets_is_not_taken_for_a_package(small_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    changes = [f"output={tmp_path / 'run'}", "schedule.max_steps=1"]
    command = [sys.executable, "-m", "longvlm", "train", str(small_recipe), *changes]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.yaml"], "No such recipe: nothing.yaml"),
        (["tiny.yaml", "schedule.epoch=2"], "has the unknown key 'epoch'; its keys are epochs, max_steps"),
        (["tiny.yaml", "epochs"], "'epochs' is no change to a recipe; write key=value"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
