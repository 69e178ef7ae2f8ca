"""What the tests of several rooms share."""

from __future__ import annotations

import sys

import pytest
from command_line import Ended, RunCommand

from longvlm.cli import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    def run_main(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["longvlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    return run_main
