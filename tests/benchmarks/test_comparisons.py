"""The benchmarks compare things that compute the same, and tell what they measured."""

import json
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media import write_video
from PIL import Image

from benchmarks import accelerator, comparators, growth, report, rows, videos
from benchmarks.__main__ import ROWS
from benchmarks.checkpoints import make_checkpoint
from benchmarks.measuring import ratio, take_turns
from benchmarks.rows import Row, count_tower_operations
from longvlm.pipeline import LongVLM
from longvlm.stages.video import open_video
from longvlm.types import Sampling

TINY = {"hidden_size": 256, "intermediate_size": 64, "num_attention_heads": 4}
VISION = {**TINY, "num_hidden_layers": 6, "image_size": 224, "patch_size": 14}
TEXT = {**TINY, "num_hidden_layers": 1, "vocab_size": 500}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LongVLM:
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), VISION, TEXT, "tiny")
    return LongVLM.from_pretrained(checkpoint, dtype="float32", compression={"fit": "squash-nearest"})


def write_noise(path: Path, num_frames: int) -> Path:
    """Pictures without two patches that are alike: near ties would be decided by rounding."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.gop_size = 25
        for _ in range(num_frames):
            coarse = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(coarse.repeat(4, 0).repeat(4, 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_the_comparator_computes_what_encoding_does(model: LongVLM, tmp_path: Path) -> None:
    video = write_noise(tmp_path / "video.mp4", 130)
    index = model.encode(video, num_frames=100)
    features = comparators.plain_path(comparators.plain_tower(model, torch.float32), video, 100)
    assert features.shape == (305, 256)
    torch.testing.assert_close(index.segment_globals.mean(0), features[:5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(index.local_features.flatten(0, 1), features[5:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("start", "accelerator")])
def test_every_row_can_be_measured(name: str, model: LongVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model and a short video; the start of the program is left to the benchmark itself."""
    if name == "memory":  # measured in processes of its own
        pytest.importorskip("decord", reason="decord is for benchmarks alone: pip install -e '.[bench]'")
    if find_spec("decord") is None:  # our side of the rows is what is tried here
        monkeypatch.setattr(comparators, "decode_with_decord", comparators.decode_with_pyav)
    video = write_video(tmp_path / "video.mp4", 130, keyframe_distance=25)
    monkeypatch.setattr(rows, "make_checkpoint", lambda *_, **__: model.folder)
    monkeypatch.setattr(rows, "make_long_video", lambda *_: video)
    measured = list(ROWS[name](rows.Bench(tmp_path, 1, "cpu")))
    assert measured
    for row in measured:
        assert row.reached > 0
        assert all(value > 0 for values in row.measured.values() for value in values)


def test_an_accelerators_rows_count_frames_and_tokens(model: LongVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_WITH_GRAPHS", (False,))  # compiling takes long
    bench = rows.Bench(model.folder.parent, 1, "cpu")
    bench.__dict__["large_model"] = model
    encoding, more, one, eight = accelerator.accelerator_rows(bench)
    for row, count in ((encoding, 10), (more, 80), (one, 63), (eight, 8 * 63)):
        (seconds,) = row.measured.values()
        assert row.reached == pytest.approx(count / seconds[0])


def test_decord_decodes_the_same_frames(tmp_path: Path) -> None:
    pytest.importorskip("decord", reason="decord is for benchmarks alone: pip install -e '.[bench]'")
    video = write_video(tmp_path / "video.mp4", 130, keyframe_distance=25)
    theirs, plain = (decode(video, 20) for decode in (comparators.decode_with_decord, comparators.decode_with_pyav))
    assert theirs.shape == plain.shape == (20, 64, 96, 3)
    assert abs(theirs.astype(float) - plain).mean() < 4  # they convert colours differently


def test_videos_are_made_long_by_repetition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "WIDTH", 64)
    monkeypatch.setattr(videos, "HEIGHT", 36)
    path = videos.make_long_video(tmp_path, 1)
    assert videos.make_long_video(tmp_path, 1) == path
    with av.open(str(path)) as container:
        clip_seconds = 4 * 132 / 25
        assert (
            60 <= float(container.streams.video[0].duration * container.streams.video[0].time_base) < 60 + clip_seconds
        )
    with open_video(path) as reader:
        keyframes = reader.planned_times(Sampling(num_frames=None, fps=25, mode="keyframe"))
        assert max(after - before for before, after in pairwise(keyframes)) <= 5.01
        assert reader.info.num_frames == round(25 * reader.info.duration_seconds)
        assert reader.lost_seconds == 0


def test_runs_take_turns() -> None:
    order: list[str] = []
    seconds = take_turns({name: lambda n=name: order.append(n) for name in "ab"}, 3)
    assert order == list("abababab")  # the first round warms up
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert ratio([6.0, 2.0, 100.0], [2.0, 1.0, 3.0]) == 3.0


def test_operations_are_those_of_the_matrix_products() -> None:
    """CLIP ViT-L/14 at 224 pixels is known for 81 billion multiplications a frame."""
    assert count_tower_operations() == pytest.approx(2 * 78.2e9, rel=0.001)


def test_results_are_kept_by_group_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    row = Row("decode", "decord", 2.5, 1.8, "×", {"ours": [2.0, 1.0, 4.0], "decord": [5.0]})
    report.keep("decoding", [row], "cpu")
    report.keep("start", [Row("`longvlm --help`", "—", 0.4, 0.3, "s", {"help": [0.4]})], "cpu")
    report.keep("decoding", [row], "cpu")
    kept = json.loads((tmp_path / "cpu.json").read_text())
    assert list(kept) == ["decoding", "start"]
    assert kept["decoding"]["rows"][0]["holds"] and not kept["start"]["rows"][0]["holds"]
    assert report.table("cpu")[2:] == [
        "| decode | decord | ✓ 2.5 × (2 s / 5 s) | at least 1.8 × | 3 |",
        "| `longvlm --help` | — | ✗ 0.4 s | at most 0.3 s | 1 |",
    ]


def test_the_rows_that_can_be_asked_for_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert f"single rows: {' '.join(ROWS)}" in text


def test_growth_is_drawn_axis_by_axis(tmp_path: Path) -> None:
    points = [growth.Point(axis, n, 0.1 * n, 2**30) for axis in ("frames", "tokens") for n in (10, 20, 40)]
    growth.draw(points, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.size == (880, 660)
