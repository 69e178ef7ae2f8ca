"""One opened video stream: its packets, and the frames that are shown at wanted times.

A frame is reached from the keyframe before it, or by decoding on where no keyframe lies between. Frames are matched by
timestamp, so that a picture is always the one of its stated time, and never more than a few are held. On the way to a
wanted frame, those that no other frame is predicted from are not decoded.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, cast

import numpy as np

from longvlm.errors import LongVLMError
from longvlm.stages.video_access import BlockingCalls, display_name, open_container, source_scheme
from longvlm.stages.video_timeline import Timeline

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Threads = Literal["AUTO", "NONE"]
_Result = TypeVar("_Result")

_SEEK_MARGINS_SECONDS = (0, 1, 8, 64)

if hasattr(os, "register_at_fork"):
    # A forked child has none of its parent's threads. Were it to collect a decoder that its parent left as garbage, it
    # would wait for ever for those of the codec to end, so it collects nothing of its parent's.
    os.register_at_fork(after_in_child=gc.freeze)


class Presented(NamedTuple):
    pts: int
    frame: VideoFrame


class EndOfVideo(Exception):
    """Nothing decodes from here on, though the timeline has more; `pts` is where what decodes ends."""

    def __init__(self, pts: int) -> None:
        super().__init__(f"the video decodes up to {pts}")
        self.pts = pts


class Cursor:
    """Decodes forwards, holding the frame shown at a time and, if decoded already, the one after it."""

    def __init__(self, frames: Iterator[Presented]) -> None:
        self._frames = frames
        self.shown: Presented | None = None
        self.ahead: Presented | None = None

    @property
    def reached_pts(self) -> float:
        latest = self.ahead or self.shown
        return -math.inf if latest is None else latest.pts

    def advance(self, pts: int) -> bool:
        """Decode until the frame shown at `pts` is certain; False where the stream ends before that."""
        while self.shown is None or self.shown.pts < pts:
            upcoming = self.ahead or next(self._frames, None)
            self.ahead = None
            if upcoming is None:
                return False
            if upcoming.pts > pts:
                self.ahead = upcoming
                return True
            self.shown = upcoming
        return True


class Decoder:
    """The chosen video stream of a file or an address. Close it after use.

    `threads` "NONE" decodes in the calling thread alone. Raises LongVLMError where the source can't be opened or has no
    video.
    """

    def __init__(self, source: str, *, allow_references: bool, threads: Threads = "AUTO") -> None:
        self._source, self._allow_references, self._threads = source, allow_references, threads
        self.name = display_name(source)
        self.is_file = source_scheme(source) == "file"
        # A file answers at once; an address may stall, and then Ctrl-C must not wait for it.
        self._blocking = None if self.is_file else BlockingCalls()
        self._unwanted_before_pts: float = -math.inf
        self._open()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._blocking is None:
            self.container.close()
        else:
            self._blocking.finish(self.container.close)

    def release(self) -> None:
        """Let go of the source and of the pictures that decoding holds, until `reopen`."""
        self._wait_for(self.container.close)
        del self.stream

    def reopen(self, *, threads: Threads | None = None) -> None:
        """Start again at the beginning of the file; `threads` as when it was made."""
        self._wait_for(self.container.close)
        self._threads = threads or self._threads
        self._open()

    def _open(self) -> None:
        source, allowed = self._source, self._allow_references
        with ExitStack() as if_it_fails:
            if self._blocking is not None:
                if_it_fails.callback(self._blocking.finish)
            self.container = self._wait_for(lambda: open_container(source, allow_references=allowed))
            if_it_fails.callback(self._wait_for, self.container.close)
            self.stream = self._choose_stream()
            self.stream.thread_type = self._threads
            if_it_fails.pop_all()
        self.time_base = self.stream.time_base or Fraction(1, 1_000_000)

    def _wait_for(self, call: Callable[[], _Result]) -> _Result:
        return call() if self._blocking is None else self._blocking.run(call)

    def _choose_stream(self) -> VideoStream:
        from av.stream import Disposition

        pictures = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not pictures:
            if self.container.streams.audio:
                raise LongVLMError(f"{self.name} has sound only; give a file that has a video.")
            raise LongVLMError(f"{self.name} holds no readable video; copy, download or convert it again.")
        best = self.container.streams.best("video")
        chosen = next((stream for stream in pictures if stream is best), pictures[0])
        if chosen.codec_context is None:
            raise LongVLMError(f"{self.name} is of a codec that is not known here; convert it to H.264 mp4.")
        return chosen

    def packets(self, *, of_all_streams: bool = False) -> Iterator[Packet]:
        """The stream's packets, last the empty one that flushes the decoder; a damaged file's end early."""
        import av

        streams = () if of_all_streams else (self.stream,)
        packets = cast("Iterator[Packet]", self.container.demux(*streams))
        try:
            while (packet := self._wait_for(lambda: next(packets, None))) is not None:
                if packet.size or packet.dts is None:
                    yield packet
        except av.FFmpegError as error:
            if not self.is_file and not isinstance(error, av.error.InvalidDataError):
                raise LongVLMError(f"Reading {self.name} failed: {error.strerror}. Try again.") from error

    def packets_from(self, timeline: Timeline, key: int) -> Iterator[Packet] | None:
        """Packets from a keyframe on, or from somewhat before it; None where seeking there fails."""
        import av

        key_pts, key_dts = int(timeline.keyframe_pts[key]), int(timeline.keyframe_dts[key])
        # Containers take a seek's target for a pts or a dts, and some land late: look, and step back.
        targets = [key_pts, *(key_dts - int(s / self.time_base) for s in _SEEK_MARGINS_SECONDS)]
        for target in targets:
            try:
                self._wait_for(lambda: self.container.seek(target, stream=self.stream))  # noqa: B023
            except av.FFmpegError:
                continue
            packets = self.packets()
            first = next(packets, None)
            if first is None or first.pts is None:
                continue
            on_keyframe = first.is_keyframe and first.pts <= key_pts
            if on_keyframe or (first.dts is not None and first.dts <= key_dts):
                return chain([first], packets)
        return None

    def frames(self, packets: Iterator[Packet], timeline: Timeline | None) -> Iterator[Presented]:
        """Decode packets to presented frames; what is damaged is left out. A live stream has no timeline."""
        import av

        guessed_times = timeline is not None and self.timestamps_are_guesses(timeline)
        position: int | None = None
        for packet in packets:
            self.stream.codec_context.skip_frame = self._what_to_skip(packet)
            try:
                frames = self.stream.decode(packet) if packet.size else self.stream.decode(None)
            except av.FFmpegError:
                continue
            if position is None and packet.pts is not None and timeline is not None:
                position = int(np.searchsorted(timeline.pts, packet.pts))
            for frame in frames:
                if guessed_times and timeline is not None and position is not None:
                    frame.pts = int(timeline.pts[min(position, len(timeline.pts) - 1)])
                    position += 1
                if frame.pts is not None:
                    yield Presented(frame.pts, frame)

    def _what_to_skip(self, packet: Packet) -> Literal["DEFAULT", "NONREF"]:
        is_unwanted = packet.pts is not None and packet.pts < self._unwanted_before_pts
        return "NONREF" if is_unwanted else "DEFAULT"

    @property
    def _heeds_what_to_skip(self) -> bool:
        """libdav1d, for AV1, asks once, when it opens, and would skip for good."""
        return self.stream.codec_context.name != "libdav1d"

    def timestamps_are_guesses(self, timeline: Timeline) -> bool:
        """AVI stores no presentation times: with reordered frames, FFmpeg's are those of decoding order."""
        return (
            self.container.format.name == "avi"
            and bool(self.stream.codec_context.has_b_frames)
            and timeline.in_decoding_order
        )

    def frames_from(self, timeline: Timeline, key: int, *, can_seek: bool) -> Iterator[Presented]:
        """Frames from a keyframe on; without seeking, from the beginning."""
        packets = self.packets_from(timeline, key) if can_seek else None
        if packets is None:
            self.reopen()
            packets = self.packets()
        return self.frames(packets, timeline)

    def frames_at(
        self, timeline: Timeline, wanted_pts: Sequence[int], *, can_seek: bool, only_keyframes: bool = False
    ) -> Iterator[Presented]:
        """The frame of each wanted timestamp of the timeline; they must not descend.

        A frame that can't be decoded is replaced by the one shown before it. `only_keyframes`: all that are wanted are
        keyframes. Raises EndOfVideo where nothing decodes any more.
        """
        may_skip = can_seek and not self.timestamps_are_guesses(timeline)
        cursor: Cursor | None = None
        for pts in wanted_pts:
            if only_keyframes and may_skip and (alone := self._decode_alone(timeline, pts)):
                cursor = None
                yield alone
                continue
            key = timeline.keyframe_before(pts)
            self._unwanted_before_pts = pts if may_skip and self._heeds_what_to_skip else -math.inf
            if cursor is None or (can_seek and timeline.keyframe_pts[key] > cursor.reached_pts):
                cursor = Cursor(self.frames_from(timeline, key, can_seek=can_seek))
            goes_on = cursor.advance(pts)
            if can_seek and (cursor.shown is None or cursor.shown.pts != pts):
                cursor, goes_on = self._search(timeline, pts)
            found = cursor.shown or cursor.ahead
            if found is None or not (goes_on or pts - found.pts <= 2 * timeline.frame_pts):
                raise EndOfVideo(int(timeline.pts[0]) if found is None else found.pts + timeline.frame_pts)
            yield found

    def _decode_alone(self, timeline: Timeline, pts: int) -> Presented | None:
        """A keyframe without the frames that the decoder would wait for; None where that doesn't give it."""
        import av

        key = timeline.keyframe_before(pts)
        key_dts = int(timeline.keyframe_dts[key])
        for packet in self.packets_from(timeline, key) or ():
            if packet.pts == pts:
                try:
                    frames = [*self.stream.decode(packet), *self.stream.decode(None)]
                except av.FFmpegError:
                    return None
                return next((Presented(pts, frame) for frame in frames if frame.pts == pts), None)
            if packet.dts is None or packet.dts > key_dts:
                return None
        return None

    def _search(self, timeline: Timeline, pts: int) -> tuple[Cursor, bool]:
        """A cursor at what is shown in place of a frame that wasn't found: every frame counts, and where a group of
        pictures is broken or open, the frame before it is needed, so start further back."""
        self._unwanted_before_pts = -math.inf
        key, step = timeline.keyframe_before(pts), 1
        cursor = Cursor(self.frames_from(timeline, key, can_seek=True))
        goes_on = cursor.advance(pts)
        while cursor.shown is None and key > 0:
            key, step = max(0, key - step), 2 * step
            cursor = Cursor(self.frames_from(timeline, key, can_seek=True))
            goes_on = cursor.advance(pts)
        return cursor, goes_on
