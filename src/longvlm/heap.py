"""Memory that is freed and soon needed again stays with the process."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_KEPT_BYTES = 2**30


def keep_one_heap() -> None:
    """Let decoding threads take the memory that the encoder gave back; call before threads are started.

    glibc gives every thread a heap of its own, of which none can use what another one freed. And the activations of one
    layer it gives back to the system, which clears that memory again for the next one: the heap keeps them.
    """
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)):
        set_option(_M_ARENA_MAX, 1)
        set_option(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)
