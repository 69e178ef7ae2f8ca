"""Where freed memory goes, as glibc itself counts it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")


@pytest.mark.parametrize(("first", "heaps"), [("pass", 4), ("keep_one_heap()", 1), ("keep_heaps_of_threads()", 4)])
def test_threads_share_a_heap_or_have_their_own(first: str, heaps: int) -> None:
    program = f"""
import ctypes, threading
from longvlm.heap import keep_heaps_of_threads, keep_one_heap
{first}
meeting = threading.Barrier(3)
def work(): kept = bytearray(100_000); meeting.wait()
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
ctypes.CDLL(None).malloc_stats()
"""
    assert _run(program).stderr.count("Arena ") == heaps


@pytest.mark.parametrize("keep", ["keep_one_heap()", "keep_heaps_of_threads()"])
def test_heaps_keep_what_is_freed(keep: str) -> None:
    """A page that the system cleared is a page fault; 40 MB have ten thousand of 4 KiB."""
    program = f"""
import resource, threading
from longvlm.heap import keep_heaps_of_threads, keep_one_heap
{keep}
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    def allocate(): one, other = bytearray(40_000_000), bytearray(40_000_000)
    allocate(); before = faults()
    for _ in range(5): allocate()
    print(faults() - before)
thread = threading.Thread(target=work)
thread.start(); thread.join()
"""
    kept, returned = (int(_run(text).stdout) for text in (program, program.replace(keep, "")))
    assert 10 * kept < returned


def _run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
