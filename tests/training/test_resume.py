"""Killed at any moment and started again with the same command, a training ends as one that ran through."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import read_recipe, train_in_child, train_until_marking

from longvlm.errors import LongVLMError
from longvlm.pipeline import LongVLM
from longvlm.training.checkpointing import (
    COMPLETE,
    complete_checkpoints,
    remove_checkpoint,
    remove_half_written,
)
from longvlm.training.finetune import train
from longvlm.training.run_folder import CHECKPOINTS
from longvlm.whole_files import locked

# Dropout makes the random state count, too; two epochs make the order of the second one count.
CHANGES = ["learning_rates.lora=1e-2", "lora.dropout=0.2", "schedule.epochs=4", "schedule.accumulation=2"]
WHOLE_MODEL = ["learning_rates.new_tokens=null", "learning_rates.language_model=1e-3", "schedule.epochs=4"]
WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def processes() -> Iterator[multiprocessing.context.ForkServerContext]:
    """Children that start in a moment, since their server has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longvlm.training.finetune", "peft"])
    yield context


def kill_when(process: multiprocessing.process.BaseProcess, reached: Callable[[], bool]) -> bool:
    """SIGKILL as soon as it is reached; whether the process was still running then."""
    deadline = time.monotonic() + WAIT_SECONDS
    while process.is_alive() and not reached() and time.monotonic() < deadline:
        time.sleep(0.002)
    was_running = process.is_alive()
    process.kill()
    process.join()
    return was_running


def assert_same_weights(folder: Path, other: Path) -> None:
    """Of what was trained: a part, or the whole model."""
    (name,) = {path.name for path in (folder / "model").glob("*.safetensors")}
    ours, theirs = (load_file(path / "model" / name) for path in (folder, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def uninterrupted(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(read_recipe(small_recipe, *CHANGES, f"output={output}"), say=lambda text: None)
    return output


def test_killed_while_a_checkpoint_is_written(
    small_recipe: Path,
    uninterrupted: Path,
    tmp_path: Path,
    processes: multiprocessing.context.ForkServerContext,
) -> None:
    changes = [*CHANGES, f"output={tmp_path / 'run'}"]
    for step in (4, 6):
        process = processes.Process(target=train_until_marking, args=(small_recipe, changes, step))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        unfinished = tmp_path / "run" / CHECKPOINTS / f"checkpoint-{step}"
        assert unfinished.is_dir() and not (unfinished / COMPLETE).exists()
    said: list[str] = []
    train(read_recipe(small_recipe, *changes), say=said.append)
    assert any("going on from" in line and "checkpoint-4" in line for line in said)
    assert_same_weights(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("name", ["trained_part.safetensors", "optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("left_share", [0.0, 0.5])
def test_a_damaged_checkpoint_is_named_and_left(
    small_recipe: Path, uninterrupted: Path, tmp_path: Path, name: str, left_share: float
) -> None:
    output = tmp_path / "run"
    shutil.copytree(uninterrupted, output)
    shutil.rmtree(output / "model")
    checkpoint = complete_checkpoints(output / CHECKPOINTS)[-1]
    path = checkpoint / name
    content = path.read_bytes()
    path.write_bytes(content[: int(left_share * len(content))])
    with pytest.raises(LongVLMError) as refused:
        train(read_recipe(small_recipe, *CHANGES, f"output={output}"), say=lambda text: None)
    assert str(refused.value).startswith(f"{path} is damaged (")
    assert f"remove {checkpoint}, and" in str(refused.value) and "\n" not in str(refused.value)
    assert checkpoint.is_dir()


def test_resumed_between_measurements_with_workers(small_recipe: Path, tmp_path: Path) -> None:
    """What prepares held-out batches must draw no number that a resumed run draws at another moment."""
    output = tmp_path / "run"
    more = [
        "schedule.epochs=8",
        "held_out_share=0.2",
        "reports.evaluate_every=2",
        "reports.checkpoints_kept=99",
        "machine.workers=1",
    ]
    recipe = read_recipe(small_recipe, *CHANGES, *more, f"output={output}")
    train(recipe, say=lambda text: None)
    (tmp_path / "whole").mkdir()
    (output / "model").rename(tmp_path / "whole" / "model")
    for checkpoint in complete_checkpoints(output / CHECKPOINTS)[2:]:
        remove_checkpoint(checkpoint)
    said: list[str] = []
    train(recipe, say=said.append)
    assert any("going on from" in line for line in said)
    assert_same_weights(output, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1500)  # nine children or more, each waited for
@pytest.mark.parametrize("changes", [CHANGES, WHOLE_MODEL], ids=["part", "whole"])
def test_killed_at_five_random_moments(
    small_recipe: Path,
    tmp_path: Path,
    processes: multiprocessing.context.ForkServerContext,
    changes: list[str],
) -> None:
    """What runs through between the kills, since little was left to do, is compared as well, and begun again; and one
    kill at least comes when there is a checkpoint to go on from.
    """

    def start(name: str) -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=train_in_child, args=(small_recipe, [*changes, f"output={tmp_path / name}"]))
        process.start()
        return process

    duration = 0.0
    for name in ("imports", "timed"):  # the first child waits until the server has imported everything
        started = time.monotonic()
        start(name).join()
        duration = time.monotonic() - started
    chance, hits, hits_after_a_checkpoint = random.Random(0), 0, 0
    while hits < 5 or not hits_after_a_checkpoint:
        if kill_when(start("run"), moment_after(chance.uniform(0.2, 1.0) * duration)):
            hits += 1
            hits_after_a_checkpoint += bool(complete_checkpoints(tmp_path / "run" / CHECKPOINTS))
            continue
        assert_same_weights(tmp_path / "run", tmp_path / "timed")
        shutil.rmtree(tmp_path / "run")
    start("run").join()
    assert_same_weights(tmp_path / "run", tmp_path / "timed")


def moment_after(seconds: float) -> Callable[[], bool]:
    """Whether so much time has gone by since it was first asked."""
    asked: list[float] = []

    def reached() -> bool:
        asked.append(time.monotonic())
        return asked[-1] - asked[0] > seconds

    return reached


def test_a_half_written_checkpoint_is_ignored(small_recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """One that looks the newest, but lacks its mark, as if the kill had come at its last file."""
    output = tmp_path / "run"
    shutil.copytree(uninterrupted, output)
    shutil.rmtree(output / "model")
    (last,) = complete_checkpoints(output / CHECKPOINTS)
    broken = last.with_name("checkpoint-99")
    shutil.copytree(last, broken)
    (broken / COMPLETE).unlink()
    (broken / "trained_part.safetensors").write_bytes(b"half")
    said: list[str] = []
    train(read_recipe(small_recipe, *CHANGES, f"output={output}"), say=said.append)
    assert f"going on from {last}" in said
    assert not broken.exists()
    assert_same_weights(output, uninterrupted)


def test_a_whole_language_model_goes_on(small_recipe: Path, tmp_path: Path) -> None:
    changes = [*WHOLE_MODEL, "reports.checkpoints_kept=9", f"output={tmp_path / 'run'}"]
    recipe = read_recipe(small_recipe, *changes)
    train(recipe, say=lambda text: None)
    (tmp_path / "whole").mkdir()
    (tmp_path / "run" / "model").rename(tmp_path / "whole" / "model")
    first, *later = complete_checkpoints(tmp_path / "run" / CHECKPOINTS)
    for checkpoint in later:
        remove_checkpoint(checkpoint)
    LongVLM.from_pretrained(first, device="cpu", dtype="float32").ask(None, "What?", max_new_tokens=2)
    said: list[str] = []
    train(recipe, say=said.append)
    assert f"going on from {first}" in said
    resumed = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert "language_model.lm_head.weight" in resumed  # as LLaVA's checkpoints call it
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_two_runs_in_one_folder_are_refused(small_recipe: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(LongVLMError, match="Another process is at work in"):
        train(read_recipe(small_recipe, f"output={tmp_path}"), say=lambda text: None)


def test_only_marked_checkpoints_are_complete(tmp_path: Path) -> None:
    for step in (2, 10, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (10, 4):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-10"]
    remove_half_written(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-4"]


def test_only_unfinished_checkpoints_are_thrown_away(tmp_path: Path) -> None:
    for name in ("checkpoint-4", "checkpoint-6", "checkpoint-4-kept", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-notes.txt").touch()
    (tmp_path / "checkpoint-4" / "complete").touch()
    remove_half_written(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"checkpoint-4", "checkpoint-4-kept", "other", "checkpoint-notes.txt"}
