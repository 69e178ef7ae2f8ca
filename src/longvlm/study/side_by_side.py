"""Runs of the study trained side by side, a process each: a second thread makes a step of so small a model a fifth
faster, a second process trains another run meanwhile.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from longvlm.heap import keep_one_heap
from longvlm.parent_process import end_with_parent
from longvlm.pipeline import LongVLM
from longvlm.study.course import Run, Study
from longvlm.study.rows import Row, StudySettings

LOG = "training.log"  # what the processes say, in the study's folder
_of_this_process: Study


def run_side_by_side(settings: StudySettings, folder: Path, wanted: Sequence[tuple[Row, int]]) -> Iterator[Run]:
    """The rows with these seeds, as `Study.run` has them, in this order; `settings.threads` at a time.

    Blocks and start have to be in `folder`. Whatever ends this process ends the others, which leave checkpoints.
    """
    pool = ProcessPoolExecutor(settings.threads, multiprocessing.get_context("spawn"), _begin, (settings, folder))
    try:
        yield from pool.map(_run, *zip(*wanted, strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()


def _begin(settings: StudySettings, folder: Path) -> None:
    global _of_this_process
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent ends the others
    sys.stderr = (folder / LOG).open("a", buffering=1)
    keep_one_heap()
    _of_this_process = Study(dataclasses.replace(settings, threads=1), LongVLM.from_pretrained().encoder, folder)


def _run(row: Row, seed: int) -> Run:
    return _of_this_process.run(row, seed)
