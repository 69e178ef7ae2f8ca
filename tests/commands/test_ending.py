"""What a command leaves behind when it is told to end, or killed, while it writes a checkpoint."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from tiny_checkpoint import save_tiny_checkpoint
from waiting import PATIENCE_SECONDS

from longvlm.commands.ending import run_to_end
from longvlm.model.conversion import consolidate

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals as Unix has them")

# `longvlm weights consolidate`, which stops for ever once it has begun to write.
WRITES_FOR_EVER = """
import signal, sys, time
from longvlm import cli
from longvlm.model import weight_writing
signal.signal(getattr(signal, "SIGHUP", signal.SIGTERM), signal.SIG_DFL)  # which nohup, where tests may run, ignores
def write(*_):
    print("writing", flush=True)
    while True: time.sleep(0.1)
weight_writing._save_shard = write
sys.argv = ["longvlm", "weights", "consolidate", *sys.argv[1:]]
cli.main()
"""


# The program, with more patience for a server than any test has.
WAITS_AN_HOUR = """
from longvlm.stages import video_access
video_access.NETWORK_TIMEOUT_SECONDS = 3600.0
from longvlm.cli import main
main()
"""


def start_writing(model: Path, target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITES_FOR_EVER, str(model), "-o", str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "writing\n":
        process.kill()
        pytest.fail(process.communicate()[1])
    return process


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:132] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "gpu", "processor"],
)
def test_memory_that_does_not_suffice_is_told_in_a_line(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["longvlm"])
    assert run_to_end(app, "longvlm") == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: The memory does not hold this (") and said.count("\n") == 1 and "smaller" in said


@pytest.mark.parametrize(
    ("number", "word", "status"),
    [(signal.SIGTERM, "Terminated.", 143), (getattr(signal, "SIGHUP", 1), "Hung up.", 129)],
)
def test_what_ends_a_command_leaves_nothing(tmp_path: Path, number: int, word: str, status: int) -> None:
    model, target = save_tiny_checkpoint(tmp_path / "model"), tmp_path / "new" / "deeper" / "target"
    process = start_writing(model, target)
    assert list(target.parent.glob(".saving-target-*"))
    process.send_signal(number)
    assert process.communicate(timeout=PATIENCE_SECONDS) == ("", f"{word}\n")
    assert process.returncode == status
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_sigkill_leaves_is_removed_by_the_next_run_but_not_what_is_being_written(tmp_path: Path) -> None:
    model, target = save_tiny_checkpoint(tmp_path / "model"), tmp_path / "target"
    process = start_writing(model, target)
    process.kill()
    process.communicate(timeout=PATIENCE_SECONDS)
    (left,) = tmp_path.glob(".saving-*")
    living = start_writing(model, target)
    try:
        assert not left.exists()
        (written,) = tmp_path.glob(".saving-*")
        consolidate(model, target)
        assert (target / "model.safetensors").is_file()
        assert [path.name for path in tmp_path.glob(".saving-*")] == [written.name]
    finally:
        living.kill()
        living.communicate(timeout=PATIENCE_SECONDS)


def test_sigterm_ends_a_command_that_waits_in_a_librarys_code(tmp_path: Path) -> None:
    """Python can raise nothing there."""
    model = save_tiny_checkpoint(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_SECONDS)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/film.mp4"
        command = [sys.executable, "-c", WAITS_AN_HOUR, "ask", address, "What?", "--model", str(model)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        connection, _ = server.accept()
        with connection:
            process.terminate()
            printed = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, printed) == (143, ("", "Terminated.\n"))


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_a_forked_child_that_is_told_to_end_does_not_end_its_parent(signal_name: str) -> None:
    program = f"""
import multiprocessing, os, signal, time
ready = multiprocessing.get_context("fork").Event()
def sleep():
    ready.set()
    time.sleep(60)
import typer
from longvlm.commands.ending import run_to_end
app = typer.Typer()
@app.command()
def command():
    child = multiprocessing.get_context("fork").Process(target=sleep)
    child.start()
    ready.wait()
    os.kill(child.pid, signal.{signal_name})
    child.join()
    time.sleep(6)
    print("lives on")
raise SystemExit(run_to_end(app, "longvlm"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert (done.returncode, done.stdout) == (0, "lives on\n"), done.stderr
