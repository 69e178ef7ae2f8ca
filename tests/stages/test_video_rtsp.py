"""A camera's stream, from a small RTSP server that relays what ffmpeg sends."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from media import read_barcode, write_video

from longvlm.stages.video import Sampling, open_video


@contextmanager
def camera(path: Path) -> Iterator[str]:
    """Play a video in real time to one viewer and yield its rtsp address."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("ffmpeg is not installed, so there is nothing to play a camera")
    relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    relay.bind(("127.0.0.1", 0))
    relay.settimeout(20)
    server = socket.create_server(("127.0.0.1", 0))
    target = f"rtp://127.0.0.1:{relay.getsockname()[1]}"
    play = [program, "-v", "error", "-re", "-i", str(path), "-c", "copy", "-f", "rtp", target]
    player = None

    def reply(viewer: socket.socket, sequence: str, headers: str = "", body: str = "") -> None:
        viewer.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {sequence}\r\nSession: 1\r\n{headers}\r\n{body}".encode())

    def serve() -> None:
        nonlocal player
        viewer, _ = server.accept()
        requests = viewer.makefile("rb")
        while line := requests.readline().decode():
            method, headers = line.split()[0], {}
            while field := requests.readline().decode().strip():
                name, _, value = field.partition(":")
                headers[name.lower()] = value.strip()
            sequence = headers["cseq"]
            if method == "DESCRIBE":
                describe = [
                    *play[:3],
                    *play[4:-1],
                    "-t",
                    "0.01",
                    "-sdp_file",
                    "/dev/stdout",
                    "rtp://127.0.0.1:9",
                ]
                sdp = subprocess.run(describe, capture_output=True, text=True).stdout
                content = f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n"
                reply(viewer, sequence, content, sdp)
            elif method == "SETUP":
                reply(viewer, sequence, "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n")
            elif method == "PLAY":
                reply(viewer, sequence)
                player = subprocess.Popen(play)
                break
            else:
                reply(viewer, sequence, "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n")
        try:
            while packet := relay.recv(1 << 16):
                viewer.sendall(b"$\x00" + len(packet).to_bytes(2, "big") + packet)
        except OSError:
            viewer.close()  # the viewer left, or the player fell silent

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"rtsp://127.0.0.1:{server.getsockname()[1]}/camera"
    finally:
        server.close()
        if player is not None:
            player.kill()
            player.wait()


def test_a_camera_is_read_by_rate_with_times_from_its_first_frame(tmp_path):
    path = write_video(tmp_path / "camera.mp4", 250, b_frames=0)
    sampling = Sampling(num_frames=None, fps=5, max_frames=8)
    with camera(path) as address, open_video(address) as video:
        segments = list(video.segments(sampling, frames_per_segment=4, image_size=48, fit="squash"))
        assert (video.info.name, video.info.duration_seconds) == (address, None)
    times = [time for segment in segments for time in segment.times_seconds]
    numbers = [read_barcode(pixels) for segment in segments for pixels in segment.pixels]
    assert times == pytest.approx([i / 5 for i in range(8)], abs=0.045)
    assert [round((time - times[0]) * 25) for time in times] == [number - numbers[0] for number in numbers]
