"""A scene as a video: a stream of frames, or a real file written frame by frame."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from rich.console import Console
from rich.progress import Progress

from longvlm.errors import LongVLMError
from longvlm.whole_files import replacing
from longvlm.world.render import render_frame
from longvlm.world.scene import Scene

QUIET_SECONDS = 2.0  # work shorter than this shows no progress bar
MAX_SIDE = 8192  # pixels
# With its macroblock tree libx264 (core 165) reads memory that it has not written: what it makes of the first group of
# pictures then depends on what the process did before. Without it, the same frames are the same bytes.
H264_OPTIONS = {"preset": "veryfast", "crf": "23", "mbtree": "0"}


def frames(scene: Scene, *, width: int, height: int, fps: float) -> Iterator[tuple[float, np.ndarray]]:
    """The scene's frames at a constant rate from time 0: pairs of seconds and (H, W, 3) uint8 RGB."""
    rate = _exact_rate(fps)
    for index in range(count_frames(scene, fps)):
        time_seconds = float(index / rate)
        yield time_seconds, render_frame(scene, time_seconds, width, height)


def count_frames(scene: Scene, fps: float) -> int:
    return max(1, round(scene.duration_seconds * float(_exact_rate(fps))))


def write_video(
    scene: Scene,
    path: str | Path,
    *,
    width: int,
    height: int,
    fps: float,
    codec: str = "libx264",
    threads: int = 0,
    show_progress: bool = True,
) -> None:
    """Write the scene as a video file, whole or not at all; the name's ending chooses the container.

    `threads` are the codec's own (0: as many as it likes). Progress goes to stderr. Raises LongVLMError for a
    size, rate, codec or path that cannot be written.
    """
    if not all(2 <= side <= MAX_SIDE and side % 2 == 0 for side in (width, height)):
        raise LongVLMError(f"The video size is {width}x{height}; codecs need even sides of 2 to {MAX_SIDE} pixels.")
    rate = _exact_rate(fps)
    _require_video_codec(codec)
    stream_of_frames = frames(scene, width=width, height=height, fps=fps)
    if show_progress:
        stream_of_frames = _with_progress(stream_of_frames, count_frames(scene, fps), Path(path).name)
    to_yuv = VideoReformatter()  # one for all frames: setting a converter up takes longer than converting
    try:
        with replacing(Path(path)) as whole, av.open(str(whole), mode="w") as container:
            stream = container.add_stream(codec, rate=rate)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.thread_count = threads
            if codec == "libx264":
                stream.options = dict(H264_OPTIONS)
            for index, (_, pixels) in enumerate(stream_of_frames):
                frame = to_yuv.reformat(av.VideoFrame.from_ndarray(pixels, format="rgb24"), format="yuv420p")
                frame.pts, frame.time_base = index, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except (OSError, av.error.FFmpegError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LongVLMError(f"Cannot write {path} with codec {codec}: {reason}.") from error


def usual_codec(path: Path) -> str:
    """The one that players expect behind this ending."""
    return "libvpx-vp9" if path.suffix.lower() == ".webm" else "libx264"


def _with_progress(
    stream: Iterator[tuple[float, np.ndarray]], total: int, title: str
) -> Iterator[tuple[float, np.ndarray]]:
    """The same stream, with a bar on stderr if it takes longer than QUIET_SECONDS and a person is looking."""
    console = Console(stderr=True)
    progress = Progress(console=console, transient=True)
    task = progress.add_task(title, total=total)
    started = time.monotonic()
    try:
        for done, item in enumerate(stream, start=1):
            yield item
            progress.update(task, completed=done)
            if not progress.live.is_started and console.is_terminal and time.monotonic() - started > QUIET_SECONDS:
                progress.start()
    finally:
        if progress.live.is_started:
            progress.stop()


def _require_video_codec(name: str) -> None:
    try:
        kind = av.Codec(name, "w").type
    except ValueError:  # av's UnknownCodecError
        kind = None
    if kind != "video":
        raise LongVLMError(f"The codec is {name!r}, which writes no video here; choose libx264, mpeg4 or libvpx-vp9.")


def _exact_rate(fps: float) -> Fraction:
    if not 0.001 <= fps < 1000:
        raise LongVLMError(f"fps is {fps}; it must lie between 0.001 and 1000 frames per second.")
    return Fraction(fps).limit_denominator(1001)
