"""What the commands do around the libraries that they import."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")
@pytest.mark.parametrize(("first", "heaps"), [("", 4), ("console.keep_one_heap()", 1)], ids=["as_it_is", "shared"])
def test_threads_keep_one_heap(first: str, heaps: int) -> None:
    program = f"""
import ctypes, threading
from longvlm.commands import console
{first}
meeting = threading.Barrier(3)
def work(): kept = bytearray(100_000); meeting.wait()
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
ctypes.CDLL(None).malloc_stats()
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stderr.count("Arena ") == heaps


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")
def test_the_heap_keeps_what_is_freed() -> None:
    """A page that the system cleared is a page fault; 40 MB have ten thousand of 4 KiB."""
    program = """
import resource
from longvlm.commands import console
console.keep_one_heap()
def allocate(): bytearray(40_000_000)
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate(); before = faults()
for _ in range(5): allocate()
print(faults() - before)
"""
    shared = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
    program = program.replace("console.keep_one_heap()", "")
    alone = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
    assert 10 * shared < alone
