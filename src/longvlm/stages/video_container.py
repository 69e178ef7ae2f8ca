"""Video files and addresses read with PyAV: the pictures that are presented at chosen times.

Two passes: the first only demuxes and notes when every frame is presented; the second decodes what is wanted. The
stretches from keyframe to keyframe are independent of one another: several decoders take turns at those of a file.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain, groupby
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch

from longvlm.errors import LongVLMError
from longvlm.stages.video_access import display_name, local_path, source_scheme
from longvlm.stages.video_decoder import Cursor, Decoder, EndOfVideo, Presented
from longvlm.stages.video_fingerprint import fingerprint_files
from longvlm.stages.video_timeline import Timeline, scan_timeline
from longvlm.types import VideoInfo
from longvlm.working_ahead import WorkingAhead

if TYPE_CHECKING:
    from av.buffer import Buffer
    from av.video.frame import VideoFrame

_Prepared = TypeVar("_Prepared")

_MISSING_TOLERANCE_SECONDS = 0.5  # containers round the length they state; less than this is no damage
_MAX_STRETCH = 16  # beyond it a header is wrong, or meant to make huge pictures
_ROUNDING_SECONDS = 1e-9  # so that a target that was rounded down still shows the frame that begins there
_MAX_DECODERS = 8
_STRETCHES_PER_DECODER = 2  # with fewer, one decoder with threads of its own is as fast
_PICTURES_AHEAD = 8  # of each decoder


class ContainerSource:
    """One video stream of a file or an address. A live stream has no timeline and is read once, forwards.

    Raises LongVLMError at construction where the source can't be opened, has no video, or none of it decodes.
    """

    def __init__(self, source: str, *, allow_references: bool = False) -> None:
        self._source, self._allow_references = source, allow_references
        self._scheme = source_scheme(source)
        self._name = display_name(source)
        self._decoder = Decoder(source, allow_references=allow_references)
        self._reading = ExitStack()  # closes the decoders that work ahead
        with ExitStack() as if_it_fails:
            if_it_fails.callback(self.close)
            self._timeline = None if self._is_live() else self._scan()
            self._can_seek = self._can_jump()
            if self._timeline is None:
                frames = self._decoder.frames(self._decoder.packets(), None)
            else:
                frames = self._decoder.frames_from(self._timeline, 0, can_seek=self._can_seek)
            first = next(frames, None)
            if first is None:
                codec = self._decoder.stream.codec_context.name
                raise LongVLMError(f"No frame of {self._name} can be decoded ({codec}); convert it to H.264 mp4.")
            if self._timeline is not None:
                self._timeline = self._timeline.begun_with(first.pts)
            self._missing_seconds = self.lost_seconds = self._seconds_missing()
            self._orientation = _display_matrix(first.frame)
            stretch, is_turned = self._stretch(), _is_turned(self._orientation)
            # Width over height of a pixel of the pictures that `read` yields, which are turned already.
            self.pixel_aspect = 1 / stretch if is_turned else stretch
            first_picture = _picture(first.frame, self._orientation)
            self.info = self._describe(first_picture, (1, stretch) if is_turned else (stretch, 1))
            if self._timeline is None:
                self._live_start_pts = first.pts
                self._live_cursor = Cursor(chain([first], frames))
            else:
                self._decoder.release()
            if_it_fails.pop_all()

    def close(self) -> None:
        self._reading.close()
        self._decoder.close()

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

    def read(
        self, positions: Sequence[int], prepare: Callable[[np.ndarray], _Prepared]
    ) -> Iterator[tuple[float, _Prepared]]:
        """Yield (time in seconds, what `prepare` makes of the RGB picture (H, W, 3) uint8) for each position.

        Positions must not descend. `prepare` may run in other threads. A frame that can't be decoded is replaced by
        the one shown before it, under that one's own time. Where nothing decodes any more, reading ends and
        `lost_seconds` grows by what the video should still have had.
        """
        timeline = self._known_timeline()
        stretches = groupby(timeline.pts[np.asarray(positions, dtype=np.int64)].tolist(), timeline.keyframe_before)
        wanted = [list(stretch) for _, stretch in stretches]
        only_keyframes = bool(np.isin(positions, timeline.keyframe_positions).all())
        self.lost_seconds = self._missing_seconds
        try:
            for pts, prepared in self._decode(timeline, wanted, only_keyframes, prepare):
                yield float((pts - int(timeline.pts[0])) * self._time_base), prepared
        except EndOfVideo as end:
            self.lost_seconds += float((timeline.end_pts - end.pts) * self._time_base)

    def _decode(
        self,
        timeline: Timeline,
        wanted: list[list[int]],
        only_keyframes: bool,
        prepare: Callable[[np.ndarray], _Prepared],
    ) -> Iterator[tuple[int, _Prepared]]:
        """What is shown at the `wanted` timestamps, stretch by stretch, in their order."""

        def prepared_frames(decoder: Decoder, stretches: list[list[int]]) -> Iterator[tuple[int, _Prepared]]:
            pts = list(chain.from_iterable(stretches))
            for shown in decoder.frames_at(timeline, pts, can_seek=self._can_seek, only_keyframes=only_keyframes):
                yield shown.pts, prepare(_picture(shown.frame, self._orientation))

        def decode_apart(stretches: list[list[int]]) -> Generator[tuple[int, _Prepared], None, None]:
            with Decoder(self._source, allow_references=self._allow_references, threads="NONE") as decoder:
                yield from prepared_frames(decoder, stretches)

        number = min(_MAX_DECODERS, torch.get_num_threads(), len(wanted) // _STRETCHES_PER_DECODER)
        if number < 2 or not (self._can_seek and self._decoder.is_file):
            # Of a group of pictures that is cut short, threads lose those that come last.
            self._decoder.reopen(threads="NONE" if timeline.cut_short else "AUTO")
            yield from prepared_frames(self._decoder, wanted)
            return
        with self._reading as at_the_end:
            decoders = []
            for first in range(number):
                mine = decode_apart(wanted[first::number])
                decoders.append(WorkingAhead(mine, room=_PICTURES_AHEAD, name="longvlm-decode"))
                at_the_end.callback(decoders[-1].close)
            for place, stretch in enumerate(wanted):
                for _ in stretch:
                    yield next(decoders[place % number])

    def read_live(
        self, times_seconds: Iterable[float], prepare: Callable[[np.ndarray], _Prepared]
    ) -> Iterator[tuple[float, _Prepared]]:
        """As `read`, decoding forwards: the frames shown at ascending times, each once; ends with the stream."""
        last: Presented | None = None
        for time_seconds in times_seconds:
            offset_pts = math.floor(Fraction(time_seconds + _ROUNDING_SECONDS) / self._time_base)
            goes_on = self._live_cursor.advance(self._live_start_pts + offset_pts)
            shown = self._live_cursor.shown
            if shown is not None and shown is not last:
                last = shown
                yield (
                    float((shown.pts - self._live_start_pts) * self._time_base),
                    prepare(_picture(shown.frame, self._orientation)),
                )
            if not goes_on:
                return

    # Opening and describing

    @property
    def _time_base(self) -> Fraction:
        return self._decoder.time_base

    def _is_live(self) -> bool:
        container = self._decoder.container
        if container.format.name in ("hls", "dash"):  # the size is that of the playlist's text
            return container.duration is None
        if self._scheme == "file":
            return False
        return self._scheme.startswith("rtsp") or (container.duration is None and container.size <= 0)

    def _scan(self) -> Timeline:
        stream, is_mpegts = self._decoder.stream, self._decoder.container.format.name == "mpegts"
        rate = stream.guessed_rate or Fraction(25)
        timeline = scan_timeline(
            self._decoder.packets(of_all_streams=is_mpegts),  # where only the last packet of all tells the end
            stream_index=stream.index,
            one_frame_pts=max(1, round(1 / (rate * self._time_base))),
        )
        if timeline is None:
            raise LongVLMError(f"{self._name} holds no frames: the length of its video is zero. Give another video.")
        if timeline.starts_anew:
            raise LongVLMError(
                f"The clock of {self._name} starts anew somewhere, as where recordings were joined as they are. Give "
                "it one clock: ffmpeg -i IN -c copy OUT.mp4."
            )
        return timeline

    def _known_timeline(self) -> Timeline:
        assert self._timeline is not None  # nobody asks a live stream for positions
        return self._timeline

    def _describe(self, first_picture: np.ndarray, stretches: tuple[Fraction | int, Fraction | int]) -> VideoInfo:
        height, width = first_picture.shape[:2]
        timeline, rate = self._timeline, self._decoder.stream.average_rate
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
        stretch = self._decoder.stream.sample_aspect_ratio
        return stretch if stretch and 1 / _MAX_STRETCH <= stretch <= _MAX_STRETCH else Fraction(1)

    def _held_seconds(self) -> float:
        """From the first presented frame to the end of the last one whose packet is there; 0.0 if live."""
        timeline = self._timeline
        return 0.0 if timeline is None else float((timeline.end_pts - int(timeline.pts[0])) * self._time_base)

    def _seconds_missing(self) -> float:
        """How much earlier the frames end than the container says; 0.0 where it doesn't say, or agrees."""
        timeline, stream, container = self._timeline, self._decoder.stream, self._decoder.container
        if timeline is None:
            return 0.0
        start = float((stream.start_time or 0) * self._time_base)
        tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d*)?)", stream.metadata.get("DURATION", ""))
        if container.format.name == "mpegts":
            # It states nothing: a rest of the file without packets counts at the bytes a second until there.
            unread = container.size - timeline.end_byte if self._scheme == "file" else 0
            end = float(timeline.end_pts * self._time_base)
            stated_end = end + self._held_seconds() * unread / max(1, timeline.end_byte)
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

    def _can_jump(self) -> bool:
        """Whether seeking works; elsewhere frames are reached by decoding on from the start.

        It doesn't in a live stream and at a server without byte ranges. In an MPEG program stream, where
        only some frames carry a timestamp, and in an AVI that has lost frames or its index, which counts
        frames instead of storing times, the times that FFmpeg infers after a seek are wrong. Where an edit
        list leaves something out, hidden keyframes have times of other places.
        """
        timeline, format_name = self._timeline, self._decoder.container.format.name
        if timeline is None or timeline.has_cuts or format_name == "mpeg":
            return False
        if format_name == "avi" and (self._scheme != "file" or self._decoder.stream.frames != len(timeline.pts)):
            return False
        try:
            return self._scheme == "file" or self._decoder.packets_from(timeline, 0) is not None
        except LongVLMError:
            return False


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
