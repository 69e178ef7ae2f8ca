"""The clock that every timing comes from: wall-clock seconds, added up by stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch

T = TypeVar("T")


class StageClock:
    """Adds up the seconds of each stage, a field of `Timings`; on CUDA, of its work rather than of its launch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items, with the wait for each of them counted to `stage`."""
        iterator, end = iter(items), object()
        while True:
            with self.running(stage):
                item = next(iterator, end)
            if item is end:
                return
            yield cast(T, item)
