"""Two processes on CPUs, as torchrun starts them, end with the weights that one process ends with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import read_recipe

from longvlm.pipeline import LongVLM
from longvlm.training.checkpointing import complete_checkpoints, remove_checkpoint
from longvlm.training.finetune import train
from longvlm.training.run_folder import CHECKPOINTS, HISTORY_FILE, MODEL
from longvlm.world.scene import make_scene
from longvlm.world.video import write_video

pytestmark = pytest.mark.timeout(1200)  # torchrun may take its whole time, three times over
slow = pytest.mark.slow

PARTS = ["learning_rates.lora=1e-2", "lora.dropout=0"]
WHOLE = ["learning_rates.new_tokens=null", "learning_rates.language_model=1e-3"]
COMMON = ["held_out_share=0.2", "reports.evaluate_every=2", "reports.checkpoints_kept=9"]


def torchrun(recipe: Path, output: Path, *changes: str) -> str:
    """What it said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "longvlm", "train", str(recipe), f"output={output}", *COMMON, *changes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        stdout, stderr = process.communicate(timeout=280)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the processes that it started, too
        raise
    assert process.returncode == 0, stdout[-2000:] + stderr[-4000:]
    assert stdout.count("language model") == 1  # one process speaks
    return stdout


def weights_of(output: Path) -> dict[str, torch.Tensor]:
    (path,) = (output / MODEL).glob("*.safetensors")
    return load_file(path)


def assert_near(output: Path, other: Path) -> None:
    ours, theirs = weights_of(output), weights_of(other)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "how",
    [
        PARTS,
        pytest.param(WHOLE, marks=slow),
        pytest.param([*PARTS, "machine.fsdp=true"], marks=slow),
        pytest.param([*WHOLE, "machine.fsdp=true"], marks=slow),
    ],
    ids=["ddp", "ddp of a whole model", "fsdp", "fsdp of a whole model"],
)
def test_two_processes_learn_what_one_does(how: list[str], small_recipe: Path, tmp_path: Path) -> None:
    alone = [change for change in how if "fsdp" not in change]
    alone += [f"output={tmp_path / 'alone'}", "schedule.batch_size=4"]
    train(read_recipe(small_recipe, *COMMON, *alone), say=lambda text: None)
    torchrun(small_recipe, tmp_path / "together", *how)
    assert_near(tmp_path / "together", tmp_path / "alone")
    model = LongVLM.from_pretrained(tmp_path / "together" / MODEL, device="cpu", dtype="float32")
    model.ask(None, "What?", max_new_tokens=2)


@slow
@pytest.mark.parametrize(
    "how",
    [[*PARTS, "lora.dropout=0.2"], [*PARTS, "machine.fsdp=true"], [*WHOLE, "machine.fsdp=true"]],
    ids=["ddp", "fsdp", "fsdp of a whole model"],
)
def test_two_processes_go_on_from_a_checkpoint(how: list[str], small_recipe: Path, tmp_path: Path) -> None:
    changes = [*how, "schedule.batch_size=1"]
    torchrun(small_recipe, tmp_path / "run", *changes)
    whole = weights_of(tmp_path / "run")
    first, *later = complete_checkpoints(tmp_path / "run" / CHECKPOINTS)
    assert first.name == "checkpoint-2"
    for checkpoint in later:
        remove_checkpoint(checkpoint)
    (tmp_path / "run" / MODEL).rename(tmp_path / "finished")
    assert "going on from" in torchrun(small_recipe, tmp_path / "run", *changes)
    resumed = weights_of(tmp_path / "run")
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=1e-5, atol=1e-6, msg=name)


@slow
def test_a_sharded_encoder_learns_and_goes_on(small_recipe: Path, tmp_path: Path) -> None:
    """Its last layer is read for [CLS] alone, and its last norm not at all."""
    for number in range(6):
        path = tmp_path / "videos" / f"v{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(make_scene(number, 10.0), path, width=64, height=48, fps=2, show_progress=False)
    changes = [f"data.0.videos={tmp_path / 'videos'}", "model.num_frames=8", "learning_rates.encoder=1e-3"]
    changes += ["machine.fsdp=true", "schedule.batch_size=1"]
    with pytest.raises(AssertionError, match=r"row 6 has no video, and an encoder that is sharded learns from rows"):
        torchrun(small_recipe, tmp_path / "with_texts", *changes)
    rows = json.loads((small_recipe.parent / "train.json").read_text())
    (tmp_path / "rows.json").write_text(json.dumps([row for row in rows if "video" in row]))
    changes.append(f"data.0.instructions={tmp_path / 'rows.json'}")
    torchrun(small_recipe, tmp_path / "run", *changes)
    whole = weights_of(tmp_path / "run")
    assert any("vision_tower" in name for name in whole)
    for checkpoint in complete_checkpoints(tmp_path / "run" / CHECKPOINTS)[1:]:
        remove_checkpoint(checkpoint)
    (tmp_path / "run" / MODEL).rename(tmp_path / "finished")
    assert "going on from" in torchrun(small_recipe, tmp_path / "run", *changes)
    for name, weight in weights_of(tmp_path / "run").items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-5, atol=1e-6, msg=name)


@slow
def test_sharding_with_accumulation_checkpointed_activations_and_bfloat16(small_recipe: Path, tmp_path: Path) -> None:
    changes = [*COMMON, *WHOLE, "machine.precision=bf16", "reports.log_every=1"]
    alone = [f"output={tmp_path / 'alone'}", "schedule.batch_size=4"]
    train(read_recipe(small_recipe, *changes, *alone), say=lambda text: None)
    shared = ["machine.fsdp=true", "machine.gradient_checkpointing=true"]
    shared += ["schedule.batch_size=1", "schedule.accumulation=2"]
    torchrun(small_recipe, tmp_path / "run", *changes, *shared)
    expected, seen = (
        [(entry["loss"], entry["grad_norm"]) for entry in json.loads(path.read_text()) if "grad_norm" in entry]
        for path in (tmp_path / name / HISTORY_FILE for name in ("alone", "run"))
    )
    assert len(seen) == len(expected) > 1
    for step, other in zip(seen, expected, strict=True):
        assert step == pytest.approx(other, rel=0.05)
