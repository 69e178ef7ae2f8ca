"""Video files and addresses read with PyAV: the pictures that are presented at chosen times.

Two passes: the first only demuxes and notes when every frame is presented; the second seeks to the keyframe
before a wanted frame and decodes up to it, or decodes on where no keyframe lies between. Frames are matched
by timestamp, so that a picture is always the one of its stated time, and never more than a few pictures are
held.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, cast

import numpy as np

from longvlm.errors import LongVLMError
from longvlm.stages.video_access import BlockingCalls, display_name, local_path, open_container, source_scheme
from longvlm.stages.video_fingerprint import fingerprint_files
from longvlm.stages.video_timeline import Timeline, scan_timeline
from longvlm.types import VideoInfo

if TYPE_CHECKING:
    from av.buffer import Buffer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_Result = TypeVar("_Result")

_MISSING_TOLERANCE_SECONDS = 0.5  # containers round the length they state; less than this is no damage
_SEEK_MARGINS_SECONDS = (0, 1, 8, 64)
_MAX_STRETCH = 16  # beyond it a header is wrong, or meant to make huge pictures
_ROUNDING_SECONDS = 1e-9  # so that a target that was rounded down still shows the frame that begins there


class _Presented(NamedTuple):
    pts: int
    frame: VideoFrame


class _Cursor:
    """Decodes forwards, holding the frame shown at a time and, if decoded already, the one after it."""

    def __init__(self, frames: Iterator[_Presented]) -> None:
        self._frames = frames
        self.shown: _Presented | None = None
        self.ahead: _Presented | None = None

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


class ContainerSource:
    """One video stream of a file or an address. A live stream has no timeline and is read once, forwards.

    Raises LongVLMError at construction where the source can't be opened, has no video, or none of it decodes.
    """

    def __init__(self, source: str, *, allow_references: bool = False) -> None:
        self._source, self._allow_references = source, allow_references
        self._scheme = source_scheme(source)
        self._name = display_name(source)
        self._skip_frame: Literal["DEFAULT", "NONKEY"] = "DEFAULT"
        # A file answers at once; an address may stall, and then Ctrl-C must not wait for it.
        self._blocking = None if self._scheme == "file" else BlockingCalls()
        self._open()
        with ExitStack() as if_it_fails:
            if_it_fails.callback(self.close)
            self._timeline = None if self._is_live() else self._scan()
            self._can_seek = self._can_jump()
            frames = self._decode(self._packets()) if self._timeline is None else self._frames_from(0)
            first = next(frames, None)
            if first is None:
                codec = self._stream.codec_context.name
                raise LongVLMError(f"No frame of {self._name} can be decoded ({codec}); convert it to H.264 mp4.")
            self._live_start_pts = first.pts
            self._live_cursor = _Cursor(chain([first], frames))
            self._missing_seconds = self.lost_seconds = self._seconds_missing()
            self._orientation = _display_matrix(first.frame)
            stretch, is_turned = self._stretch(), _is_turned(self._orientation)
            # Width over height of a pixel of the pictures that `read` yields, which are turned already.
            self.pixel_aspect = 1 / stretch if is_turned else stretch
            first_picture = _picture(first.frame, self._orientation)
            self.info = self._describe(first_picture, (1, stretch) if is_turned else (stretch, 1))
            if_it_fails.pop_all()

    def close(self) -> None:
        if self._blocking is None:
            self._container.close()
        else:
            self._blocking.finish(self._container.close)

    @property
    def times_seconds(self) -> np.ndarray | None:
        """(N,) float64 presentation time of every frame, counted from the first; None for a live stream."""
        if self._timeline is None:
            return None
        ticks = self._timeline.pts - self._timeline.pts[0]
        return ticks * self._time_base.numerator / self._time_base.denominator

    @property
    def keyframe_positions(self) -> np.ndarray:
        """Positions in `times_seconds` of the frames that decode without any other."""
        return self._known_timeline().keyframe_positions

    def read(self, positions: Sequence[int]) -> Iterator[tuple[float, np.ndarray]]:
        """Yield (time in seconds, RGB picture (H, W, 3) uint8) for each position; positions must not descend.

        A frame that can't be decoded is replaced by the one shown before it, under that one's own time.
        Where nothing decodes any more, reading ends and `lost_seconds` grows by what the video should still
        have had.
        """
        timeline = self._known_timeline()
        cursor: _Cursor | None = None
        only_keyframes = np.isin(positions, timeline.keyframe_positions).all()
        self._skip_frame = "NONKEY" if only_keyframes and not self._timestamps_are_guesses() else "DEFAULT"
        self._reopen()
        self.lost_seconds = self._missing_seconds
        for pts in timeline.pts[np.asarray(positions, dtype=np.int64)].tolist():
            key = timeline.keyframe_before(pts)
            if cursor is None or (self._can_seek and timeline.keyframe_pts[key] > cursor.reached_pts):
                cursor = _Cursor(self._frames_from(key))
            goes_on, step = cursor.advance(pts), 1
            while cursor.shown is None and key > 0 and self._can_seek:
                # A broken or open group of pictures: the frame before it is needed, so start further back.
                key, step = max(0, key - step), 2 * step
                cursor = _Cursor(self._frames_from(key))
                goes_on = cursor.advance(pts)
            found = cursor.shown or cursor.ahead
            if found is None or not (goes_on or pts - found.pts <= 2 * timeline.frame_pts):
                decoded_end_pts = timeline.pts[0] if found is None else found.pts + timeline.frame_pts
                self.lost_seconds += float((timeline.end_pts - int(decoded_end_pts)) * self._time_base)
                return
            yield float((found.pts - int(timeline.pts[0])) * self._time_base), _picture(found.frame, self._orientation)

    def read_live(self, times_seconds: Iterable[float]) -> Iterator[tuple[float, np.ndarray]]:
        """Decode forwards and yield the frames shown at ascending times, each once; ends with the stream."""
        last: _Presented | None = None
        for time_seconds in times_seconds:
            offset_pts = math.floor(Fraction(time_seconds + _ROUNDING_SECONDS) / self._time_base)
            goes_on = self._live_cursor.advance(self._live_start_pts + offset_pts)
            shown = self._live_cursor.shown
            if shown is not None and shown is not last:
                last = shown
                yield (
                    float((shown.pts - self._live_start_pts) * self._time_base),
                    _picture(shown.frame, self._orientation),
                )
            if not goes_on:
                return

    # Opening and describing

    def _open(self) -> None:
        source, allowed = self._source, self._allow_references
        self._container = self._wait_for(lambda: open_container(source, allow_references=allowed))
        with ExitStack() as if_it_fails:
            if_it_fails.callback(self.close)
            self._stream = self._choose_stream()
            self._stream.thread_type = "AUTO"
            self._stream.codec_context.skip_frame = self._skip_frame
            if_it_fails.pop_all()
        self._time_base = self._stream.time_base or Fraction(1, 1_000_000)

    def _reopen(self) -> None:
        self._wait_for(self._container.close)
        self._open()

    def _wait_for(self, call: Callable[[], _Result]) -> _Result:
        return call() if self._blocking is None else self._blocking.run(call)

    def _choose_stream(self) -> VideoStream:
        from av.stream import Disposition

        pictures = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not pictures:
            if self._container.streams.audio:
                raise LongVLMError(f"{self._name} has sound only; give a file that has a video.")
            raise LongVLMError(f"{self._name} holds no readable video; copy, download or convert it again.")
        best = self._container.streams.best("video")
        return next((stream for stream in pictures if stream is best), pictures[0])

    def _is_live(self) -> bool:
        if self._scheme == "file":
            return False
        return self._scheme.startswith("rtsp") or (self._container.duration is None and self._container.size <= 0)

    def _scan(self) -> Timeline:
        rate = self._stream.guessed_rate or Fraction(25)
        timeline = scan_timeline(self._packets(), one_frame_pts=max(1, round(1 / (rate * self._time_base))))
        if timeline is None:
            raise LongVLMError(f"{self._name} holds no frames: the length of its video is zero. Give another video.")
        return timeline

    def _known_timeline(self) -> Timeline:
        if self._timeline is None:
            raise LongVLMError(
                f"{self._name} is a live stream of unknown length; sample it with --fps and either "
                "--max-frames or --end (fps=, max_frames=, end=)."
            )
        return self._timeline

    def _describe(self, first_picture: np.ndarray, stretches: tuple[Fraction | int, Fraction | int]) -> VideoInfo:
        height, width = first_picture.shape[:2]
        timeline, rate = self._timeline, self._stream.average_rate
        held = self._held_seconds()
        if self._scheme == "file":
            fingerprint = fingerprint_files([local_path(self._source)])
        elif timeline is not None:
            fingerprint = timeline.digest
        else:
            fingerprint = hashlib.sha256(first_picture.tobytes()).hexdigest()
        return VideoInfo(
            name=self._name,
            width=max(1, round(width * stretches[0])),
            height=max(1, round(height * stretches[1])),
            duration_seconds=None if timeline is None else held + self._missing_seconds,
            num_frames=None if timeline is None else len(timeline.pts),
            average_fps=len(timeline.pts) / held if timeline and held else float(rate) if rate else None,
            fingerprint=fingerprint,
        )

    def _stretch(self) -> Fraction:
        """By what the width of the stored pictures grows for display; 1 where the pixels are square."""
        stretch = self._stream.sample_aspect_ratio
        return stretch if stretch and 1 / _MAX_STRETCH <= stretch <= _MAX_STRETCH else Fraction(1)

    def _held_seconds(self) -> float:
        """From the first presented frame to the end of the last one whose packet is there; 0.0 if live."""
        timeline = self._timeline
        return 0.0 if timeline is None else float((timeline.end_pts - int(timeline.pts[0])) * self._time_base)

    def _seconds_missing(self) -> float:
        """How much earlier the frames end than the container says; 0.0 where it doesn't say, or agrees."""
        timeline, stream, container = self._timeline, self._stream, self._container
        if timeline is None:
            return 0.0
        start = float((stream.start_time or 0) * self._time_base)
        tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d*)?)", stream.metadata.get("DURATION", ""))
        if container.format.name == "mpegts":
            # It states nothing: a rest of the file without packets counts at the bytes a second until there.
            unread = container.size - timeline.end_byte if self._scheme == "file" else 0
            stated_end = start + self._held_seconds() * (1 + unread / max(1, timeline.end_byte))
        elif container.format.name == "avi" and stream.average_rate:
            stated_end = start + float(stream.frames / stream.average_rate)
        elif stream.duration:
            stated_end = start + float(stream.duration * self._time_base)
        elif tag:
            stated_end = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
        elif container.duration and (timeline.cut_short or len(container.streams) == 1):
            stated_end = start + container.duration / 1e6
        else:
            return 0.0
        missing = stated_end - float(timeline.end_pts * self._time_base)
        return missing if missing > _MISSING_TOLERANCE_SECONDS else 0.0

    # Packets and frames

    def _packets(self) -> Iterator[Packet]:
        """The stream's packets, last the empty one that flushes the decoder; a damaged file's end early."""
        import av

        packets = self._container.demux(self._stream)
        try:
            while (packet := self._wait_for(lambda: next(packets, None))) is not None:
                if packet.size or packet.dts is None:
                    yield packet
        except av.FFmpegError as error:
            if self._scheme != "file" and not isinstance(error, av.error.InvalidDataError):
                raise LongVLMError(f"Reading {self._name} failed: {error.strerror}. Try again.") from error

    def _can_jump(self) -> bool:
        """Whether seeking works; elsewhere frames are reached by decoding on from the start.

        It doesn't in a live stream and at a server without byte ranges. In an MPEG program stream, where
        only some frames carry a timestamp, and in an AVI that has lost frames or its index, which counts
        frames instead of storing times, the times that FFmpeg infers after a seek are wrong.
        """
        timeline, format_name = self._timeline, self._container.format.name
        if timeline is None or format_name == "mpeg":
            return False
        if format_name == "avi" and (self._scheme != "file" or self._stream.frames != len(timeline.pts)):
            return False
        try:
            return self._scheme == "file" or self._packets_from(0) is not None
        except LongVLMError:
            return False

    def _packets_from(self, key: int) -> Iterator[Packet] | None:
        """Packets from a keyframe on, or from somewhat before it; None where seeking there fails."""
        import av

        timeline = self._known_timeline()
        key_pts, key_dts = int(timeline.keyframe_pts[key]), int(timeline.keyframe_dts[key])
        # Containers take a seek's target for a pts or a dts, and some land late: look, and step back.
        targets = [key_pts, *(key_dts - int(s / self._time_base) for s in _SEEK_MARGINS_SECONDS)]
        for target in targets:
            try:
                self._wait_for(lambda: self._container.seek(target, stream=self._stream))  # noqa: B023
            except av.FFmpegError:
                continue
            packets = self._packets()
            first = next(packets, None)
            if first is None or first.pts is None:
                continue
            on_keyframe = first.is_keyframe and first.pts <= key_pts
            if on_keyframe or (first.dts is not None and first.dts <= key_dts):
                return chain([first], packets)
        return None

    def _frames_from(self, key: int) -> Iterator[_Presented]:
        packets = self._packets_from(key) if self._can_seek else None
        if packets is None:
            self._reopen()
            packets = self._packets()
        return self._decode(packets)

    def _decode(self, packets: Iterator[Packet]) -> Iterator[_Presented]:
        """Decode packets to presented frames; what is damaged is left out."""
        import av

        guessed_times = self._timestamps_are_guesses()
        position: int | None = None
        for packet in packets:
            try:
                frames = self._stream.decode(packet) if packet.size else self._stream.decode(None)
            except av.FFmpegError:
                continue
            if position is None and packet.pts is not None and self._timeline is not None:
                position = int(np.searchsorted(self._timeline.pts, packet.pts))
            for frame in frames:
                if guessed_times and self._timeline is not None and position is not None:
                    frame.pts = int(self._timeline.pts[min(position, len(self._timeline.pts) - 1)])
                    position += 1
                if frame.pts is not None:
                    yield _Presented(frame.pts, frame)

    def _timestamps_are_guesses(self) -> bool:
        """AVI stores no presentation times: with reordered frames, FFmpeg's are those of decoding order."""
        return (
            self._container.format.name == "avi"
            and bool(self._stream.codec_context.has_b_frames)
            and self._timeline is not None
            and self._timeline.in_decoding_order
        )


def _display_matrix(frame: VideoFrame) -> np.ndarray | None:
    """The upper left 2 x 2 of the matrix that turns and mirrors the stored picture for display.

    PyAV's `side_data` and the frame refer to each other, so that a frame that was asked for it stays in memory
    until Python's next search for such circles, hundreds of frames later: ask the first frame only.
    """
    matrix = cast("Mapping[str, Buffer]", frame.side_data).get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(bytes(matrix), dtype=np.int32).reshape(3, 3)[:2, :2]


def _is_turned(display_matrix: np.ndarray | None) -> bool:
    """Whether rows of the stored picture are columns of the one that a viewer sees."""
    if display_matrix is None:
        return False
    return bool(abs(display_matrix[[0, 1], [1, 0]]).max() > abs(display_matrix.diagonal()).max())


def _picture(frame: VideoFrame, display_matrix: np.ndarray | None) -> np.ndarray:
    """The RGB picture (H, W, 3) uint8 as a viewer sees it: turned and mirrored as the display matrix says."""
    rgb = frame.to_ndarray(format="rgb24")
    if display_matrix is None:
        return rgb
    (a, b), (c, d) = display_matrix
    if _is_turned(display_matrix):
        rgb, flip_x, flip_y = rgb.swapaxes(0, 1), c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
