"""Which processes there are, by Linux's account."""

from contextlib import suppress
from pathlib import Path

import pytest

needs_processes_listed = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="needs Linux's account of processes"
)


def parents_of_the_living() -> dict[int, int]:
    """Of every process that runs, by number."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(status.parent.name)] = int(parent)
    return parents


def family_of(process: int) -> set[int]:
    """Its children, and theirs."""
    children = {child for child, parent in parents_of_the_living().items() if parent == process}
    return children.union(*map(family_of, children))
