"""Decoding ahead of the encoder: threads read several videos while the encoder is busy.

Each video has a short queue of its own, and its thread waits where that is full: memory stays that of a few segments,
however long the videos are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from threading import Semaphore

from longvlm.errors import LongVLMError
from longvlm.index.video_folders import ListedVideo
from longvlm.stages.video import VideoReader
from longvlm.types import Frames, VideoInfo
from longvlm.working_ahead import WorkingAhead

SEGMENTS_AHEAD = 4

OpenReader = Callable[[ListedVideo], VideoReader]
ReadSegments = Callable[[VideoReader], Iterator[Frames]]


class VideoFailed(Exception):
    """A video can't be opened or decoded; the text says why."""


class DecodingVideo:
    """One video that a thread decodes. Iterate it for its segments; `info` and `lost_seconds` hold after the last one.

    `has_ended`: whether the last one was taken, or it failed.
    """

    info: VideoInfo
    lost_seconds: float

    def __init__(
        self, video: ListedVideo, open_reader: OpenReader, read: ReadSegments, on_made: Callable[[], object]
    ) -> None:
        self.video = video
        self.has_ended = False
        self._segments = WorkingAhead(
            self._decode(open_reader, read), room=SEGMENTS_AHEAD, name="longvlm-video", on_made=on_made
        )

    def __iter__(self) -> Iterator[Frames]:
        return self

    def __next__(self) -> Frames:
        """The next segment. Raises VideoFailed where the video can't be opened, or decoded any further."""
        try:
            return next(self._segments)
        except StopIteration:
            self.has_ended = True
            raise
        except LongVLMError as error:
            self.has_ended = True
            raise VideoFailed(str(error)) from error
        except Exception as error:
            self.has_ended = True
            raise VideoFailed(f"{type(error).__name__}: {error}") from error

    @property
    def is_ready(self) -> bool:
        """Whether its next segment, or its end, can be taken without waiting."""
        return self._segments.is_ready

    def close(self) -> None:
        """Let its thread end."""
        self._segments.close()

    def _decode(self, open_reader: OpenReader, read: ReadSegments) -> Generator[Frames, None, None]:
        with open_reader(self.video) as reader:
            yield from read(reader)
            self.info, self.lost_seconds = reader.info, reader.lost_seconds


def decode_ahead(
    videos: Iterable[ListedVideo], open_reader: OpenReader, read: ReadSegments, *, num_threads: int
) -> Generator[DecodingVideo, None, None]:
    """`num_threads` videos are being decoded at any time; of these the first one that has a segment ready, each time.

    Take one segment, or its end, of each that is given. So a slow encoder gets one video after the other, and a fast
    one is fed by all decoders. Closing the iterator, or an error of the consumer, ends the threads.
    """
    waiting, num_ready = iter(videos), Semaphore(0)  # as many as can be taken of all videos together
    running: list[DecodingVideo] = []

    def start(count: int) -> None:
        for video in islice(waiting, count):
            running.append(DecodingVideo(video, open_reader, read, num_ready.release))

    start(num_threads)
    try:
        while running:
            num_ready.acquire()
            chosen = next(video for video in running if video.is_ready)
            yield chosen
            if chosen.has_ended:
                running.remove(chosen)
                start(1)
    finally:
        for video in running:
            video.close()
