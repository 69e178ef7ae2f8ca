"""The reference's pickles: written with the reference's content, read back to the same tensors."""

from __future__ import annotations

import dataclasses
import pickle
import zlib
from pathlib import Path
from pickletools import genops

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot
from transformers import CLIPImageProcessor, CLIPVisionModel

from longvlm import LongVLM, VideoIndex
from longvlm.errors import LongVLMError
from longvlm.index.extraction import FeatureFolders, extract
from longvlm.index.extraction_report import Report
from longvlm.index.extractor import extractor_of_model, extractor_of_tower
from longvlm.index.reference_features import (
    ImportSettings,
    import_reference_features,
    read_reference_index,
    write_reference_features,
)
from longvlm.index.video_folders import find_videos
from longvlm.stages.tokens import assemble
from longvlm.stages.video import open_video
from longvlm.types import Compression, Sampling

PAPER = ImportSettings()


def write_pickles(folder: Path, name: str = "v_1", rows: int = 300, width: int = 32, layers: int = 25) -> None:
    random = np.random.RandomState(zlib.crc32(name.encode()))
    for kind, count in (("local", rows), ("memory", layers)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        array = random.standard_normal((count, width)).astype(np.float16)
        (folder / kind / f"{name}.pkl").write_bytes(pickle.dumps(array))


def read_pickles(folder: Path, name: str = "v_1") -> list[torch.Tensor]:
    return [
        torch.from_numpy(pickle.loads((folder / kind / f"{name}.pkl").read_bytes())) for kind in ("local", "memory")
    ]


def run_import(folder: Path, settings: ImportSettings = PAPER) -> list[tuple[int, int]]:
    return list(import_reference_features(folder / "local", folder / "memory", folder / "out", settings))


class TestWriting:
    def test_numpy_1_could_read_them(self, model: LongVLM, films: Path, tmp_path: Path) -> None:
        """They name no module that only numpy 2 has."""
        write_reference_features(model.encode(films / "v_0.mp4"), tmp_path / "local", tmp_path / "memory")
        for name in ("local", "memory"):
            modules = {
                str(one).split()[0] for code, one, _ in genops((tmp_path / name).read_bytes()) if "GLOBAL" in code.name
            }
            assert modules == {"numpy.core.multiarray", "numpy"}

    def test_content_is_the_references(self, mild_tower: Path, films: Path, tmp_path: Path) -> None:
        """Against transformers' own hidden states, averaged as the index says: near equals may merge either way."""
        sampling = Sampling(num_frames=20)
        made = extractor_of_tower(str(mild_tower), sampling, device="cpu", dtype="float32", all_layers=True)
        folders = FeatureFolders(tmp_path / "indexes", tmp_path / "local", tmp_path / "memory")
        extract(find_videos(films).videos[:1], made, folders)
        clip = CLIPVisionModel.from_pretrained(mild_tower).eval()
        images = CLIPImageProcessor.from_pretrained(mild_tower)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.image_mean, images.image_std))
        with open_video(films / "v_0.mp4") as reader:
            (frames,) = reader.segments(sampling, frames_per_segment=20, image_size=56, fit="squash")
        with torch.no_grad():
            states = clip((frames.pixels / 255 - mean) / std, output_hidden_states=True).hidden_states
        patches = states[-2][:, 1:].reshape(2, -1, 32)  # (20, P, D) -> (S=2, N, D)
        shares = one_hot(VideoIndex.load(tmp_path / "indexes/v_0.longvlm").assignment.long(), 30).float()  # (S, N, M)
        averages = (shares / shares.sum(1, keepdim=True)).transpose(1, 2) @ patches
        local, memory = read_pickles(tmp_path, "v_0")
        torch.testing.assert_close(local, averages.flatten(0, 1).half(), atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(memory, torch.stack([state[:, 0].mean(0) for state in states]).half())

    def test_indexes_beside_them_are_those_without_them(self, model: LongVLM, films: Path, tmp_path: Path) -> None:
        made = extractor_of_model(model, Sampling(num_frames=8), all_layers=True)
        folders = FeatureFolders(tmp_path / "indexes", tmp_path / "local", tmp_path / "memory")
        assert extract(find_videos(films).videos, made, folders).num_written == 3
        for video in sorted(films.iterdir()):
            index = VideoIndex.load(tmp_path / "indexes" / f"{video.stem}.longvlm")
            assert index == model.encode(video, num_frames=8)
            local, memory = read_pickles(tmp_path, video.stem)
            assert torch.equal(local, index.local_features.flatten(0, 1).half())
            assert memory.shape == (3, 32)
            assert torch.equal(memory[1:], assemble(index).features[:2].half())
        assert extract(find_videos(films).videos, made, folders) == Report(num_skipped=3)
        (tmp_path / "memory" / "v_1.pkl").unlink()
        assert extract(find_videos(films).videos, made, folders) == Report(num_written=1, num_skipped=2)


class TestImport:
    def test_gives_the_same_tensors(self, tmp_path: Path) -> None:
        write_pickles(tmp_path)
        write_pickles(tmp_path, "v_2")
        assert run_import(tmp_path) == [(1, 2), (2, 2)]
        for name in ("v_1", "v_2"):
            index = VideoIndex.load(tmp_path / "out" / f"{name}.longvlm")
            local, memory = read_pickles(tmp_path, name)
            assert index.local_features.shape == (10, 30, 32)
            assert torch.equal(assemble(index).features, torch.cat([memory[-5:], local]))

    def test_nothing_else_by_that_name_is_replaced(self, model: LongVLM, tmp_path: Path) -> None:
        write_pickles(tmp_path)
        run_import(tmp_path)
        assert run_import(tmp_path) == [(1, 1)], "the same pickles once more"
        kept = tmp_path / "out" / "v_1.longvlm"
        before = kept.read_bytes()
        write_pickles(tmp_path, layers=24)
        array = np.ones((300, 32), np.float16)
        (tmp_path / "local" / "v_1.pkl").write_bytes(pickle.dumps(array))
        with pytest.raises(LongVLMError, match=r"v_1.longvlm is there already, with other features of that video"):
            run_import(tmp_path)
        assert kept.read_bytes() == before
        kept.write_bytes(before[:200])  # as a crash of the machine may leave it
        run_import(tmp_path)
        assert VideoIndex.load(kept).local_features.unique().item() == 1

    def test_says_what_is_unknown(self, model: LongVLM, tmp_path: Path) -> None:
        write_pickles(tmp_path)
        run_import(tmp_path)
        index = VideoIndex.load(tmp_path / "out" / "v_1.longvlm")
        assert index.encoder_name.startswith("unknown") and index.encoder_fingerprint == "unknown"
        assert (index.video.name, index.video.fingerprint, index.video.width) == ("v_1", "unknown", 0)
        assert not index.segment_spans_seconds.any() and not index.frame_times_seconds.any()
        with pytest.raises(
            LongVLMError,
            match=r"made by encoder unknown .* Import the features again, naming their encoder with --vision-tower",
        ):
            model.ask(index, "What happens?")

    def test_with_encoder_and_videos_a_model_answers_from_them(
        self, model: LongVLM, films: Path, tmp_path: Path
    ) -> None:
        made = extractor_of_model(model, Sampling(num_frames=8), all_layers=True)
        folders = FeatureFolders(None, tmp_path / "local", tmp_path / "memory")
        extract(find_videos(films).videos, made, folders)
        settings = ImportSettings(model.compression, 2, model.encoder, films)
        run_import(tmp_path, settings)
        for video in sorted(films.iterdir()):
            index = VideoIndex.load(tmp_path / "out" / f"{video.stem}.longvlm")
            direct = model.encode(video, num_frames=8)
            assert index.video == direct.video and index.frame_times == direct.frame_times
            assert torch.equal(index.segment_spans_seconds, direct.segment_spans_seconds)
            assert torch.equal(assemble(index).features, assemble(direct).features.half())
            assert model.ask(index, "What happens?", max_new_tokens=3).new_tokens > 0

    def test_200_rows_where_300_are_expected(self, tmp_path: Path) -> None:
        write_pickles(tmp_path, rows=200)
        with pytest.raises(LongVLMError, match=r"v_1\.pkl has 200 rows, but 300 .*--tokens-per-segment 20\.$"):
            run_import(tmp_path)
        assert not list((tmp_path / "out").iterdir())
        run_import(tmp_path, ImportSettings(Compression(tokens_per_segment=20)))
        index = VideoIndex.load(tmp_path / "out" / "v_1.longvlm")
        assert torch.equal(index.local_features.flatten(0, 1), read_pickles(tmp_path)[0])

    def test_features_of_another_encoder(self, model: LongVLM, tmp_path: Path) -> None:
        write_pickles(tmp_path, width=48)
        with pytest.raises(LongVLMError, match=r"width 48, but .*tiny gives width 32"):
            run_import(tmp_path, dataclasses.replace(PAPER, encoder=model.encoder))

    @pytest.mark.parametrize(
        ("sizes", "words"),
        [
            ({"rows": 301}, "301 rows, but 300 .*--segments"),
            ({"rows": 0}, "0 rows, but 300"),
            ({"rows": 270}, "270 rows, but 300 .*9 segments are what a video with a damaged end .*`longvlm extract`"),
            ({"layers": 4}, "4 rows, but the last 5 layers .*swapped"),
        ],
    )
    def test_sizes_that_do_not_fit(self, tmp_path: Path, sizes: dict[str, int], words: str) -> None:
        write_pickles(tmp_path, **sizes)
        with pytest.raises(LongVLMError, match=words):
            run_import(tmp_path)

    def test_numbers_and_shapes_that_are_no_features(self, tmp_path: Path) -> None:
        write_pickles(tmp_path)
        local, memory = tmp_path / "local" / "v_1.pkl", tmp_path / "memory" / "v_1.pkl"
        for array, words in (
            (np.zeros((300, 32), dtype=np.int64), "type int64"),
            (np.zeros((10, 30, 32), dtype=np.float16), r"shape \(10, 30, 32\)"),
            (np.full((300, 32), np.nan, dtype=np.float16), "not finite"),
        ):
            local.write_bytes(pickle.dumps(array))
            with pytest.raises(LongVLMError, match=rf"v_1\.pkl .*{words}"):
                read_reference_index(local, memory, PAPER)

    def test_a_pickle_without_its_counterpart_stops_before_anything_is_written(self, tmp_path: Path) -> None:
        write_pickles(tmp_path)
        write_pickles(tmp_path, "v_0")
        (tmp_path / "memory" / "v_0.pkl").unlink()
        with pytest.raises(LongVLMError, match=r"v_0\.pkl has no counterpart in .*memory"):
            run_import(tmp_path)
        assert not (tmp_path / "out").exists()

    def test_what_macos_leaves_beside_files_is_none_of_them(self, tmp_path: Path) -> None:
        write_pickles(tmp_path)
        for folder in ("local", "memory"):
            (tmp_path / folder / "._v_1.pkl").write_bytes(b"\0\5\26\7")
        run_import(tmp_path)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["v_1.longvlm"]

    def test_folders_without_pickles_or_videos(self, tmp_path: Path) -> None:
        with pytest.raises(LongVLMError, match="is not a folder"):
            run_import(tmp_path)
        for name in ("local", "memory", "films"):
            (tmp_path / name).mkdir()
        with pytest.raises(LongVLMError, match=r"no \.pkl files"):
            run_import(tmp_path)
        write_pickles(tmp_path)
        with pytest.raises(LongVLMError, match="no video v_1 in"):
            run_import(tmp_path, dataclasses.replace(PAPER, video_folder=tmp_path / "films"))
