"""What the tests of several rooms share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from command_line import Ended, RunCommand

from longvlm.cli import main


@pytest.fixture(autouse=True)
def _own_number_of_threads() -> Iterator[None]:
    """What trains sets it for the process; the next test is to find what it would alone."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    def run_main(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["longvlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    return run_main
