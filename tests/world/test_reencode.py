"""Videos that were passed on show the same at the same times."""

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media import read_barcode
from media import write_video as write_barcodes

from longvlm.errors import LongVLMError
from longvlm.world.reencode import REENCODINGS, Reencoding, reencode
from longvlm.world.scene import make_scene
from longvlm.world.video import write_video


def read(path: Path) -> tuple[str, list[float], np.ndarray]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = [float(frame.time) for frame in frames]
        return stream.codec_context.name, times, np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "original.mp4"
    write_video(make_scene(8, 12.0), path, width=96, height=64, fps=10, show_progress=False)
    return path


@pytest.mark.parametrize("how", REENCODINGS, ids=lambda how: how.name)
def test_the_picture_at_every_time_is_the_same(original: Path, tmp_path: Path, how: Reencoding) -> None:
    reencode(original, tmp_path / "passed_on.mp4", how)
    _, _, expected = read(original)
    codec, times, pixels = read(tmp_path / "passed_on.mp4")
    assert codec == {"libx264": "h264", "libvpx-vp9": "vp9", "mpeg4": "mpeg4"}[how.codec] or codec.startswith("libvpx")
    assert len(times) == round(120 * how.rate)
    assert np.diff(times) == pytest.approx(1 / (10 * how.rate), abs=1e-3)
    height, width = round(64 * how.scale), round(96 * how.scale)
    assert pixels.shape[1:] == (height, width, 3)
    shown = expected[np.floor(np.array(times) * 10 + 1e-6).astype(int)].astype(float)
    if how.scale == 0.5:
        shown = shown.reshape(len(shown), height, 2, width, 2, 3).mean((2, 4))
    difference = np.abs(pixels - shown)
    assert difference[:, height // 4 :].mean() < 10
    in_corner = difference[:, : height // 4, width // 2 :].mean()
    assert (in_corner > 10) == how.logo


@pytest.mark.parametrize("how", [how for how in REENCODINGS if not how.logo], ids=lambda how: how.name)
def test_every_frame_is_the_one_that_was_on_screen(tmp_path: Path, how: Reencoding) -> None:
    write_barcodes(tmp_path / "original.mp4", 120, fps=10)
    reencode(tmp_path / "original.mp4", tmp_path / "passed_on.mp4", how)
    _, times, pixels = read(tmp_path / "passed_on.mp4")
    numbers = [read_barcode(torch.from_numpy(picture).permute(2, 0, 1)) for picture in pixels]
    assert numbers == [int(time * 10 + 1e-6) for time in times]


def test_an_unknown_codec_is_named(original: Path, tmp_path: Path) -> None:
    with pytest.raises(LongVLMError, match="nocodec"):
        reencode(original, tmp_path / "x.mp4", Reencoding("none", codec="nocodec"))


def test_mpeg4_is_as_coarse_as_it_says(original: Path, tmp_path: Path) -> None:
    reencode(original, tmp_path / "coarse.mp4", dataclasses.replace(REENCODINGS[1], scale=1.0))
    with av.open(str(original)) as reader, av.open(str(tmp_path / "fine.mp4"), mode="w") as writer:
        fine = writer.add_stream("mpeg4", rate=10, options={"qmin": "2", "qmax": "2"})
        fine.width, fine.height, fine.pix_fmt = 96, 64, "yuv420p"
        for frame in reader.decode(video=0):
            writer.mux(fine.encode(frame.reformat(format="yuv420p")))
        writer.mux(fine.encode(None))
    assert (tmp_path / "coarse.mp4").stat().st_size < 0.7 * (tmp_path / "fine.mp4").stat().st_size
