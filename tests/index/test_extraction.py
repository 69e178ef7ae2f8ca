"""Extraction: the same features as encoding directly, whatever fails, is there already, or listed twice."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import write_video
from waiting import PATIENCE_SECONDS, wait_until

from longvlm import LongVLM, VideoIndex
from longvlm.errors import LongVLMError
from longvlm.index import extraction
from longvlm.index.decoding_ahead import SEGMENTS_AHEAD, decode_ahead
from longvlm.index.extraction import FeatureFolders, default_batch_segments, extract
from longvlm.index.extraction_report import Progress, Report
from longvlm.index.extractor import Extractor, extractor_of_model, extractor_of_tower
from longvlm.index.video_folders import ListedVideo, find_videos
from longvlm.index_builder import IndexBuilder
from longvlm.stages.video import VideoReader, open_video
from longvlm.stages.vision import VisionEncoder
from longvlm.types import Compression, Frames, Sampling, VideoInfo


@pytest.fixture
def extractor(model: LongVLM) -> Extractor:
    return extractor_of_model(model, model.plan_sampling(None, None, None, None, None, "exact"))


Run = Callable[..., Report]


@pytest.fixture
def run(extractor: Extractor, tmp_path: Path) -> Run:
    def run_extraction(source: Path, **options: object) -> Report:
        folders = FeatureFolders(tmp_path / "features")
        return extract(find_videos(source).videos, extractor, folders, **options)  # type: ignore[arg-type]

    return run_extraction


class TestFeatures:
    @pytest.mark.parametrize("num_decoders", [1, 3])
    def test_stored_equals_direct_to_the_last_bit(
        self, model: LongVLM, films: Path, run: Run, tmp_path: Path, num_decoders: int
    ) -> None:
        assert run(films, num_decoders=num_decoders) == Report(num_written=3)
        for video in sorted(films.iterdir()):
            assert VideoIndex.load(tmp_path / "features" / f"{video.stem}.longvlm") == model.encode(video)
        assert len(list((tmp_path / "features").iterdir())) == 3

    @pytest.mark.parametrize(
        ("num_decoders", "batch_segments", "sizes"),
        [(1, None, [1] * 9), (1, 4, [4, 4, 1]), (3, 4, [4, 4, 1]), (2, 9, [9])],
    )
    def test_a_batch_takes_in_segments_of_several_videos(
        self,
        mild_tower: Path,
        films: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        num_decoders: int,
        batch_segments: int | None,
        sizes: list[int],
    ) -> None:
        """The videos have 3 segments each."""
        taken = note_batches(monkeypatch)
        made = without_merging(mild_tower, 30, device="cpu")
        extract(find_videos(films).videos, made, FeatureFolders(tmp_path / "alone"), batch_segments=1)
        taken.clear()
        folders = FeatureFolders(tmp_path / "together")
        options: dict[str, Any] = {"num_decoders": num_decoders, "batch_segments": batch_segments}
        assert extract(find_videos(films).videos, made, folders, **options) == Report(num_written=3)
        assert taken == sizes
        for path in sorted((tmp_path / "alone").iterdir()):
            assert_close(VideoIndex.load(tmp_path / "together" / path.name), VideoIndex.load(path))

    def test_only_a_processor_takes_segments_one_by_one(self) -> None:
        assert [default_batch_segments(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [1, 8, 8]

    def test_a_batch_that_fits_no_memory_is_halved(
        self, mild_tower: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = without_merging(mild_tower, 30, device="cpu")
        extract(find_videos(films).videos, made, FeatureFolders(tmp_path / "alone"), batch_segments=1)
        taken = note_batches(monkeypatch, room_for=2)
        extract(find_videos(films).videos, made, FeatureFolders(tmp_path / "together"), batch_segments=9)
        assert taken == [9, 4, 2, 2, 5, 2, 3, 1, 2]
        for path in sorted((tmp_path / "alone").iterdir()):
            assert_close(VideoIndex.load(tmp_path / "together" / path.name), VideoIndex.load(path))

    def test_every_setting_counts_as_in_direct_encoding(self, model: LongVLM, films: Path, tmp_path: Path) -> None:
        """Settings that differ from the defaults in all fields, so that none can be forgotten."""
        settings = Compression(
            frames_per_segment=3,
            tokens_per_segment=5,
            global_layers=1,
            merge_schedule=(20, 10, 9, 4),
            merge_heads=2,
            merge_order="temporal",
            frame_code=0.5,
            fit="pad",
        )
        for setting in dataclasses.fields(Compression):
            assert getattr(settings, setting.name) != setting.default
        other = LongVLM.from_pretrained(model.name, device="cpu", compression=settings)
        sampling = other.plan_sampling(None, 10, 8, 0.1, 0.9, "keyframe")
        made = extractor_of_model(other, sampling)
        extract([ListedVideo("v", str(films / "v_0.mp4"))], made, FeatureFolders(tmp_path))
        direct = other.encode(films / "v_0.mp4", fps=10, max_frames=8, start=0.1, end=0.9, sampling="keyframe")
        assert VideoIndex.load(tmp_path / "v.longvlm") == direct

    def test_a_model_answers_from_them(self, model: LongVLM, films: Path, run: Run, tmp_path: Path) -> None:
        run(films)
        question = "What happens?"
        stored = model.ask(VideoIndex.load(tmp_path / "features" / "v_0.longvlm"), question, max_new_tokens=4)
        assert stored.text == model.ask(films / "v_0.mp4", question, max_new_tokens=4).text

    def test_a_tower_alone_is_read_as_the_paper_reads_its_own(self, tower: Path, films: Path, tmp_path: Path) -> None:
        made = extractor_of_tower(str(tower), Sampling(), device="cpu")
        extract([ListedVideo("v", str(films / "v_0.mp4"))], made, FeatureFolders(tmp_path))
        index = VideoIndex.load(tmp_path / "v.longvlm")
        assert index.compression == Compression()
        assert index.local_features.shape == (10, 30, 32) and index.segment_globals.shape == (10, 5, 32)


@pytest.mark.gpu
def test_batches_on_cuda_are_close_to_single_segments(
    mild_tower: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    taken = note_batches(monkeypatch)
    made = without_merging(mild_tower, 30, device="cuda")
    for folder, batch_segments in (("alone", 1), ("together", None)):
        extract(find_videos(films).videos, made, FeatureFolders(tmp_path / folder), batch_segments=batch_segments)
    assert taken == [1] * 9 + [8, 1]
    for path in sorted((tmp_path / "alone").iterdir()):
        assert_close(VideoIndex.load(tmp_path / "together" / path.name), VideoIndex.load(path))


def without_merging(tower: Path, num_frames: int, device: str) -> Extractor:
    """Rounding may decide which of several patches that are nearly alike are merged, so none are."""
    made = extractor_of_tower(str(tower), Sampling(num_frames=num_frames), device=device, dtype="float32")
    patches = made.compression.frames_per_segment * made.encoder.patches_per_frame
    compression = dataclasses.replace(made.compression, tokens_per_segment=patches, merge_schedule=None)
    return dataclasses.replace(made, compression=compression)


def note_batches(monkeypatch: pytest.MonkeyPatch, *, room_for: int = 100) -> list[int]:
    """The sizes of the batches that encoders will be given; there is `room_for` so many segments at once."""
    taken: list[int] = []
    encode = VisionEncoder.encode_segments

    def note_and_encode(encoder: VisionEncoder, segments: list[Frames]) -> object:
        taken.append(len(segments))
        if len(segments) > room_for:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(encoder, segments)

    monkeypatch.setattr(VisionEncoder, "encode_segments", note_and_encode)
    return taken


def assert_close(actual: VideoIndex, expected: VideoIndex, tolerance: float = 1e-4) -> None:
    """The same tokens, up to rounding; all else is the same."""
    for name in ("local_features", "segment_globals"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), atol=tolerance, rtol=tolerance)
    rounded = {name: getattr(expected, name) for name in ("local_features", "segment_globals")}
    assert dataclasses.replace(actual, **rounded) == expected


class TestFailures:
    def test_a_broken_video_among_good_ones_is_listed_and_stops_none(
        self, videos: Path, run: Run, tmp_path: Path
    ) -> None:
        (videos / "v_1.mp4").write_bytes((videos / "v_1.mp4").read_bytes()[:700])
        (videos / "v_3.mp4").write_bytes(b"")
        report = run(videos)
        assert report.num_written == 2
        assert [Path(failure.video).name for failure in report.failures] == ["v_1.mp4", "v_3.mp4"]
        assert "moov" in report.failures[0].reason and "0 bytes" in report.failures[1].reason
        listed = json.loads((tmp_path / "features" / "failures.json").read_text())
        assert listed == [dataclasses.asdict(failure) for failure in report.failures]
        assert sorted(path.stem for path in (tmp_path / "features").glob("*.longvlm")) == ["v_0", "v_2"]

    def test_a_mended_video_is_made_up_for_and_the_list_goes(
        self, videos: Path, films: Path, run: Run, tmp_path: Path
    ) -> None:
        (videos / "v_1.mp4").write_bytes(b"")
        run(videos)
        (videos / "v_1.mp4").write_bytes((films / "v_1.mp4").read_bytes())
        assert run(videos) == Report(num_written=1, num_skipped=2)
        assert not (tmp_path / "features" / "failures.json").exists()

    def test_an_unexpected_error_of_the_decoder_is_told_with_its_kind(
        self, films: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(source: str, **_: object) -> None:
            raise ValueError(f"odd {Path(source).name}")

        monkeypatch.setattr(extraction, "open_video", crash)
        reasons = [failure.reason for failure in run(films).failures]
        assert reasons == [f"ValueError: odd v_{number}.mp4" for number in range(3)]

    @pytest.mark.parametrize("num_decoders", [1, 3])
    @pytest.mark.parametrize("batch_segments", [1, 3, 4, 100])
    def test_a_video_that_fails_midway_takes_nothing_of_others_with_it(
        self,
        mild_tower: Path,
        films: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        batch_segments: int,
        num_decoders: int,
    ) -> None:
        """Also where its first segment waits beside others' to be encoded."""
        made = without_merging(mild_tower, 20, device="cpu")
        videos = find_videos(films).videos
        extract(videos, made, FeatureFolders(tmp_path / "whole"))
        segments = VideoReader.segments

        def fail_midway(reader: VideoReader, *arguments: Any, **named: Any) -> Iterator[Frames]:
            for number, frames in enumerate(segments(reader, *arguments, **named)):
                if number == 1 and reader.info.name == "v_1.mp4":
                    raise LongVLMError("The second segment can't be decoded.")
                yield frames

        monkeypatch.setattr(VideoReader, "segments", fail_midway)
        options: dict[str, Any] = {"num_decoders": num_decoders, "batch_segments": batch_segments}
        report = extract(videos, made, FeatureFolders(tmp_path / "features"), **options)
        assert [(Path(one.video).name, one.reason) for one in report.failures] == [
            ("v_1.mp4", "The second segment can't be decoded.")
        ]
        assert {path.name for path in (tmp_path / "features").glob("*.longvlm")} == {"v_0.longvlm", "v_2.longvlm"}
        for name in ("v_0.longvlm", "v_2.longvlm"):
            assert_close(VideoIndex.load(tmp_path / "features" / name), VideoIndex.load(tmp_path / "whole" / name))

    def test_a_damaged_end_is_told(self, videos: Path, run: Run) -> None:
        from media import write_video

        path = write_video(videos / "v_9.mkv", 200, keyframe_distance=10)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        report = run(videos)
        assert report.num_written == 4 and list(report.lost_seconds) == [str(path)]
        assert report.lost_seconds[str(path)] > 1

    def test_no_room_ends_with_one_line_and_keeps_what_is_done(
        self, films: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import longvlm.video_index

        real, calls = longvlm.video_index.save_file, itertools.count()

        def save_until_full(tensors: object, path: Path, metadata: object) -> None:
            if next(calls) == 1:
                path.write_bytes(b"half")
                raise OSError(28, "No space left on device")
            real(tensors, path, metadata)

        monkeypatch.setattr(longvlm.video_index, "save_file", save_until_full)
        with pytest.raises(LongVLMError, match=r"Can't write .*v_1\.longvlm .*No space left"):
            run(films, num_decoders=1)
        assert [path.name for path in (tmp_path / "features").iterdir()] == ["v_0.longvlm"]
        monkeypatch.undo()
        assert run(films) == Report(num_written=2, num_skipped=1)

    def test_a_defect_of_the_encoder_is_not_blamed_on_videos(self, films: Path, model: LongVLM, tmp_path: Path) -> None:
        too_many = dataclasses.replace(model.compression, tokens_per_segment=1000)
        made = Extractor(model.encoder, too_many, Sampling(num_frames=8))
        with pytest.raises(LongVLMError, match="tokens_per_segment is 1000"):
            extract(find_videos(films).videos, made, FeatureFolders(tmp_path / "features"))
        assert not list((tmp_path / "features").iterdir())

    def test_a_video_of_which_the_encoder_makes_no_numbers_stops_no_other(
        self, films: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As float16 may overflow on one of many; on the first one, the encoder may as well be damaged."""
        build = IndexBuilder.build

        def overflow(builder: IndexBuilder, *, video: VideoInfo, **rest: Any) -> VideoIndex:
            if video.name == overflowing:
                raise LongVLMError(f"The encoder makes numbers of {video.name} that are not finite.")
            return build(builder, video=video, **rest)

        monkeypatch.setattr(IndexBuilder, "build", overflow)
        first, second, third = sorted(films.iterdir())
        overflowing = first.name
        with pytest.raises(LongVLMError, match=r"makes numbers of .* that are not finite"):
            run(films, num_decoders=1)
        overflowing = second.name
        report = run(films, num_decoders=1)
        assert report.num_written == 2
        assert [failure.video for failure in report.failures] == [str(second)]
        assert "not finite" in report.failures[0].reason
        assert (tmp_path / "features" / f"{third.stem}.longvlm").is_file()

    def test_a_segment_that_fits_no_memory_is_told_with_the_remedy(
        self, films: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        note_batches(monkeypatch, room_for=0)
        with pytest.raises(
            LongVLMError, match=r"cpu has no room to encode a segment of .* frames; choose another --device"
        ):
            run(films, batch_segments=4)


class TestResuming:
    def test_what_is_done_is_not_opened_again(
        self, films: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(films)
        (tmp_path / "features" / "v_1.longvlm").unlink()
        opened: list[str] = []

        def note_and_open(source: str, **options: object) -> object:
            opened.append(Path(source).name)
            return open_video(source, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(extraction, "open_video", note_and_open)
        assert run(films) == Report(num_written=1, num_skipped=2)
        assert opened == ["v_1.mp4"]

    def test_a_damaged_file_is_made_again(self, model: LongVLM, films: Path, run: Run, tmp_path: Path) -> None:
        run(films)
        path = tmp_path / "features" / "v_1.longvlm"
        path.write_bytes(path.read_bytes()[:-5])
        assert run(films) == Report(num_written=1, num_skipped=2)
        assert VideoIndex.load(path) == model.encode(films / "v_1.mp4")

    def test_features_of_other_frames_settings_or_encoders_are_not_mixed(
        self, films: Path, run: Run, extractor: Extractor, tower: Path, tmp_path: Path
    ) -> None:
        run(films)
        folders = FeatureFolders(tmp_path / "features")
        compression = dataclasses.replace(extractor.compression, tokens_per_segment=5)
        of_tower = dataclasses.replace(extractor_of_tower(str(tower), Sampling()), sampling=extractor.sampling)
        for other, words in (
            (dataclasses.replace(extractor, sampling=Sampling(num_frames=4)), "num_frames=8.*num_frames=4"),
            (dataclasses.replace(extractor, compression=compression), "tokens_per_segment=6.*tokens_per_segment=5"),
            (of_tower, "made by encoder .*tiny"),
        ):
            with pytest.raises(LongVLMError, match=rf"v_0\.longvlm is there already.*{words}.*another folder"):
                extract(find_videos(films).videos, other, folders)

    def test_a_part_does_not_pass_for_the_whole(self, films: Path, run: Run, tmp_path: Path) -> None:
        run(films)
        path = tmp_path / "features" / "v_0.longvlm"
        whole = VideoIndex.load(path)
        whole.slice(0, float(whole.segment_spans_seconds[0, 1])).save(path)
        with pytest.raises(LongVLMError, match=r"v_0\.longvlm is there already, but of other frames"):
            run(films)

    def test_an_index_of_a_newer_version_is_left_alone(
        self, films: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("longvlm.video_index.FORMAT_VERSION", 2)
        run(films)
        monkeypatch.undo()
        before = (tmp_path / "features" / "v_0.longvlm").read_bytes()
        with pytest.raises(LongVLMError, match=r"index format 2.*reads up to 1"):
            run(films)
        assert (tmp_path / "features" / "v_0.longvlm").read_bytes() == before

    def test_pickles_are_looked_at(self, films: Path, extractor: Extractor, tmp_path: Path) -> None:
        folders = FeatureFolders(None, tmp_path / "local", tmp_path / "memory")
        videos = find_videos(films).videos
        assert extract(videos, extractor, folders).num_written == 3
        (tmp_path / "local" / "v_0.pkl").write_bytes(b"")
        assert extract(videos, extractor, folders) == Report(num_written=1, num_skipped=2)
        (tmp_path / "memory" / "v_1.pkl").write_bytes(pickle.dumps(np.ones((3, 7), dtype=np.float16)))
        with pytest.raises(LongVLMError, match=r"v_1\.pkl is there already, but its array is \(3, 7\)"):
            extract(videos, extractor, folders)
        (tmp_path / "memory" / "v_1.pkl").unlink()
        local = tmp_path / "local" / "v_2.pkl"
        features = pickle.loads(local.read_bytes())
        local.write_bytes(pickle.dumps(features[:-1]))
        with pytest.raises(
            LongVLMError, match=rf"v_2\.pkl .* has {len(features) - 1} rows, .* give {len(features)}\. "
        ):
            extract(videos, extractor, folders)
        (tmp_path / "memory" / "v_2.pkl").write_bytes(pickle.dumps(np.ones((3, 7), dtype=np.float16)))
        local.unlink()  # what is missing is no leave to write over the other
        with pytest.raises(LongVLMError, match=r"v_2\.pkl is there already, but its array is \(3, 7\)"):
            extract(videos, extractor, folders)
        swapped = FeatureFolders(None, tmp_path / "memory", tmp_path / "local")
        with pytest.raises(LongVLMError, match=r"v_0\.pkl .* rows, .* give"):
            extract(videos, extractor, swapped)

    def test_those_of_a_damaged_video_are_kept(self, videos: Path, extractor: Extractor, tmp_path: Path) -> None:
        film = videos / "v_0.mp4"
        content = write_video(film, 250, options={"movflags": "faststart"}).read_bytes()
        sound = len(content) * 6 // 10
        film.write_bytes(content[:sound] + np.random.default_rng(0).bytes(len(content) - sound))
        folders = FeatureFolders(None, tmp_path / "local", tmp_path / "memory")
        found = find_videos(videos).videos
        report = extract(found, extractor, folders)
        assert report.num_written == 3 and report.lost_seconds.keys() == {str(film)}
        assert json.loads((tmp_path / "local" / "damaged.json").read_text()) == {"v_0": report.lost_seconds[str(film)]}
        rows = [len(pickle.loads((tmp_path / "local" / f"v_{number}.pkl").read_bytes())) for number in (0, 1)]
        assert rows[0] < rows[1]
        assert extract(found, extractor, folders) == Report(num_skipped=3, lost_seconds=report.lost_seconds)
        with_indexes = dataclasses.replace(folders, indexes=tmp_path / "indexes")
        assert extract(found, extractor, with_indexes).lost_seconds == report.lost_seconds
        (tmp_path / "local" / "v_0.pkl").unlink()
        write_video(film, 30)
        assert extract(found, extractor, folders) == Report(num_written=1, num_skipped=2)
        assert not (tmp_path / "local" / "damaged.json").exists()


def test_an_addresss_secrets_are_not_stored(extractor: Extractor, tmp_path: Path) -> None:
    video = ListedVideo("v", "http://user:password@127.0.0.1:9/v.mp4?key=secret")
    (failure,) = extract([video], extractor, FeatureFolders(tmp_path)).failures
    assert failure.video == "http://127.0.0.1:9/v.mp4"
    assert "secret" not in (tmp_path / "failures.json").read_text()


def test_failures_are_listed_also_when_it_is_broken_off(videos: Path, run: Run, tmp_path: Path) -> None:
    (videos / "v_0.mp4").write_bytes(b"")

    def interrupt(progress: Progress) -> None:
        if progress.videos_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(videos, on_progress=interrupt, num_decoders=1)
    (failure,) = json.loads((tmp_path / "features" / "failures.json").read_text())
    assert failure["video"] == str(videos / "v_0.mp4")


def test_the_list_keeps_what_failed_before_and_was_not_reached(videos: Path, run: Run, tmp_path: Path) -> None:
    (videos / "v_2.mp4").write_bytes(b"")
    run(videos)
    for path in (tmp_path / "features").glob("*.longvlm"):
        path.unlink()

    def interrupt(progress: Progress) -> None:
        if progress.videos_done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(videos, on_progress=interrupt, num_decoders=1)
    (failure,) = json.loads((tmp_path / "features" / "failures.json").read_text())
    assert failure["video"] == str(videos / "v_2.mp4")


def test_the_list_keeps_what_failed_among_other_videos(videos: Path, run: Run, tmp_path: Path) -> None:
    (videos / "v_0.mp4").write_bytes(b"")
    run(videos)
    others = tmp_path / "others"
    others.mkdir()
    (others / "v_8.mp4").write_bytes(b"")
    run(others)
    listed = json.loads((tmp_path / "features" / "failures.json").read_text())
    assert [Path(row["video"]).name for row in listed] == ["v_0.mp4", "v_8.mp4"]


def test_a_name_too_long_for_features_stops_no_other_video(videos: Path, run: Run, tmp_path: Path) -> None:
    (videos / "v_0.mp4").rename(videos / f"{'x' * 251}.mp4")
    report = run(videos)
    assert report.num_written == 2
    assert [failure.reason for failure in report.failures] == [
        "its name is too long for one of a file of features; rename it."
    ]


def test_a_video_that_failed_by_another_path_is_no_longer_listed(
    videos: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (videos / "v_0.mp4").write_bytes(b"")
    run(videos)
    assert (tmp_path / "features" / "failures.json").exists()
    write_video(videos / "v_0.mp4", 30)
    monkeypatch.chdir(videos.parent)
    assert run(Path(videos.name)).num_written == 1
    assert not (tmp_path / "features" / "failures.json").exists()


def test_one_folder_under_two_names_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LongVLMError, match="can't both go to"):
        FeatureFolders(None, tmp_path / "one", Path("one"))


@pytest.mark.parametrize("name", ["failures.json", "damaged.json"])
def test_lists_that_are_not_its_own_are_refused_and_kept(videos: Path, run: Run, tmp_path: Path, name: str) -> None:
    other = tmp_path / "features" / name
    other.parent.mkdir()
    other.write_text('{"mine": "yes"}')
    with pytest.raises(LongVLMError, match=rf"{name} is none that an extraction wrote; remove it"):
        run(videos)
    assert [path.name for path in other.parent.iterdir()] == [name] and "mine" in other.read_text()


def test_no_decoder_at_all_is_refused(films: Path, run: Run) -> None:
    with pytest.raises(LongVLMError, match="num_decoders is 0"):
        run(films, num_decoders=0)


def test_progress_counts_videos_and_frames_and_foretells_the_end(videos: Path, run: Run) -> None:
    (videos / "v_1.mp4").write_bytes(b"")
    told: list[Progress] = []
    run(videos, on_progress=told.append)
    assert (told[-1].videos_done, told[-1].videos_total, told[-1].frames_encoded) == (3, 3, 8 + 5)
    assert "left" not in told[0].describe() and told[-1].describe().endswith("0:00:00 left")
    quarter = Progress(videos_done=2, videos_total=8, frames_encoded=200, elapsed_seconds=10)
    assert quarter.describe() == "2 of 8 videos, 20.0 frames/s, 0:00:30 left"


class TestDecodingAhead:
    def test_is_bounded_and_ends_with_its_consumer(self, films: Path) -> None:
        """Segments wait in a short queue, and threads don't stay behind an iterator that is left."""
        produced = 0

        def read_forever(reader: object) -> object:
            nonlocal produced
            segment = next(reader.segments(Sampling(), frames_per_segment=1, image_size=8, fit="squash"))  # type: ignore[attr-defined]
            while True:
                produced += 1
                yield segment

        videos = find_videos(films).videos
        decoding = decode_ahead(videos, lambda video: open_video(video.source), read_forever, num_threads=1)  # type: ignore[arg-type]
        next(next(decoding))
        wait_until(lambda: produced >= SEGMENTS_AHEAD)
        time.sleep(0.3)
        assert produced <= SEGMENTS_AHEAD + 2
        decoding.close()
        wait_until(lambda: not any(thread.name.startswith("longvlm-") for thread in threading.enumerate()))

    def test_videos_come_in_their_order_as_long_as_they_are_ready(self, films: Path) -> None:
        opened: list[str] = []
        first_is_taken = threading.Event()

        def note_and_open(video: ListedVideo) -> object:
            opened.append(video.id)
            return open_video(video.source)

        def read(reader: object) -> object:
            if reader.info.name != "v_0.mp4":  # type: ignore[attr-defined]
                assert first_is_taken.wait(PATIENCE_SECONDS)
            yield from reader.segments(Sampling(num_frames=2), frames_per_segment=1, image_size=8, fit="squash")  # type: ignore[attr-defined]

        taken: list[tuple[str, bool]] = []
        for decoding in decode_ahead(find_videos(films).videos, note_and_open, read, num_threads=2):  # type: ignore[arg-type]
            wait_until(lambda: {"v_0", "v_1"} <= set(opened))
            frames = next(decoding, None)
            taken.append((decoding.video.id, frames is not None))
            if frames is None:
                assert decoding.info.name == Path(decoding.video.source).name and decoding.lost_seconds == 0
            first_is_taken.set()
            wait_until(lambda: not any(thread.name == "longvlm-video" for thread in threading.enumerate()))
        each = [True, True, False]
        assert taken == [(name, has_frames) for name in ("v_0", "v_1", "v_2") for has_frames in each]

    def test_the_next_video_comes_while_one_is_not_ready(self, films: Path) -> None:
        first_is_taken, other_is_taken = threading.Event(), threading.Event()
        came_in_time: list[bool] = []

        def read(reader: object) -> object:
            frames = next(reader.segments(Sampling(), frames_per_segment=1, image_size=8, fit="squash"))  # type: ignore[attr-defined]
            if reader.info.name == "v_0.mp4":  # type: ignore[attr-defined]
                yield frames
                came_in_time.append(other_is_taken.wait(PATIENCE_SECONDS))
            else:
                came_in_time.append(first_is_taken.wait(PATIENCE_SECONDS))
            yield frames

        taken: list[str] = []
        videos = find_videos(films).videos[:2]
        for decoding in decode_ahead(videos, lambda video: open_video(video.source), read, num_threads=2):  # type: ignore[arg-type]
            if next(decoding, None) is not None:
                taken.append(decoding.video.id)
            (first_is_taken if decoding.video.id == "v_0" else other_is_taken).set()
        assert came_in_time == [True, True] and taken == ["v_0", "v_1", "v_0"]


def test_folders_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for folders, words in (
        ((None, None, None), "nowhere to write"),
        ((tmp_path, tmp_path, None), "two folders"),
        ((None, tmp_path, tmp_path), "same names"),
    ):
        with pytest.raises(LongVLMError, match=words):
            FeatureFolders(*folders)
