"""Small real media for tests: videos whose frames carry their own number as a bar code in the pixels."""

from __future__ import annotations

import itertools
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import torch

_BITS = 12


CERTIFICATE = Path(__file__).parent / "certificates" / "localhost.pem"  # of 127.0.0.1, signed by itself, until 2126


def barcode(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A picture (H, W, 3) uint8 whose vertical bars, white for 1, spell `number` in binary."""
    bits = [number >> bit & 1 for bit in range(_BITS)]
    columns = np.arange(width) * _BITS // width
    row = np.where(np.array(bits)[columns], 235, 16).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))


def read_barcode(pixels: torch.Tensor) -> int:
    """The number in fitted pixels (3, R, R)."""
    columns = pixels.float().mean(dim=(0, 1))
    centres = [round((bit + 0.5) * len(columns) / _BITS) for bit in range(_BITS)]
    return sum(1 << bit for bit, centre in enumerate(centres) if columns[centre] > 125)


def write_video(
    path: Path,
    num_frames: int = 60,
    *,
    fps: int = 25,
    pts_milliseconds: Sequence[int] | None = None,
    codec: str = "libx264",
    keyframe_distance: int = 12,
    b_frames: int = 2,
    size: tuple[int, int] = (96, 64),
    rotation: int = 0,
    pixel_aspect: int = 1,
    audio: bool = False,
    audio_seconds: float | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode bar codes 0, 1, 2 …; with `pts_milliseconds`, at those times instead of every 1/fps seconds."""
    time_base = Fraction(1, fps) if pts_milliseconds is None else Fraction(1, 1000)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.sample_aspect_ratio = Fraction(pixel_aspect)
        stream.codec_context.gop_size = keyframe_distance
        stream.codec_context.max_b_frames = b_frames
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "b-adapt": "0", "sc_threshold": "0", "bf": str(b_frames)}
        elif codec == "libx265":
            stream.options = {"preset": "ultrafast", "x265-params": "log-level=none"}
        if rotation:
            stream.set_display_rotation(rotation)
        if audio or audio_seconds:
            _write_silence(container, audio_seconds or num_frames / fps)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(barcode(number, *size), format="rgb24")
            frame.pts = number if pts_milliseconds is None else pts_milliseconds[number]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path, seconds: float = 1.0) -> Path:
    """A sound file without any picture."""
    with av.open(str(path), "w") as container:
        _write_silence(container, seconds)
    return path


def _write_silence(container: av.container.OutputContainer, seconds: float, rate: int = 16000) -> None:
    stream = container.add_stream("aac", rate=rate, layout="mono")
    for start in range(0, int(seconds * rate), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def shift_timestamps(source: Path, target: Path, seconds: float, **options: str) -> Path:
    """Copy a video with its timestamps moved: later, a non-zero start; earlier, an edit list in an mp4."""
    with av.open(str(source)) as reader, av.open(str(target), "w", options=options) as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        for packet in reader.demux(stream):
            if packet.dts is None:
                continue
            ticks = round(Fraction(seconds) / stream.time_base)
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            packet.stream = copy
            writer.mux(packet)
    return target


def ffprobe_times(path: Path) -> list[float]:
    """The presentation times in seconds that ffprobe reports, minus the first; skips without ffprobe."""
    program = shutil.which("ffprobe")
    if program is None:
        pytest.skip("ffprobe is not installed, so there is no independent witness of frame times")
    command = [program, "-v", "error", "-select_streams", "v:0", "-show_entries"]
    command += ["frame=best_effort_timestamp_time", "-of", "csv=print_section=0", str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    times = [float(line.strip(",")) for line in output.split() if line.strip(",") not in ("", "N/A")]
    return [time - times[0] for time in times]


def write_long_video(path: Path, seconds: int, *, fps: int = 25) -> Path:
    """A video of any length in no time: one group of 100 pictures, encoded once, written over and over."""
    group = 100
    once = write_video(path.with_name(f"once_{path.name}"), group, fps=fps, keyframe_distance=group, b_frames=0)
    with av.open(str(once)) as reader, av.open(str(path), "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        time_base = stream.time_base
        packets = [(bytes(p), p.pts, p.is_keyframe) for p in reader.demux(stream) if p.dts is not None]
        for start in range(0, seconds * fps, group):
            for data, pts, is_keyframe in packets[: seconds * fps - start]:
                packet = av.Packet(data)
                packet.stream, packet.time_base = copy, time_base
                packet.pts = packet.dts = pts + round(Fraction(start, fps) / time_base)
                packet.duration = round(1 / fps / time_base)
                packet.is_keyframe = is_keyframe
                writer.mux(packet)
    return path


@contextmanager
def serve_folder(
    folder: Path, *, ranges: bool, endless: bool = False, stalls_after: int | None = None, secure: bool = False
) -> Iterator[str]:
    """Serve a folder over http on this machine and yield its address.

    Without `ranges` every file comes whole; an `endless` one has no stated length and never ends after that. After so
    many requests the server `stalls`: it takes them and says nothing. A `secure` one speaks https, with CERTIFICATE.
    """
    stopped, requests = threading.Event(), itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            if stalls_after is not None and next(requests) > stalls_after:
                stopped.wait()
            path = folder / self.path.partition("?")[0].strip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if ranges and wanted:
                first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                self._finish(data[first : last + 1])
            else:
                self.send_response(200)
                self._finish(data)

        def _finish(self, body: bytes) -> None:
            try:
                if endless:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
                    stopped.wait()
                    return
                if ranges:
                    self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the reader has seen enough

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionResetError:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_suffix(".key"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if secure else ''}://127.0.0.1:{server.server_port}"
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
