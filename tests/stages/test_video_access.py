"""What may not be opened is refused in a clear sentence, and nothing is fetched on a file's behalf."""

import os
import socket
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media import CERTIFICATE, serve_folder, write_audio, write_video

from longvlm.errors import LongVLMError
from longvlm.stages.video import Sampling, open_video
from longvlm.stages.video_access import INDEX_SUFFIX, display_name, is_index
from longvlm.video_index import VideoIndex

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{}\n#EXT-X-ENDLIST\n"
HOSTILE = {
    "passwd.m3u8": HLS.format("file:///etc/passwd"),
    "passwd.mp4": HLS.format("/etc/passwd"),
    "byte_order_mark.mp4": "\ufeff" + HLS.format("/etc/passwd"),
    "concat.txt": "ffconcat version 1.0\nfile '/etc/passwd'\n",
    "concat.mkv": "file '/etc/passwd'\n",
    "dash.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
}


def refusal(source: object, **options: bool) -> str:
    with pytest.raises(LongVLMError) as caught:
        open_video(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_refers_to_others_is_refused(tmp_path, name):
    (tmp_path / name).write_text(HOSTILE[name], encoding="utf-8")
    message = refusal(tmp_path / name)
    assert str(tmp_path / name) in message
    assert "--allow-references" in message


def test_what_only_ffmpeg_recognises_is_not_opened_either(tmp_path):
    session = "x=1\nv=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    (tmp_path / "hidden.mp4").write_text(f"{session}a=rtpmap:96 H264/90000\n")
    assert "is of a format that is not accepted" in refusal(tmp_path / "hidden.mp4")


def test_with_permission_a_playlist_is_read(tmp_path):
    write_video(tmp_path / "part.ts", 50)
    (tmp_path / "list.m3u8").write_text(HLS.format("part.ts"))
    (tmp_path / "list.txt").write_text("ffconcat version 1.0\nfile part.ts\nfile part.ts\n")
    with open_video(tmp_path / "list.m3u8", allow_references=True) as video:
        assert len(video.planned_times(Sampling(num_frames=None, fps=1000))) == 50
    with open_video(tmp_path / "list.txt", allow_references=True) as video:
        assert len(video.planned_times(Sampling(num_frames=None, fps=1000))) == 100


def test_a_playlist_on_a_server_never_reaches_local_files(tmp_path):
    secret = write_video(tmp_path / "secret.ts", 20)
    served = tmp_path / "served"
    served.mkdir()
    (served / "list.m3u8").write_text(HLS.format(f"file://{secret}"))
    with serve_folder(served, ranges=True) as address:
        assert "--allow-references" in refusal(f"{address}/list.m3u8")
        refusal(f"{address}/list.m3u8", allow_references=True)


def test_unusable_files_are_named_with_what_is_wrong(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("Dear diary,\n" * 50)
    write_audio(tmp_path / "sound.m4a")
    whole = write_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "truncated.mp4").write_bytes(whole[: whole.index(b"moov") - 4])
    (tmp_path / "half_index.mp4").write_bytes(whole[:-500])
    expected = {
        "missing.mp4": "No such video: {}. Check the path.",
        "empty.mp4": "{} is empty (0 bytes); copy or download it again.",
        "text.mp4": "{} is not a video in a known format;",
        "truncated.mp4": "{} is an incomplete mp4: its index (the moov atom) is missing",
        "half_index.mp4": "{} is an incomplete mp4: its index (the moov atom) is missing or damaged",
        "sound.m4a": "sound.m4a has sound only;",
    }
    for name, beginning in expected.items():
        assert refusal(tmp_path / name).startswith(beginning.format(tmp_path / name)), name
    assert "not a regular file" in refusal("/dev/zero")


def test_a_video_of_length_zero(tmp_path):
    with av.open(str(tmp_path / "none.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.start_encoding()
    assert refusal(tmp_path / "none.mp4").startswith("none.mp4 holds no")


@pytest.mark.parametrize("address", ["ftp://host/film.mp4", "concat://a", "data://text/plain,hello", "gopher://host/1"])
def test_other_protocols_are_refused(address):
    assert "is not accepted; give a local file, or an http, https or rtsp address" in refusal(address)


@pytest.mark.parametrize("name", ["concat:/etc/passwd|/etc/group", "subfile,,start,0,end,9,,:/etc/passwd", "http:x"])
def test_a_path_is_never_read_as_a_protocol(name):
    assert refusal(name) == f"No such video: {name}. Check the path."


def test_unreachable_addresses(tmp_path):
    with serve_folder(tmp_path, ranges=True) as address:
        pass
    assert refusal(f"{address}/film.mp4").startswith(f"Can't reach {address}/film.mp4: Connection refused.")
    with serve_folder(tmp_path, ranges=True) as address:
        assert "404 Not Found" in refusal(f"{address}/film.mp4")
    message = refusal("rtsp://user:secret@127.0.0.1:9/camera")
    assert message.startswith("Can't reach rtsp://127.0.0.1:9/camera:")


@pytest.mark.parametrize("suffix", ["", ".png", ".mp4"])
def test_names_that_no_system_takes(tmp_path, suffix):
    long_name = "a" * 300 + suffix
    assert refusal(tmp_path / long_name).startswith(f"{tmp_path / long_name} can't be read: file name too long.")
    assert refusal([long_name]).startswith(f"{long_name} can't be read: file name too long.")
    kind = "image" if suffix == ".png" else "video"
    assert refusal(f"nul\0l{suffix}") == f"No such {kind}: nul�l{suffix}. Check the path."
    assert refusal(f"~nobody-at-all/film{suffix}").startswith("No such ")


def test_what_may_not_be_read_is_named(closed_folder):
    folder = closed_folder
    for source in (folder / "film.mp4", folder / "frame.png", [folder / "frame.png"], folder):
        assert "can't be read: permission denied. Check its name and the permissions" in refusal(source)


def test_what_the_system_refuses_to_tell_is_named(tmp_path):
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    assert "loop.mp4 can't be read: too many levels of symbolic links" in refusal(tmp_path / "loop.mp4")


def test_names_are_shown_printably(tmp_path):
    write_video(tmp_path / "plain.mp4", 5)
    for raw in (b"bad\xff.mp4", b"two\nlines.mp4"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + raw))
        path.write_bytes((tmp_path / "plain.mp4").read_bytes())
        with open_video(path) as video:
            assert video.info.name == raw.decode("ascii", "replace").replace("\n", "�")
            assert video.info.name.isprintable()
    assert display_name("Bildschirm\u202f3.00\u00a0é.mp4") == "Bildschirm\u202f3.00\u00a0é.mp4"
    assert "gone�.mp4" in refusal(Path(os.fsdecode(b"gone\xff.mp4")))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://host/film.mp4?token=secret&a=1#t=3", "https://host/film.mp4"),
        ("rtsp://user:secret@host:554/camera?key=secret", "rtsp://host:554/camera"),
        ("file:///films/my%20film.mp4", "my film.mp4"),
    ],
)
def test_secrets_in_addresses_are_not_shown(address, shown):
    assert display_name(address) == shown
    if not address.startswith("file"):
        with pytest.raises(LongVLMError) as caught:
            open_video(address, fps=2)
        assert "secret" not in str(caught.value)


def test_a_malformed_address(tmp_path):
    assert "[::1/film.mp4 is malformed" in refusal("http://user:secret@[::1/film.mp4?secret")
    assert "secret" not in refusal("http://user:secret@[::1/film.mp4?secret")


def test_file_addresses_and_strange_names(tmp_path):
    path = write_video(tmp_path / "a film: 100%25 [1].mp4", 5)
    for source in (path, str(path), path.as_uri()):
        with open_video(source) as video:
            assert (video.info.name, video.info.num_frames) == (path.name, 5)


def test_an_address_that_is_refused_leaves_no_thread_behind():
    for _ in range(3):
        refusal("http://127.0.0.1:9/nothing.mp4")
    for thread in threading.enumerate():
        if thread.name == "longvlm-network":
            thread.join(5)
            assert not thread.is_alive()


@pytest.mark.parametrize("at_address", [False, True], ids=["file", "address"])
def test_a_closed_reader_says_so(tmp_path, at_address):
    path = write_video(tmp_path / "video.mp4", 20)
    with serve_folder(tmp_path, ranges=True) as address:
        with open_video(f"{address}/video.mp4" if at_address else path) as video:
            pass
        with pytest.raises(LongVLMError, match=r"video\.mp4 is closed"):
            next(video.segments(Sampling(), frames_per_segment=4, image_size=32, fit="squash"))


@pytest.mark.parametrize("at_address", [False, True], ids=["file", "address"])
def test_a_reader_that_is_closed_amid_its_segments_says_so(tmp_path, at_address):
    path = write_video(tmp_path / "video.mp4", 20)
    with serve_folder(tmp_path, ranges=True) as address:
        with open_video(f"{address}/video.mp4" if at_address else path) as video:
            segments = video.segments(Sampling(num_frames=20), frames_per_segment=4, image_size=32, fit="squash")
            next(segments)
        with pytest.raises(LongVLMError, match=r"video\.mp4 is closed"):
            next(segments)


def test_a_server_that_nobody_vouches_for_is_refused(tmp_path, monkeypatch):
    write_video(tmp_path / "video.mp4", 20)
    with serve_folder(tmp_path, ranges=True, secure=True) as address:
        assert "the server's certificate (SSL_CERT_FILE names whom to trust)" in refusal(f"{address}/video.mp4")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        assert "none.pem, which is no file; correct or unset it" in refusal(f"{address}/video.mp4")
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        with open_video(f"{address}/video.mp4") as video:
            assert video.info.num_frames == 20


def test_an_address_is_reached_through_a_proxy(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        heard = []

        def listen():
            connection, _ = proxy.accept()
            with connection:
                heard.append(connection.recv(1000))

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        refusal("https://example.invalid/video.mp4")
        listener.join(10)
    assert heard[0].startswith(b"CONNECT example.invalid:443")


@pytest.mark.parametrize("suffix", ["mkv", "avi"])
def test_a_codec_that_nobody_knows_is_named_as_the_trouble(tmp_path, suffix):
    path = write_video(tmp_path / f"video.{suffix}", 20, codec="mpeg4")
    known = {"mkv": b"V_MPEG4/ISO/ASP", "avi": b"FMP4"}[suffix]
    path.write_bytes(path.read_bytes().replace(known, known.replace(b"M", b"Z")))
    message = refusal(path)
    assert "codec" in message and "convert it to H.264 mp4" in message


@pytest.mark.parametrize(
    "source", [None, b"video.mp4", torch.zeros(2, 8, 8, 3), [np.zeros((8, 8, 3))], {"a.png"}, 3], ids=lambda s: type(s)
)
def test_what_is_no_video_is_called_by_its_type(source):
    message = refusal(source)
    assert message.startswith(f"A {type(source).__name__} is no video") and len(message) < 200


def test_an_index_is_known_by_its_name():
    assert VideoIndex.SUFFIX == INDEX_SUFFIX
    assert is_index("a/film.longvlm") and is_index("file:///a/film.longvlm")
    assert not is_index("https://host/film.longvlm") and not is_index("film.mp4")
