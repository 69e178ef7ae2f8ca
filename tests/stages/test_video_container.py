"""Encoded videos: true times, pictures that belong to them, damage, addresses, memory, Ctrl-C."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media import (
    barcode,
    ffprobe_times,
    read_barcode,
    serve_folder,
    shift_timestamps,
    write_long_video,
    write_video,
)
from waiting import PATIENCE_SECONDS, wait_until

from longvlm.errors import LongVLMError
from longvlm.stages import video_access
from longvlm.stages.video import Sampling, open_video, sample_indices
from longvlm.stages.video_fingerprint import fingerprint_files
from longvlm.stages.video_fitting import PAD_COLOUR
from longvlm.world.scene import make_scene
from longvlm.world.video import frames as scene_frames

UNEVEN = [0, 40, 50, 200] + [300 + number * number for number in range(56)]

VIDEOS = {
    "plain.mp4": lambda path: write_video(path),
    "without_b_frames.mp4": lambda path: write_video(path, b_frames=0),
    "with_sound.mp4": lambda path: write_video(path, audio=True),
    "variable_rate.mp4": lambda path: write_video(path, pts_milliseconds=UNEVEN),
    "variable_rate.mkv": lambda path: write_video(path, pts_milliseconds=[500 + ms for ms in UNEVEN]),
    "h265.mp4": lambda path: write_video(path, codec="libx265", options={}),
    "one_keyframe.mkv": lambda path: write_video(path, keyframe_distance=1000),
    "all_keyframes.mov": lambda path: write_video(path, keyframe_distance=1, b_frames=0),
    "vp9.webm": lambda path: write_video(path, codec="libvpx-vp9", b_frames=0),
    "stream.ts": lambda path: write_video(path),
    "program.mpg": lambda path: write_video(path, codec="mpeg2video"),
    "h264.avi": lambda path: write_video(path),
    "mpeg4.avi": lambda path: write_video(path, codec="mpeg4"),
    "animation.gif": lambda path: write_video(path, codec="gif", b_frames=0),
    "late.mp4": lambda path: shift_timestamps(write_video(path.with_name("0.mp4")), path, 3.7),
    "late.ts": lambda path: shift_timestamps(write_video(path.with_name("0.ts")), path, 3.7),
}


def read(source, sampling, frames_per_segment=10, image_size=48, **options):
    """[(time, number in the pixels)] of every frame, repetitions at the end of the last segment included."""
    with open_video(source, **options) as video:
        segments = video.segments(sampling, frames_per_segment=frames_per_segment, image_size=image_size, fit="squash")
        frames = [(t, read_barcode(p)) for s in segments for t, p in zip(s.times_seconds, s.pixels, strict=True)]
        return frames, video


def segments_of(path, sampling):
    with open_video(path) as video:
        yield from video.segments(sampling, frames_per_segment=10, image_size=48, fit="squash")


@pytest.mark.parametrize("name", VIDEOS)
def test_every_frame_has_the_time_that_ffprobe_reports_and_its_own_pixels(tmp_path, name):
    path = VIDEOS[name](tmp_path / name)
    every, video = read(path, Sampling(num_frames=60))
    indices = sample_indices(60, 60)
    assert [number for _, number in every] == indices
    assert video.info.num_frames == 60
    assert video.lost_seconds == 0.0
    seeking, _ = read(path, Sampling(num_frames=7), frames_per_segment=7)
    times = {number: seconds for seconds, number in every}
    assert seeking == [(times.get(index, index / 25), index) for index in sample_indices(60, 7)]
    written = UNEVEN if name.startswith("variable_rate") else range(0, 60 * 40, 40)
    shown = [seconds for seconds, _ in every]
    # Matroska's clock ticks in milliseconds.
    np.testing.assert_allclose(shown, np.array(written)[indices] / 1000, atol=1.1e-3)
    reported = ffprobe_times(path)  # of an AVI's last frames it reports no time
    assert len(reported) > 57
    expected = [reported[index] for index in indices if index < len(reported)]
    np.testing.assert_allclose(shown[: len(expected)], expected, atol=1e-6)


def test_recordings_joined_byte_by_byte_are_refused_with_the_remedy(tmp_path):
    parts = [write_video(tmp_path / name).read_bytes() for name in ("a.ts", "b.ts")]
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    with pytest.raises(LongVLMError, match=r"clock of joined\.ts starts anew .* ffmpeg -i IN -c copy OUT\.mp4"):
        open_video(tmp_path / "joined.ts")


@pytest.mark.parametrize("b_frames", [0, 2])
def test_times_count_from_the_first_frame_that_can_be_shown(tmp_path, b_frames):
    content = write_video(tmp_path / "whole.ts", 100, keyframe_distance=50, b_frames=b_frames).read_bytes()
    packet = 188  # of a transport stream
    (tmp_path / "amid.ts").write_bytes(content[len(content) * 3 // 10 // packet * packet :])
    frames, video = read(tmp_path / "amid.ts", Sampling(num_frames=None, fps=25))
    assert video.info.num_frames == len(frames) == 50 and video.lost_seconds == 0
    assert [number for _, number in frames] == list(range(50, 100))
    np.testing.assert_allclose([time for time, _ in frames], np.arange(50) / 25, atol=1e-6)
    lost = damage(tmp_path / "amid.ts", tmp_path / "lost.ts", 0.6, cut=False)
    with open_video(lost) as video:
        assert video.lost_seconds == pytest.approx(2 - video.info.num_frames / 25, abs=0.6) and video.lost_seconds > 0.2


@pytest.mark.parametrize("threads", [1, 3], ids=["one_decoder", "three_decoders"])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "mpeg4", "libsvtav1"])
def test_what_is_skipped_on_the_way_changes_no_pixel(tmp_path, codec, threads):
    """Few frames, each reached from the keyframe before it, by several decoders or one: as if all were decoded."""
    path = tmp_path / "scene.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = (
            24,
            3 if codec in ("libx264", "libx265", "mpeg4") else 0,
        )
        for _, pixels in scene_frames(make_scene(3, 20.0), width=96, height=64, fps=12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    torch.set_num_threads(threads)
    every, few, keyframes = (
        {
            time: pixels
            for segment in segments_of(path, sampling)
            for time, pixels in zip(segment.times_seconds, segment.pixels, strict=True)
        }
        for sampling in (
            Sampling(num_frames=None, fps=24),
            Sampling(num_frames=31),
            Sampling(num_frames=9, mode="keyframe"),
        )
    )
    assert (len(every), len(few), len(keyframes)) == (240, 31, 9)
    for time_seconds, pixels in (few | keyframes).items():
        assert torch.equal(pixels, every[time_seconds]), time_seconds


def test_a_reader_that_is_left_early_leaves_no_decoder_running(tmp_path):
    path = write_video(tmp_path / "video.mp4", 600)
    torch.set_num_threads(2)
    segments = segments_of(path, Sampling(num_frames=200))
    next(segments)
    decoding = [thread for thread in threading.enumerate() if thread.name == "longvlm-decode"]
    assert decoding
    segments.close()
    wait_until(lambda: not any(thread.is_alive() for thread in decoding))


def test_closing_the_reader_ends_its_decoders_though_somebody_holds_its_segments(tmp_path):
    path = write_video(tmp_path / "video.mp4", 600)
    torch.set_num_threads(2)
    with open_video(path) as video:
        held = video.segments(Sampling(num_frames=200), frames_per_segment=8, image_size=32, fit="squash")
        next(held)
        decoding = [thread for thread in threading.enumerate() if thread.name == "longvlm-decode"]
    assert decoding
    wait_until(lambda: not any(thread.is_alive() for thread in decoding))


FORK = """
import gc, os, sys
from longvlm.stages.video_decoder import Decoder
gc.disable()
decoder = Decoder(sys.argv[1], allow_references=False)
decoder.stream.codec_context.thread_count = 2
shown = decoder.frames(decoder.packets(), None)
next(shown)
if sys.argv[2] == "closed":
    decoder.close()
decoder.garbage = [decoder, shown]
del decoder, shown
if not (child := os.fork()):
    gc.collect()
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("left", ["open", "closed"])
def test_a_forked_child_waits_for_no_thread_of_a_decoder_that_its_parent_left(tmp_path, left):
    path = write_video(tmp_path / "video.mp4", 60)
    subprocess.run([sys.executable, "-c", FORK, str(path), left], check=True, timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("audio_seconds", [20, 60])
def test_sound_that_goes_on_in_a_transport_stream_is_no_damage(tmp_path, audio_seconds):
    path = write_video(tmp_path / "video.ts", 20, fps=1, audio_seconds=audio_seconds)
    with open_video(path) as video:
        assert (video.info.num_frames, video.lost_seconds) == (20, 0.0)
        assert video.info.duration_seconds == pytest.approx(20, abs=0.1)


def test_an_edit_list_hides_the_frames_before_its_start(tmp_path):
    path = shift_timestamps(write_video(tmp_path / "whole.mp4"), tmp_path / "cut.mp4", -0.6)
    frames, video = read(path, Sampling(num_frames=9), frames_per_segment=9)
    assert frames == [(index / 25, index + 15) for index in sample_indices(45, 9)]
    assert (video.info.num_frames, video.info.duration_seconds) == (45, 1.8)
    np.testing.assert_allclose(ffprobe_times(path), np.arange(45) / 25, atol=1e-6)


def test_an_edit_list_may_leave_a_middle_out(tmp_path):
    content = write_video(tmp_path / "whole.mp4", 250, keyframe_distance=100).read_bytes()
    at = content.index(b"elst") - 4
    (size, _, _, entries, _, begin, rate) = struct.unpack(">I4sIIIII", content[at : at + 28])
    assert (size, entries, rate) == (28, 1, 1 << 16)
    ticks = round(begin / 2)  # a frame: two B-frames are what delays the first one
    parts = [(2000, begin), (3000, begin + 175 * ticks)]  # milliseconds shown, and from where
    content = bytearray(content)
    content[at : at + 28] = struct.pack(">I4sII", 40, b"elst", 0, 2) + b"".join(
        struct.pack(">III", length, start, rate) for length, start in parts
    )
    for box in (b"edts", b"trak", b"moov"):  # which hold the list; the pictures lie before them
        place = content.rindex(box) - 4
        content[place : place + 4] = struct.pack(">I", struct.unpack(">I", content[place : place + 4])[0] + 12)
    (tmp_path / "cut.mp4").write_bytes(content)
    frames, video = read(tmp_path / "cut.mp4", Sampling(num_frames=None, fps=25))
    assert video.info.duration_seconds == pytest.approx(5.0, abs=0.1)
    assert sorted({number for _, number in frames}) == [*range(50), *range(175, 250)] and frames == sorted(frames)
    np.testing.assert_allclose(
        sorted({seconds for seconds, _ in frames}), ffprobe_times(tmp_path / "cut.mp4"), atol=1e-6
    )


def test_duration_reaches_to_the_end_of_the_last_frame(tmp_path):
    for name in ("plain.mp4", "stream.ts", "late.ts", "animation.gif"):
        with open_video(VIDEOS[name](tmp_path / name)) as video:
            assert video.info.duration_seconds == pytest.approx(2.4)
            assert video.info.average_fps == pytest.approx(25)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [{}, {"hflip": True}, {"vflip": True}])
def test_pictures_are_turned_and_mirrored_as_ffmpeg_does(tmp_path, degrees, mirror):
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("ffmpeg is not installed, so there is no independent witness of orientation")
    quarters = np.kron(np.array([[30, 90], [150, 230]], dtype=np.uint8), np.ones((32, 48), dtype=np.uint8))
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.set_display_rotation(degrees, **mirror)
        frame = av.VideoFrame.from_ndarray(np.repeat(quarters[:, :, None], 3, axis=2))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_video(path) as video:
        width, height = video.info.width, video.info.height
        sampling = Sampling(num_frames=1)
        frames = next(video.segments(sampling, frames_per_segment=1, image_size=32, fit="squash-nearest"))
    assert (width, height) == ((64, 96) if degrees % 180 else (96, 64))
    command = [program, "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    shown = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1)
    expected = shown[:, :: height // 32][:, :, :: width // 32].float()
    torch.testing.assert_close(frames.pixels[0].float(), expected, atol=3, rtol=0)


@pytest.mark.parametrize(("name", "rotation"), [("wide.mp4", 0), ("wide.mkv", 0), ("turned.mp4", 90)])
def test_pixels_that_are_not_square_are_stretched(tmp_path, name, rotation):
    path = write_video(tmp_path / name, 661, pixel_aspect=2, rotation=rotation)  # the middle one has bars all over
    fitted = {}
    with open_video(path) as video:
        size = video.info.width, video.info.height
        for fit in ("squash", "pad", "crop"):
            sampling = Sampling(num_frames=1)
            segment = next(video.segments(sampling, frames_per_segment=1, image_size=96, fit=fit))
            fitted[fit] = segment.pixels[0].transpose(1, 2) if rotation else segment.pixels[0]
    assert size == ((64, 192) if rotation else (192, 64))  # 96 x 64 stored
    bars = (fitted["pad"] == torch.tensor(PAD_COLOUR, dtype=torch.uint8)[:, None, None]).all(0).all(1)
    assert bars.tolist() == [True] * 32 + [False] * 32 + [True] * 32
    inner = fitted["pad"][:, 33:63].float()
    torch.testing.assert_close(inner, fitted["squash"][:, 33:63].float(), atol=6, rtol=0)
    middle_third = fitted["squash"][:, :, 32:64].repeat_interleave(3, dim=2).float()
    assert (fitted["crop"].float() - middle_third).abs().mean() < 8


def test_a_changed_byte_at_head_middle_or_tail_of_a_large_file_is_noticed(tmp_path):
    content, fingerprints = bytearray(np.random.default_rng(0).bytes(3 << 20)), set()
    for number, place in enumerate((None, 0, (len(content) - (1 << 16)) * 7 // 15 + 5, len(content) - 1)):
        if place is not None:
            content[place] ^= 1
        (tmp_path / f"{number}").write_bytes(content)
        fingerprints.add(fingerprint_files([tmp_path / f"{number}"]))
    assert len(fingerprints) == 4


def test_the_fingerprint_is_of_the_content_not_of_the_name(tmp_path):
    path = write_video(tmp_path / "one.mp4")
    shutil.copy(path, tmp_path / "two.mp4")
    other = write_video(tmp_path / "other.mp4", 59)
    fingerprints = []
    for file in (path, tmp_path / "two.mp4", other):
        with open_video(file) as video:
            fingerprints.append(video.info.fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def damage(source: Path, target: Path, start: float, *, cut: bool) -> Path:
    data = bytearray(source.read_bytes())
    first = int(len(data) * start)
    data[first:] = b"" if cut else np.random.default_rng(0).bytes(len(data) - first)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "garbage"])
@pytest.mark.parametrize("name", ["video.mp4", "video.mkv", "video.avi", "video.ts"])
def test_a_damaged_tail_is_left_out_and_its_length_told(tmp_path, name, cut):
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    sound = write_video(tmp_path / name, 250, options=options)
    path = damage(sound, tmp_path / f"damaged_{name}", 0.6, cut=cut)
    frames, video = read(path, Sampling(num_frames=20))
    assert len(frames) >= 10
    assert all(number == round(seconds * 25) for seconds, number in frames[:10])
    last = max(seconds for seconds, _ in frames)
    if name.endswith("ts") and cut:
        assert video.lost_seconds == 0.0  # nothing in such a file says that there was more
    else:
        assert 2 < video.lost_seconds < 10 - last
    assert 3 < last < 8


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_a_cut_file_keeps_its_stated_length_and_is_sampled_where_it_decodes(tmp_path, name):
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = damage(write_video(tmp_path / name, 100, options=options), tmp_path / f"cut_{name}", 0.7, cut=True)
    with open_video(path) as video:
        held = video.info.num_frames
        assert 30 < held < 80
        assert (video.info.duration_seconds, video.info.average_fps) == (pytest.approx(4.0), pytest.approx(25))
        assert video.lost_seconds == pytest.approx(4 - held / 25)
        times = video.planned_times(Sampling(num_frames=8))
        assert times == pytest.approx([index / 25 for index in sample_indices(held, 8)])
        by_rate = Sampling(num_frames=None, fps=2)
        assert video.planned_times(by_rate) == pytest.approx([int(25 * i / 2) / 25 for i in range(-(-held * 2 // 25))])
        for _ in range(2):  # reading twice loses nothing twice
            segments = list(video.segments(by_rate, frames_per_segment=4, image_size=48, fit="squash"))
            assert all(read_barcode(s.pixels[0]) == round(s.times_seconds[0] * 25) for s in segments)
            assert video.lost_seconds == pytest.approx(4 - held / 25)
        for start, words in [(3, r"start \(3 s\) lies in the damaged end of .*up to [12]\.\d s"), (4, "after the end")]:
            with pytest.raises(LongVLMError, match=words):
                video.planned_times(Sampling(num_frames=4, start_seconds=start))


def test_damage_in_the_middle_leaves_the_rest(tmp_path):
    data = bytearray(write_video(tmp_path / "sound.mp4", 250, options={"movflags": "faststart"}).read_bytes())
    middle = slice(len(data) // 2, len(data) // 2 + len(data) // 20)
    data[middle] = bytes(middle.stop - middle.start)
    (tmp_path / "hole.mp4").write_bytes(data)
    frames, video = read(tmp_path / "hole.mp4", Sampling(num_frames=50))
    assert (len(frames), video.lost_seconds) == (50, 0.0)
    assert frames == sorted(frames)
    wrong = sum(number != round(seconds * 25) for seconds, number in frames)
    assert wrong <= 5


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no_ranges"])
@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts", "film.avi"])
def test_an_address_reads_like_the_file(tmp_path, name, ranges):
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = write_video(tmp_path / name, 250, audio=not name.endswith("avi"), options=options)
    with serve_folder(tmp_path, ranges=ranges) as address:
        frames, video = read(f"{address}/{name}", Sampling(num_frames=20))
    assert frames == read(path, Sampling(num_frames=20))[0]
    assert video.info.num_frames == 250


def test_a_live_stream_is_read_forwards_by_rate(tmp_path):
    write_video(tmp_path / "live.ts", 100)
    with serve_folder(tmp_path, ranges=False, endless=True) as address:
        sampling = Sampling(num_frames=None, fps=5, max_frames=8, start_seconds=1)
        frames, video = read(f"{address}/live.ts", sampling, frames_per_segment=8)
        assert frames == [(1 + i / 5, 25 + 5 * i) for i in range(8)]
        assert video.info.duration_seconds is None
        until = Sampling(num_frames=None, fps=5, end_seconds=2, max_frames=5)
        frames, _ = read(f"{address}/live.ts", until, frames_per_segment=5)
        assert frames == [(i / 5, 5 * i) for i in sample_indices(10, 5)]
        with pytest.raises(LongVLMError, match="live stream of unknown length; sample it with --fps"):
            read(f"{address}/live.ts", Sampling(num_frames=4))
        with pytest.raises(LongVLMError, match="may never end; limit it with --max-frames or --end"):
            read(f"{address}/live.ts", Sampling(num_frames=None, fps=1))


def test_a_live_playlist_is_read_forwards(tmp_path):
    write_video(tmp_path / "part.ts", 100)
    (tmp_path / "live.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4.0,\npart.ts\n")
    sampling = Sampling(num_frames=None, fps=5, max_frames=8)
    with serve_folder(tmp_path, ranges=True) as address:
        frames, video = read(f"{address}/live.m3u8", sampling, frames_per_segment=8, allow_references=True)
    assert video.info.duration_seconds is None
    assert frames == [(i / 5, 5 * i) for i in range(8)]


def test_a_server_that_stalls_is_waited_for_no_longer_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(video_access, "NETWORK_TIMEOUT_SECONDS", 1.0)
    random = np.random.default_rng(0)
    with av.open(str(tmp_path / "film.mkv"), "w") as container:  # all keyframes, too far apart to be read at once
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuvj420p"
        for _ in range(200):
            picture = random.integers(0, 256, (120, 160, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    began, failed = time.monotonic(), []
    for number in range(4, 8):  # while it is opened, after some frames, and too late to matter
        with serve_folder(tmp_path, ranges=True, stalls_after=number) as address:
            try:
                read(f"{address}/film.mkv", Sampling(num_frames=20), frames_per_segment=4)
            except LongVLMError as error:
                failed.append(str(error))
    assert failed and all("film.mkv" in words for words in failed)
    assert time.monotonic() - began < 120


MEASURE = """
import sys
from pathlib import Path
from longvlm.stages.video import Sampling, open_video
with open_video(sys.argv[1]) as video:
    frames = 0
    sampling = Sampling(num_frames=40)
    for segment in video.segments(sampling, frames_per_segment=10, image_size=56, fit="squash"):
        frames += segment.num_distinct
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(frames, status["VmHWM"].split()[0])  # unlike getrusage's, this peak has nothing of the parent's
"""


@pytest.mark.parametrize("fps", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_two_hours_take_the_memory_of_five_minutes(tmp_path, fps):
    peaks = []
    for seconds in (300, 7200):
        path = write_long_video(tmp_path / f"{seconds}.mp4", seconds, fps=fps)
        command = [sys.executable, "-c", MEASURE, str(path)]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as many decoders for the long video as for the short one
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=one_thread).stdout
        frames, peak_kilobytes = map(int, output.split())
        assert frames == 40
        peaks.append(peak_kilobytes)
    assert peaks[1] <= 1.1 * peaks[0]


READ_FOR_EVER = """
import signal, sys
from longvlm.stages import video_access
from longvlm.stages.video import Sampling, open_video
video_access.NETWORK_TIMEOUT_SECONDS = 3600.0
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
sampling = Sampling(num_frames=None, fps=5, max_frames=500)
try:
    with open_video(sys.argv[1]) as video:
        for segment in video.segments(sampling, frames_per_segment=1, image_size=28, fit="squash"):
            print(segment.times_seconds[0], flush=True)
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_stops_at_once_even_where_a_server_stalls(tmp_path):
    write_video(tmp_path / "live.ts", 100)
    with serve_folder(tmp_path, ranges=False, endless=True) as address:
        command = [sys.executable, "-c", READ_FOR_EVER, f"{address}/live.ts"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                while float(process.stdout.readline()) < 3:
                    assert process.poll() is None
                time.sleep(0.5)  # by now it waits for data that never come
                process.send_signal(signal.SIGINT)
                output, _ = process.communicate(timeout=PATIENCE_SECONDS)  # the network may be waited for an hour
            finally:
                process.kill()
    assert (process.returncode, output.splitlines()[-1]) == (0, "stopped")


def test_barcodes_survive_the_squash():
    from longvlm.stages.video_fitting import fit_picture

    for number in (0, 1, 59, 250, 4095):
        assert read_barcode(fit_picture(barcode(number), 48, "squash")) == number
