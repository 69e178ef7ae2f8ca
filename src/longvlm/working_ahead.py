"""Working ahead: a generator that a thread of its own runs, a few items ahead of whoever takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Generic, NamedTuple, TypeVar

_Item = TypeVar("_Item")

_LOOK_UP_SECONDS = 0.2  # how often one who waits for room, or for an item, sees whether that is still wanted


class _End(NamedTuple):
    """The last of what a thread hands over; `error` is what its generator raised, if it did."""

    error: BaseException | None


class WorkingAhead(Generic[_Item]):
    """The items of a generator, which runs in a thread, at most `room` of them ahead. Close it after use.

    What the generator raises is raised where its items are taken. `on_made` is called, in the thread, when one more
    item can be taken, or the end. PyAV releases Python's lock while it decodes, so threads are enough for decoding.
    """

    def __init__(
        self, items: Generator[_Item, None, None], *, room: int, name: str, on_made: Callable[[], object] | None = None
    ) -> None:
        self._items = items
        self._on_made = on_made
        self._made: queue.Queue[_Item | _End] = queue.Queue(room)
        self._is_left = threading.Event()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def __iter__(self) -> WorkingAhead[_Item]:
        return self

    def __next__(self) -> _Item:
        while not self._is_left.is_set():
            try:
                item = self._made.get(timeout=_LOOK_UP_SECONDS)
            except queue.Empty:
                continue
            if not isinstance(item, _End):
                return item
            self._made.put(item)  # for whoever asks again
            if item.error is not None:
                raise item.error
            break
        raise StopIteration

    @property
    def is_ready(self) -> bool:
        """Whether the next item, or the end, can be taken without waiting."""
        return self._is_left.is_set() or not self._made.empty()

    def close(self) -> None:
        """Tell the thread that nothing more is wanted; it ends at its next item, and doesn't keep anybody waiting."""
        self._is_left.set()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            with closing(self._items):
                for item in self._items:
                    if not self._hand_over(item):
                        return
        except BaseException as raised:  # noqa: BLE001 - raised where the items are taken
            error = raised
        self._hand_over(_End(error))

    def _hand_over(self, item: _Item | _End) -> bool:
        while not self._is_left.is_set():
            try:
                self._made.put(item, timeout=_LOOK_UP_SECONDS)
            except queue.Full:
                continue
            if self._on_made is not None:
                self._on_made()
            return True
        return False
