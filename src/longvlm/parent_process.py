"""A helping process ends when the one that started it does, even if that was killed."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Watch over the parent from now on; for `initializer` of a `ProcessPoolExecutor`, whose processes, which hold both
    ends of the pipe they read, would wait for ever."""
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
