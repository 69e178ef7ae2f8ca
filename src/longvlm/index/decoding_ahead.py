"""Decoding ahead of the encoder: threads read the next videos while the encoder is busy with this one.

Each video has a short queue of its own, and its thread waits where that is full: memory stays that of a few segments,
however long the videos are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice

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
    """One video that a thread decodes. Iterate it once for its segments; `info` and `lost_seconds` hold then."""

    info: VideoInfo
    lost_seconds: float

    def __init__(self, video: ListedVideo, open_reader: OpenReader, read: ReadSegments) -> None:
        self.video = video
        self._segments = WorkingAhead(self._decode(open_reader, read), room=SEGMENTS_AHEAD, name="longvlm-video")

    def __iter__(self) -> Iterator[Frames]:
        """The segments. Raises VideoFailed where the video can't be opened, or decoded any further."""
        try:
            yield from self._segments
        except LongVLMError as error:
            raise VideoFailed(str(error)) from error
        except Exception as error:
            raise VideoFailed(f"{type(error).__name__}: {error}") from error

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
    """The videos in their order, `num_threads` of them being decoded at any time.

    Take each one's segments to the end, or to its failure, before the next video. Closing the iterator, or
    an error of the consumer, ends the threads.
    """
    waiting = iter(videos)
    running = deque(DecodingVideo(video, open_reader, read) for video in islice(waiting, num_threads))
    try:
        while running:
            with closing(running.popleft()) as video:
                yield video
            running.extend(DecodingVideo(video, open_reader, read) for video in islice(waiting, 1))
    finally:
        for video in running:
            video.close()
