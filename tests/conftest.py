"""What the tests of several packages share."""

from __future__ import annotations

import errno
import gc
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import pytest
import torch
from command_line import Ended, RunCommand

from longvlm.cli import main

# What the caller's shell sets must decide no test: proxies, colours and widths of terminals, another heap.
_FOREIGN = re.compile(r"(?i).*_proxy|FORCE_COLOR|TTY_COMPATIBLE|COLUMNS|GLIBC_TUNABLES|MALLOC_.*|SSL_CERT_\w+")
for _name in [name for name in os.environ if _FOREIGN.fullmatch(name)]:
    del os.environ[_name]

# Nor what the processor can do: where the dtype is left to the machine, tests are of float32 on any. (Imported first by
# pytest, so that this is before what fixtures of sessions open.)
for _name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
    setattr(torch.cpu, _name, lambda: False)

NUM_THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def _as_a_process_of_its_own() -> Iterator[None]:
    """Training sets the number of threads, commands set variables of libraries and objects aside, for good; the next
    test is to find what it would alone.
    """
    torch.set_num_threads(NUM_THREADS)
    with patch.dict(os.environ):
        yield
    torch.set_num_threads(NUM_THREADS)
    gc.unfreeze()


@pytest.fixture
def closed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that nobody may look into; root, who may, is refused all the same."""
    folder = tmp_path / "closed"
    folder.mkdir()
    stat, iterdir = Path.stat, Path.iterdir

    def refuse(path: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def guarded_stat(path: Path, **settings: Any) -> Any:
        return refuse(path) if folder in path.parents else stat(path, **settings)

    def guarded_iterdir(path: Path) -> Any:
        return refuse(path) if path == folder else iterdir(path)

    monkeypatch.setattr(Path, "stat", guarded_stat)
    monkeypatch.setattr(Path, "iterdir", guarded_iterdir)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    def run_main(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["longvlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    return run_main
