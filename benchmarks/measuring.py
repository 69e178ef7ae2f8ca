"""Seconds of things that are compared, taken in turns, and the memory of things that run in a process of their own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).parents[1]


def take_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Wall seconds of every run, which take turns `repeats` times, so that what slows the machine slows them alike."""
    console = Console(stderr=True)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with console.status("") as status:
        for turn in range(-warm_up, repeats):
            for name, run in runs.items():
                status.update(f"{name}, {'warming up' if turn < 0 else f'{turn + 1} of {repeats}'}")
                began = time.perf_counter()
                run()
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster, by the medians."""
    return statistics.median(slow) / statistics.median(fast)


def run_alone(*arguments: str) -> dict[str, Any]:
    """What `python -m arguments…`, a process of its own, prints: one JSON object."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)
