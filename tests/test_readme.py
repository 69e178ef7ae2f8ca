"""The README's commands and code, run as they stand; a large model from the hub is replaced by a tiny checkpoint."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from tiny_checkpoint import save_tiny_checkpoint

from longvlm import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HUB_ID = re.compile(r"llava-hf/[\w.-]+")
SET_UP = ("make", "python3", "pip", ".", "python", "sh")  # run by CI itself, or with a test of their own


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def longvlm_commands() -> list[list[str]]:
    lines = [line for block in code_blocks("bash") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines]
    assert all(words[0] in ("longvlm", *SET_UP) for words in commands if words)
    return [words[1:] for words in commands if words and words[0] == "longvlm"]


@pytest.fixture
def film_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a film.mp4, where the commands are run."""
    shutil.copy(str(files("longvlm") / "assets" / "sample.mp4"), tmp_path / "film.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_run_in_their_order(
    film_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = save_tiny_checkpoint(film_folder / "tiny")
    commands = longvlm_commands()
    assert {words[0] for words in commands} == {"ask", "chat", "encode", "inspect", "plan", "demo"}
    for words in commands:
        arguments = [str(tiny) if HUB_ID.fullmatch(word) else word for word in words]
        monkeypatch.setattr(sys, "argv", ["longvlm", *arguments])
        with monkeypatch.context() as patch, (film_folder / "questions.txt").open("w+") as questions:
            questions.write("What appears first?\n/quit\n")
            questions.seek(0)
            patch.setattr(sys, "stdin", questions)
            with pytest.raises(SystemExit) as ended:
                cli.main()
        captured = capsys.readouterr()
        assert ended.value.code == 0, (words, captured.err)
        assert captured.out or words[0] in ("encode", "inspect"), words
    assert (film_folder / "film.longvlm").is_file()
    assert (film_folder / "report.html").is_file()


def test_the_python_code_runs(film_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, compression = code_blocks("python")
    names: dict[str, object] = {}
    exec(compile(whole, "README.md", "exec"), names)
    assert len(names["answers"]) == 2  # type: ignore[arg-type]
    assert names["part"].num_segments == 6  # type: ignore[attr-defined]
    assert len(capsys.readouterr().out) > 20
    tiny = str(save_tiny_checkpoint(film_folder / "tiny"))
    exec(compile(HUB_ID.sub(tiny, compression.replace("60", "16")), "README.md", "exec"), names)
    assert names["model"].compression.tokens_per_segment == 16  # type: ignore[attr-defined]


def test_the_world_renders_as_the_readme_says(film_folder: Path) -> None:
    line = next(line for block in code_blocks("bash") for line in block.splitlines() if "world render" in line)
    command = [sys.executable, *shlex.split(line.replace("180", "12"))[1:]]
    subprocess.run(command, check=True, capture_output=True, cwd=film_folder)
    assert (film_folder / "world.mp4").stat().st_size > 10_000
    assert (film_folder / "world.json").is_file()


def test_every_file_and_folder_that_the_readme_names_exists() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    in_table = re.findall(r"^\| `((?:src|docs)/[^`]+)`", README, flags=re.MULTILINE)
    assert len(links) + len(in_table) > 8
    for name in [*links, *in_table]:
        assert (ROOT / name).exists(), name
