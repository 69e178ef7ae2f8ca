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
