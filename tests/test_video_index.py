"""VideoIndex: a value that survives its file bit by bit, is cut and joined by time, refuses other files."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longvlm.errors import LongVLMError
from longvlm.types import Compression, Sampling, Timings, VideoInfo
from longvlm.video_index import UNKNOWN_FINGERPRINT, VideoIndex

FRAMES, PATCHES, TOKENS, LAYERS, WIDTH = 2, 3, 2, 2, 8
COMPRESSION = Compression(frames_per_segment=FRAMES, tokens_per_segment=TOKENS, global_layers=LAYERS)
VIDEO = VideoInfo("film.mp4", 64, 48, 60.0, 600, 10.0, "v" * 64)


def make_index(
    num_segments: int = 3, *, first_second: float = 0.0, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> VideoIndex:
    """Segments of ten seconds, a frame every five."""
    generator = torch.Generator().manual_seed(seed)
    starts = first_second + 10 * torch.arange(num_segments, dtype=torch.float64)
    patches = FRAMES * PATCHES
    return VideoIndex(
        local_features=torch.randn(num_segments, TOKENS, WIDTH, generator=generator).to(dtype),
        sizes=torch.full((num_segments, TOKENS), patches // TOKENS),
        assignment=torch.arange(patches).remainder(TOKENS).repeat(num_segments, 1),
        segment_globals=torch.randn(num_segments, LAYERS, WIDTH, generator=generator).to(dtype),
        frame_times_seconds=torch.stack([starts, starts + 5], dim=1),
        frames_distinct=torch.full((num_segments,), FRAMES),
        segment_spans_seconds=torch.stack([starts, starts + 10], dim=1),
        video=VIDEO,
        sampling=Sampling(num_frames=num_segments * FRAMES),
        compression=COMPRESSION,
        encoder_name="clip of tiny",
        encoder_fingerprint="e" * 64,
        timings=Timings(encode_seconds=3.0),
    )


@pytest.fixture
def index() -> VideoIndex:
    return make_index()


class TestFile:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_reloaded_index_is_equal_bit_by_bit(self, tmp_path: Path, dtype: torch.dtype) -> None:
        index = dataclasses.replace(
            make_index(dtype=dtype),
            sampling=Sampling(num_frames=None, fps=0.2, max_frames=7, start_seconds=1.5, end_seconds=40.0),
            compression=dataclasses.replace(COMPRESSION, merge_schedule=(2, 2), merge_order="temporal", fit="pad"),
            lost_seconds=1 / 3,
        )
        index.save(tmp_path / "film.longvlm")
        loaded = VideoIndex.load(tmp_path / "film.longvlm")
        assert loaded == index
        assert loaded.fingerprint == index.fingerprint
        assert hash(loaded) == hash(index)
        assert loaded.timings == Timings()

    def test_is_one_safetensors_file_that_others_can_read(self, index: VideoIndex, tmp_path: Path) -> None:
        path = tmp_path / "film.longvlm"
        index.save(path)
        assert torch.equal(load_file(path)["local_features"], index.local_features)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert metadata["format"] == "longvlm-video-index"
        assert metadata["format_version"] == "1"
        assert json.loads(metadata["video"])["fingerprint"] == VIDEO.fingerprint
        assert [file.name for file in tmp_path.iterdir()] == ["film.longvlm"]
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask

    def test_saving_replaces_an_older_file(self, index: VideoIndex, tmp_path: Path) -> None:
        path = tmp_path / "film.longvlm"
        make_index(7).save(path)
        index.save(path)
        assert VideoIndex.load(path) == index

    def test_places_that_cannot_be_written(self, index: VideoIndex, tmp_path: Path) -> None:
        with pytest.raises(LongVLMError, match=r"folder .*nowhere does not exist"):
            index.save(tmp_path / "nowhere" / "film.longvlm")
        (tmp_path / "folder.longvlm").mkdir()
        with pytest.raises(LongVLMError, match=r"Can't write .*folder\.longvlm"):
            index.save(tmp_path / "folder.longvlm")
        assert [file.name for file in tmp_path.iterdir()] == ["folder.longvlm"]

    @pytest.mark.parametrize(
        "content",
        [b"", b"not an index at all", b"\xff" * 64, b"{}", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "],
        ids=["empty", "text", "ones", "short", "no tensors"],
    )
    def test_files_that_are_no_index(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "film.longvlm"
        path.write_bytes(content)
        with pytest.raises(LongVLMError, match=r"film\.longvlm") as error:
            VideoIndex.load(path)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
    def test_truncated_file(self, index: VideoIndex, tmp_path: Path, kept: float) -> None:
        path = tmp_path / "film.longvlm"
        index.save(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        with pytest.raises(LongVLMError, match=r"film\.longvlm is not a readable video index"):
            VideoIndex.load(path)

    def test_missing_file(self, tmp_path: Path) -> None:
        for path in (tmp_path / "film.longvlm", tmp_path):
            with pytest.raises(LongVLMError, match=r"No such index file.*longvlm encode"):
                VideoIndex.load(path)

    def test_other_tensors(self, tmp_path: Path) -> None:
        save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
        with pytest.raises(LongVLMError, match="holds tensors, but no video index"):
            VideoIndex.load(tmp_path / "model.safetensors")

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"format_version": "2"}, "index format 2.*reads up to 1"),
            ({"format_version": "0"}, "index format 0"),
            ({"format_version": "one"}, "not a readable video index"),
            ({"video": "{"}, "not a readable video index"),
            ({"video": "[1]"}, "not a readable video index"),
            ({"video": "[" * 100_000}, "not a readable video index"),
            ({"compression": '{"merge_schedule": [1e999]}'}, "not a readable video index"),
            ({"sampling": '{"frames": 3}'}, "not a readable video index"),
            ({"compression": '{"unheard_of": 3}'}, "unheard_of"),
            ({"lost_seconds": None}, "not a readable video index"),
            ({"checksum": None}, "not a readable video index"),
            ({"lost_seconds": "0.25"}, "content is damaged: the checksum differs"),
            ({"sampling": '{"num_frames": 0}'}, "num_frames is 0; it must be at least 1"),
            ({"compression": '{"merge_heads": 0}'}, "merge_heads is 0"),
            ({"compression": "{}"}, r"local_features is \(3, 2, 8\): want \(S, 30, …\) by its settings"),
        ],
    )
    def test_other_versions_and_broken_metadata(
        self, index: VideoIndex, tmp_path: Path, changes: dict[str, str | None], words: str
    ) -> None:
        path = tmp_path / "film.longvlm"
        index.save(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() | changes
        save_file(load_file(path), path, {key: value for key, value in metadata.items() if value is not None})
        with pytest.raises(LongVLMError, match=words) as error:
            VideoIndex.load(path)
        assert str(path) in str(error.value)

    def test_overwritten_bytes_anywhere_are_noticed(self, index: VideoIndex, tmp_path: Path) -> None:
        path = tmp_path / "film.longvlm"
        index.save(path)
        sound = path.read_bytes()
        header_bytes = 8 + int.from_bytes(sound[:8], "little")
        for position in range(header_bytes, len(sound), 7):
            data = bytearray(sound)
            data[position] ^= 0x40
            path.write_bytes(data)
            with pytest.raises(LongVLMError, match=r"film\.longvlm is not a readable video index"):
                VideoIndex.load(path)

    def test_a_name_that_no_system_takes(self) -> None:
        with pytest.raises(LongVLMError, match=r"is not a readable video index .*File name too long"):
            VideoIndex.load("a" * 300 + ".longvlm")

    def test_tensors_that_do_not_fit_each_other(self, index: VideoIndex, tmp_path: Path) -> None:
        path = tmp_path / "film.longvlm"
        index.save(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        for name in tensors:
            broken = {**tensors, name: tensors[name][:-1].clone()}
            save_file(broken, path, metadata)
            with pytest.raises(LongVLMError, match="not a readable video index"):
                VideoIndex.load(path)


class TestSlice:
    def test_keeps_the_segments_that_overlap(self, index: VideoIndex) -> None:
        part = index.slice(12.0, 20.0)
        assert part.segment_spans_seconds.tolist() == [[10.0, 20.0]]
        assert torch.equal(part.local_features, index.local_features[1:2])
        assert part.frame_times == [10.0, 15.0]
        assert index.slice(9.9, 10.1).num_segments == 2
        assert index.slice(start_seconds=20.0).num_segments == 1
        assert index.slice() == index

    def test_keeps_a_moment_without_length(self, index: VideoIndex) -> None:
        spans = torch.tensor([[0.0, 0.0], [0.0, 5.0], [5.0, 10.0]], dtype=torch.float64)
        still = dataclasses.replace(index, segment_spans_seconds=spans)
        assert still.slice(0.0, 1.0).num_segments == 2
        assert still.slice(0.5, 1.0).num_segments == 1

    @pytest.mark.parametrize(("start", "end"), [(30.0, None), (31.0, 40.0), (5.0, 5.0), (8.0, 2.0)])
    def test_of_nothing(self, index: VideoIndex, start: float, end: float | None) -> None:
        with pytest.raises(LongVLMError, match=r"No part of film\.mp4 .* covers 0 s to 30 s|must be later than"):
            index.slice(start, end)

    def test_does_not_pass_for_the_whole(self, index: VideoIndex) -> None:
        assert index.slice(12.0, 20.0).sampling == Sampling(num_frames=2, start_seconds=10.0, end_seconds=20.0)
        assert index.slice(20.0).sampling == Sampling(num_frames=2, start_seconds=20.0)
        by_rate = dataclasses.replace(index, sampling=Sampling(num_frames=None, fps=0.2))
        assert by_rate.slice(0.0, 20.0).sampling == Sampling(num_frames=None, fps=0.2, end_seconds=20.0)

    def test_is_another_value(self, index: VideoIndex) -> None:
        assert index.slice(0.0, 10.0) != index
        assert index.slice(0.0, 10.0).fingerprint != index.fingerprint


class TestAppend:
    def test_joins_and_comes_apart_again(self, index: VideoIndex) -> None:
        later = dataclasses.replace(
            make_index(2, first_second=30.0, seed=1),
            video=dataclasses.replace(VIDEO, duration_seconds=80.0),
            lost_seconds=2.0,
        )
        joined = dataclasses.replace(index, lost_seconds=1.0).append(later)
        assert joined.num_segments == 5
        assert joined.frame_times == [5.0 * i for i in range(10)]
        assert joined.video.duration_seconds == 80.0
        assert joined.lost_seconds == 2.0
        assert torch.equal(joined.slice(0.0, 30.0).local_features, index.local_features)
        assert torch.equal(joined.slice(30.0).local_features, later.local_features)

    def test_sampling_speaks_of_both_parts(self, index: VideoIndex) -> None:
        later = make_index(2, first_second=30.0)
        assert index.append(later).sampling == Sampling(num_frames=10)
        by_rate = Sampling(num_frames=None, fps=0.2, max_frames=8, start_seconds=0.0, end_seconds=30.0)
        later_by_rate = dataclasses.replace(by_rate, start_seconds=30.0, end_seconds=50.0)
        index, later = dataclasses.replace(index, sampling=by_rate), dataclasses.replace(later, sampling=later_by_rate)
        expected = Sampling(num_frames=None, fps=0.2, max_frames=16, start_seconds=0.0, end_seconds=50.0)
        assert index.append(later).sampling == expected
        endless = dataclasses.replace(later_by_rate, end_seconds=None, max_frames=None)
        assert index.append(dataclasses.replace(later, sampling=endless)).sampling == Sampling(num_frames=None, fps=0.2)

    @pytest.mark.parametrize(
        ("sampling", "words"),
        [
            (Sampling(num_frames=None, fps=0.5), "fps=None, the second one with fps=0.5"),
            (Sampling(num_frames=4, mode="keyframe"), "mode=exact, the second one with mode=keyframe"),
        ],
    )
    def test_refuses_another_rate(self, index: VideoIndex, sampling: Sampling, words: str) -> None:
        with pytest.raises(LongVLMError, match=words):
            index.append(dataclasses.replace(make_index(first_second=30.0), sampling=sampling))

    def test_refuses_another_film_but_not_a_grown_one(self, index: VideoIndex) -> None:
        later = make_index(first_second=30.0)
        grown = dataclasses.replace(VIDEO, fingerprint="w" * 64)
        assert index.append(dataclasses.replace(later, video=grown)).video == grown
        other = dataclasses.replace(VIDEO, name="other.mp4")
        with pytest.raises(LongVLMError, match=r"second index is of other\.mp4, the first one of film\.mp4"):
            index.append(dataclasses.replace(later, video=other))

    def test_a_gap_is_known(self, index: VideoIndex) -> None:
        assert not index.append(make_index(2, first_second=30.0)).has_gaps
        assert index.append(make_index(2, first_second=31.0)).has_gaps

    def test_all_that_is_still_shown_when_the_later_part_begins_begins_with_it(self, index: VideoIndex) -> None:
        later = make_index(2, first_second=30.0)
        spans = torch.tensor([[29.0, 29.5], [29.5, 40.0]], dtype=torch.float64)
        sampling = dataclasses.replace(later.sampling, start_seconds=30.0)
        joined = index.append(dataclasses.replace(later, segment_spans_seconds=spans, sampling=sampling))
        assert joined.segment_spans_seconds[-2:].tolist() == [[30.0, 30.0], [30.0, 40.0]]

    def test_a_frame_that_is_still_shown_when_the_later_part_begins(self, index: VideoIndex) -> None:
        later = make_index(2, first_second=30.0)
        spans = later.segment_spans_seconds.clone()
        spans[0, 0] = 29.9
        sampling = dataclasses.replace(later.sampling, start_seconds=30.0)
        joined = index.append(dataclasses.replace(later, segment_spans_seconds=spans, sampling=sampling))
        assert joined.segment_spans_seconds[:, 0].tolist() == [0.0, 10.0, 20.0, 30.0, 40.0]

    def test_refuses_an_overlap(self, index: VideoIndex) -> None:
        with pytest.raises(LongVLMError, match=r"starts at 29 s, before the first one ends \(30 s\)"):
            index.append(make_index(first_second=29.0))
        with pytest.raises(LongVLMError, match=r"starts at 29\.966634 s, before the first one ends \(30 s\)"):
            index.append(make_index(first_second=29.9666338))

    def test_says_how_many_rows_it_has_and_how_many_are_expected(self, index: VideoIndex) -> None:
        wanted = dataclasses.replace(COMPRESSION, tokens_per_segment=3)
        with pytest.raises(LongVLMError) as caught:
            index.require_same_encoding(index.encoder_name, index.encoder_fingerprint, wanted)
        assert str(caught.value) == (
            f"The index of {index.video.name} was made with tokens_per_segment=2, but tokens_per_segment=3 is wanted "
            "here: it has 6 rows of local features (visual tokens), where 9 are expected. Encode the video again with "
            "this model (`longvlm encode`, or `longvlm extract` for many)."
        )

    def test_features_of_an_encoder_that_nobody_named(self, index: VideoIndex) -> None:
        unknown = dataclasses.replace(index, encoder_name="unknown", encoder_fingerprint=UNKNOWN_FINGERPRINT)
        with pytest.raises(LongVLMError) as caught:
            unknown.require_same_encoding(index.encoder_name, index.encoder_fingerprint, COMPRESSION)
        assert str(caught.value) == (
            f"The index of {index.video.name} was made by encoder unknown (unknown), but {index.encoder_name} "
            f"({index.encoder_fingerprint[:12]}) is wanted here. Import the features again, naming their encoder with "
            "--vision-tower (or --model)."
        )

    def test_refuses_another_encoding(self, index: VideoIndex) -> None:
        later = make_index(first_second=30.0)
        with pytest.raises(LongVLMError, match=r"siglip of big \(f{12}\).*clip of tiny \(e{12}\)"):
            index.append(dataclasses.replace(later, encoder_name="siglip of big", encoder_fingerprint="f" * 64))
        other = dataclasses.replace(COMPRESSION, merge_order="temporal")
        with pytest.raises(LongVLMError, match="merge_order=temporal, but merge_order=merge is wanted"):
            index.append(dataclasses.replace(later, compression=other))


class TestValue:
    def test_equality_is_of_values(self, index: VideoIndex) -> None:
        assert index == make_index()
        assert dataclasses.replace(index, timings=Timings()) == index
        assert make_index(seed=1) != index
        assert make_index(dtype=torch.float32) != index
        assert dataclasses.replace(index, encoder_name="another") != index
        assert index != "film.longvlm"

    def test_prints_shapes(self, index: VideoIndex) -> None:
        assert "local_features=(3, 2, 8) bfloat16" in repr(index)

    @pytest.mark.parametrize("name", ["sizes", "assignment", "frames_distinct", "segment_spans_seconds"])
    def test_parts_must_fit(self, index: VideoIndex, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(index, **{name: getattr(index, name)[:2]})
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(index, **{name: getattr(index, name)[..., None]})

    @pytest.mark.parametrize(
        "name",
        ["local_features", "sizes", "assignment", "segment_globals", "frame_times_seconds", "segment_spans_seconds"],
    )
    def test_parts_must_agree_on_their_second_axis(self, index: VideoIndex, name: str) -> None:
        for rest in (getattr(index, name)[:, 1:], getattr(index, name)[:, :0]):
            with pytest.raises(ValueError, match=name):
                dataclasses.replace(index, **{name: rest})

    @pytest.mark.parametrize(
        ("name", "value"), [("sizes", 0), ("assignment", TOKENS), ("assignment", -1), ("assignment", 1 << 16)]
    )
    def test_parts_must_be_possible(self, index: VideoIndex, name: str, value: int) -> None:
        broken = getattr(index, name).to(torch.int64).clone()
        broken[1, 1] = value
        with pytest.raises(ValueError, match=f"{name} reaches from .*{value}"):
            dataclasses.replace(index, **{name: broken})
        with pytest.raises(ValueError, match="don't add up"):
            dataclasses.replace(index, sizes=index.sizes + 1)
