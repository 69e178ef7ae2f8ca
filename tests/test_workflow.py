"""The commands of docs/workflow.md are ones that `longvlm` understands; what they do is tested where they are."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from longvlm import cli
from longvlm.commands.eval import TASKS
from longvlm.training.recipe import bundled_recipes

TORCHRUN = "torchrun --nproc-per-node 4 -m "
WORKFLOW = (Path(__file__).parents[1] / "docs" / "workflow.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    blocks = re.findall(r"```\n(.*?)```", WORKFLOW, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    split = [shlex.split(line.replace(TORCHRUN, ""), comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["longvlm"]]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_option_is_known(words: list[str]) -> None:
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, list(words))  # raises for what it doesn't know


def test_the_tables_name_what_there_is() -> None:
    assert {words[0] for words in commands()} == {"weights", "data", "extract", "features", "train", "eval"}
    assert set(re.findall(r"^\| `([\w-]+\.yaml)`", WORKFLOW, flags=re.MULTILINE)) == set(bundled_recipes())
    listed = re.search(r"^Tasks: (.*?)\.", WORKFLOW, flags=re.MULTILINE)
    assert listed and set(re.findall(r"`([\w-]+)`", listed[1])) == set(TASKS)
