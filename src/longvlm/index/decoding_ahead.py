"""Decoding ahead of the encoder: threads read the next videos while the encoder is busy with this one.

PyAV releases Python's lock while it decodes, so threads are enough. Each video has a short queue of its own,
and its thread waits where that is full: memory stays that of a few segments, however long the videos are.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice

from longvlm.errors import LongVLMError
from longvlm.index.video_folders import ListedVideo
from longvlm.stages.video import VideoReader
from longvlm.types import Frames, VideoInfo

SEGMENTS_AHEAD = 4
_LOOK_UP_SECONDS = 0.2  # how often a thread that waits for room sees whether it is still wanted

OpenReader = Callable[[ListedVideo], VideoReader]
ReadSegments = Callable[[VideoReader], Iterator[Frames]]


class VideoFailed(Exception):
    """A video can't be opened or decoded; the text says why."""


class _NoLongerWanted(Exception):
    """Ends a decoding thread whose consumer has left."""


class DecodingVideo:
    """One video that a thread decodes. Iterate it once for its segments; `info` and `lost_seconds` hold then."""

    info: VideoInfo
    lost_seconds: float

    def __init__(self, video: ListedVideo, open_reader: OpenReader, read: ReadSegments, left: threading.Event) -> None:
        self.video = video
        self._segments: queue.Queue[Frames | VideoReader | Exception] = queue.Queue(SEGMENTS_AHEAD)
        self._left = left
        threading.Thread(target=self._decode, args=(open_reader, read), name="longvlm-decode", daemon=True).start()

    def __iter__(self) -> Iterator[Frames]:
        """The segments. Raises VideoFailed where the video can't be opened, or decoded any further."""
        while isinstance(item := self._segments.get(), Frames):
            yield item
        if isinstance(item, LongVLMError):
            raise VideoFailed(str(item)) from item
        if isinstance(item, Exception):
            raise VideoFailed(f"{type(item).__name__}: {item}") from item
        self.info, self.lost_seconds = item.info, item.lost_seconds

    def _decode(self, open_reader: OpenReader, read: ReadSegments) -> None:
        try:
            with open_reader(self.video) as reader:
                for frames in read(reader):
                    self._hand_over(frames)
                self._hand_over(reader)
        except _NoLongerWanted:
            return
        except Exception as error:  # noqa: BLE001 - raised where the segments are taken
            self._hand_over_last(error)

    def _hand_over(self, item: Frames | VideoReader | Exception) -> None:
        while not self._left.is_set():
            try:
                self._segments.put(item, timeout=_LOOK_UP_SECONDS)
                return
            except queue.Full:
                continue
        raise _NoLongerWanted

    def _hand_over_last(self, error: Exception) -> None:
        try:
            self._hand_over(error)
        except _NoLongerWanted:
            return


def decode_ahead(
    videos: Iterable[ListedVideo], open_reader: OpenReader, read: ReadSegments, *, num_threads: int
) -> Generator[DecodingVideo, None, None]:
    """The videos in their order, `num_threads` of them being decoded at any time.

    Take each one's segments to the end, or to its failure, before the next video. Closing the iterator, or
    an error of the consumer, ends the threads.
    """
    left = threading.Event()
    waiting = iter(videos)
    running = deque(DecodingVideo(video, open_reader, read, left) for video in islice(waiting, num_threads))
    try:
        while running:
            yield running.popleft()
            running.extend(DecodingVideo(video, open_reader, read, left) for video in islice(waiting, 1))
    finally:
        left.set()
