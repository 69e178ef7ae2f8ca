"""What the commands do around the libraries that they import."""

from __future__ import annotations

import gc

import av.logging
import pytest

from longvlm.commands import console


def test_garbage_is_collected_again_also_after_an_import_that_fails() -> None:
    with pytest.raises(ImportError), console.collecting_no_garbage():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()


def test_decoders_threads_never_wait_for_python_to_log() -> None:
    console.silence_libraries()
    assert av.logging.get_level() is None


def test_nothing_that_is_said_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for say in (console.note, console.warn, console.error):
        say("made by \x1b]0;owned\x07\x1b[2J\nanother")
        told = capsys.readouterr().err
        assert told.endswith("made by �]0;owned��[2J another\n") and "\x1b" not in told


def test_no_color_is_heeded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    console.error("wrong")
    assert "\x1b[31m" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    console.error("wrong")
    assert capsys.readouterr().err == "Error: wrong\n"
