"""Memory that is freed and soon needed again stays with the process."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8  # of glibc's malloc.h
_KEPT_BYTES = 2**30
_THREAD_HEAP_BYTES = 2**26  # the pieces that glibc makes a thread's heap of


def keep_one_heap() -> None:
    """Let decoding threads take the memory that the encoder gave back; call before threads are started.

    glibc gives every thread a heap of its own, of which none can use what another one freed. And the activations of one
    layer it gives back to the system, which clears that memory again for the next one: the heap keeps them.
    """
    _set({_M_ARENA_MAX: 1, _M_MMAP_THRESHOLD: _KEPT_BYTES, _M_TRIM_THRESHOLD: _KEPT_BYTES})


def keep_heaps_of_threads() -> None:
    """Let threads that use what they freed themselves, as those that learn side by side do, keep a heap each.

    Taking turns at one heap, two of them waited a seventh of their time. A free piece of a thread's heap is given back
    unless what is to be kept free at its end is more than a piece.
    """
    _set({_M_TOP_PAD: _THREAD_HEAP_BYTES, _M_MMAP_THRESHOLD: _KEPT_BYTES, _M_TRIM_THRESHOLD: _KEPT_BYTES})


def _set(options: dict[int, int]) -> None:
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)):
        for option, value in options.items():
            set_option(option, value)
