"""For what other threads and processes do in their own time."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 120  # importing torch alone can take a minute on a busy machine; pytest ends a test after 300


def wait_until(condition: Callable[[], bool]) -> None:
    """Until it holds; fails when patience is at its end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)
