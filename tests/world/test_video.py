"""Written files show the events when they should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from longvlm.errors import LongVLMError
from longvlm.world.scene import COLOURS, make_scene
from longvlm.world.video import count_frames, frames, write_video


def _decode(path: Path) -> tuple[list[float], list[np.ndarray]]:
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    return [float(frame.time) for frame in decoded], [frame.to_ndarray(format="rgb24") for frame in decoded]


def _shares_of_colours(picture: np.ndarray) -> dict[str, float]:
    """The share of pixels that have each colour's hue, however bright; the dull backgrounds have none."""
    pixels, palette = picture.reshape(-1, 3).astype(float), np.array(list(COLOURS.values()), dtype=float)
    lengths = np.linalg.norm(pixels, axis=1, keepdims=True) * np.linalg.norm(palette, axis=1)
    cosines = pixels @ palette.T / (lengths + 1e-6)
    nearest = np.where(cosines.max(axis=1) > 0.975, cosines.argmax(axis=1), -1)
    return {name: float((nearest == i).mean()) for i, name in enumerate(COLOURS)}


@pytest.mark.parametrize("seed", [3, 29])
def test_a_written_mp4_shows_each_object_in_its_span_and_only_there(tmp_path: Path, seed: int) -> None:
    scene = make_scene(seed, 24.0)
    colours = [event.colour for event in scene.events]
    assert len(set(colours)) == len(colours) > 2 and "white" not in colours, "a scene of clear colours"
    write_video(scene, tmp_path / "a.mp4", width=112, height=84, fps=4)
    times, pictures = _decode(tmp_path / "a.mp4")
    np.testing.assert_allclose(times, np.arange(96) / 4, atol=1e-3)
    for time, picture in zip(times, pictures, strict=True):
        shares = _shares_of_colours(picture)
        for event in scene.events:
            pose = event.pose(time)
            shown = shares[event.colour] > 0.1 * pose.size**2  # less than that are mixtures at others' edges
            assert shown == pose.visible, f"{event.object} at {time:.2f} s"


def test_every_written_frame_is_the_rendered_one(tmp_path: Path) -> None:
    scene = make_scene(2, 10.0)
    write_video(scene, tmp_path / "b.mkv", width=96, height=96, fps=10, codec="mpeg4")
    _, pictures = _decode(tmp_path / "b.mkv")
    streamed = list(frames(scene, width=96, height=96, fps=10))
    assert len(pictures) == len(streamed) == count_frames(scene, 10) == 100
    drawn = np.stack([picture for _, picture in streamed]).astype(float)
    written = np.stack(pictures).astype(float)
    off = np.abs(written - drawn).mean((1, 2, 3))
    assert off.max() < 15
    # The codec repeats what hardly moves, so single frames may be as near to the one before.
    assert off[1:].mean() < np.abs(written[1:] - drawn[:-1]).mean()
    assert off[:-1].mean() < np.abs(written[:-1] - drawn[1:]).mean()


def test_a_file_is_the_same_whatever_memory_held_before(tmp_path: Path) -> None:
    paths = [tmp_path / f"{byte}.mp4" for byte in (0, 85, 170)]
    arguments = ["-m", "longvlm.world", "render", "--seed", "4", "--duration", "10", "--size", "320x240", "-o"]
    for path in paths:  # the C library fills what it hands out with this byte
        environment = os.environ | {"GLIBC_TUNABLES": f"glibc.malloc.perturb={path.stem}"}
        subprocess.run([sys.executable, *arguments, str(path)], env=environment, check=True)
    assert len({path.read_bytes() for path in paths}) == 1


def test_streamed_times_follow_the_rate() -> None:
    times = [time for time, _ in frames(make_scene(1, 10.0), width=8, height=8, fps=29.97)]
    np.testing.assert_allclose(times, np.arange(len(times)) * 100 / 2997)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("x.mp4", {"width": 31}, "video size is 31x32; codecs need even sides"),
        ("x.mp4", {"height": 0}, "video size is 32x0; codecs need even sides"),
        ("x.mp4", {"width": 40000}, "video size is 40000x32; codecs need even sides of 2 to 8192 pixels"),
        ("x.mp4", {"fps": 0.0}, r"fps is 0\.0; it must lie between 0\.001 and 1000"),
        ("x.mp4", {"fps": float("nan")}, r"fps is nan; it must lie between"),
        ("x.mp4", {"codec": "no-such-codec"}, "codec is 'no-such-codec', which writes no video here; choose libx264"),
        ("x.mp4", {"codec": "aac"}, "codec is 'aac', which writes no video here; choose libx264"),
        ("x.mp4", {"fps": 0.0004}, r"fps is 0\.0004; it must lie between"),
        ("x.unknown", {}, r"Cannot write .*x\.unknown"),
        ("no-such-folder/x.mp4", {}, r"Cannot write .*no-such-folder/x\.mp4"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, changes: dict, words: str) -> None:
    scene, settings = make_scene(0, 10.0), {"width": 32, "height": 32, "fps": 10.0, **changes}
    with pytest.raises(LongVLMError, match=words):
        write_video(scene, tmp_path / name, **settings)
