"""Where freed memory goes, as glibc itself counts it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")
@pytest.mark.parametrize(("first", "heaps"), [("", 4), ("keep_one_heap()", 1)], ids=["as_it_is", "shared"])
def test_threads_keep_one_heap(first: str, heaps: int) -> None:
    program = f"""
import ctypes, threading
from longvlm.heap import keep_one_heap
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
from longvlm.heap import keep_one_heap
keep_one_heap()
def allocate(): bytearray(40_000_000)
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate(); before = faults()
for _ in range(5): allocate()
print(faults() - before)
"""
    shared = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
    program = program.replace("keep_one_heap()", "")
    alone = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
    assert 10 * shared < alone
