"""The commands of docs/workflow.md are ones that `longvlm` understands; what they do is tested where they are."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from longvlm import cli
from longvlm.commands.eval import TASKS
from longvlm.training.instructions import read_instructions
from longvlm.training.recipe import bundled_recipes, load_recipe
from longvlm.world import __main__ as world

TORCHRUN = "torchrun --nproc-per-node 4 -m "
WORKFLOW = (Path(__file__).parents[1] / "docs" / "workflow.md").read_text(encoding="utf-8")


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", WORKFLOW, flags=re.DOTALL | re.MULTILINE)
    return [block for of, block in fenced if of == language]


def commands() -> list[list[str]]:
    """Of this document, and of the table in the README that sets them beside the original's."""
    lines = [line for block in blocks("") for line in block.replace("\\\n", " ").splitlines()]
    rows = README.partition("| step | the original | here |")[2].partition("\n\n")[0]
    lines += [line for line in re.findall(r"`([^`]+)`", rows) if line.count(" ") > 2]
    split = [shlex.split(line.replace(TORCHRUN, ""), comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["longvlm"]]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_option_is_known(words: list[str]) -> None:
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, list(words))  # raises for what it doesn't know


def test_the_worlds_commands_are_ones_that_it_understands() -> None:
    root = Path(__file__).parents[1]
    texts = [WORKFLOW, *((root / name).read_text("utf-8") for name in ("README.md", "docs/example.md"))]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    told = [shlex.split(line, comments=True)[3:] for line in lines if line.startswith("python -m longvlm.world ")]
    assert {name for name, *_ in told} >= {"render", "evaluate", "lengths", "dataset"}
    app = typer.main.get_command(world.app)
    for name, *words in told:
        app.commands[name].make_context(name, words)  # raises for what it doesn't know


def test_the_examples_for_your_own_videos_are_read(tmp_path: Path) -> None:
    examples = blocks("json")
    assert len(examples) == 2
    for example in examples:
        (tmp_path / "mine.json").write_text(example)
        (row,) = read_instructions(tmp_path / "mine.json")
        assert row.video == "kitchen_01" and [turn.speaker for turn in row.turns] == ["human", "gpt"]
    (recipe,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(recipe)
    assert load_recipe(tmp_path / "mine.yaml").data[0].videos == Path("videos")


def test_the_tables_name_what_there_is() -> None:
    assert {words[0] for words in commands()} == {"weights", "data", "extract", "features", "train", "eval"}
    assert set(re.findall(r"^\| `([\w-]+\.yaml)`", WORKFLOW, flags=re.MULTILINE)) == set(bundled_recipes())
    listed = WORKFLOW.partition("| task | files")[2].partition("\n\n")[0].splitlines()[2:]
    assert {task for row in listed for task in re.findall(r"`([\w-]+)`", row.split("|")[1])} == set(TASKS)
