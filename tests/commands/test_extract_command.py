"""`longvlm extract`, `longvlm features import` and the original code's script, on a tiny model and real videos."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import RunCommand as Run
from media import write_video
from tiny_checkpoint import save_tiny_checkpoint
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from longvlm import LongVLM, VideoIndex
from longvlm.index import extraction
from longvlm.stages.tokens import assemble

SCRIPT = Path(__file__).parents[2] / "scripts" / "save_features.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "clip"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=56, patch_size=14)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(2):
        write_video(folder / f"v_{number}.mp4", 20)
    return folder


class TestExtract:
    def test_a_folder_becomes_indexes_and_a_second_run_skips_them(
        self, run: Run, model: Path, videos: Path, tmp_path: Path
    ) -> None:
        command = ["extract", videos, "-o", tmp_path / "out", "--model", model, "--num-frames", 4]
        ended = run(*command).must_end_with(0)
        assert ended.stdout == "" and "wrote the features of 2 videos" in ended.stderr
        direct = LongVLM.from_pretrained(model).encode(videos / "v_0.mp4", num_frames=4)
        assert VideoIndex.load(tmp_path / "out" / "v_0.longvlm") == direct
        assert "0 videos" in (again := run(*command).must_end_with(0).stderr) and "2 were there already" in again
        other = run(*command[:-1], 8)
        other.must_complain("v_0.longvlm is there already", "num_frames=4", "num_frames=8")

    def test_segments_are_encoded_in_batches_where_that_is_asked_for(
        self, run: Run, model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: dict[str, object] = {}
        extract = extraction.extract
        monkeypatch.setattr(extraction, "extract", lambda *args, **more: given.update(more) or extract(*args, **more))
        ended = run("extract", videos, "-o", tmp_path / "out", "--model", model, "--batch-segments", 3, "--decoders", 1)
        assert "wrote the features of 2 videos" in ended.must_end_with(0).stderr
        assert (given["batch_segments"], given["num_decoders"]) == (3, 1)
        direct = LongVLM.from_pretrained(model).encode(videos / "v_1.mp4")
        batched = VideoIndex.load(tmp_path / "out" / "v_1.longvlm")
        assert torch.equal(batched.segment_spans_seconds, direct.segment_spans_seconds)
        assert batched.local_features.shape == direct.local_features.shape
        none = run("extract", videos, "-o", tmp_path / "out", "--model", model, "--batch-segments", 0)
        none.must_complain("--batch-segments", "greater than or equal to 1")

    def test_a_list_with_a_repetition_a_clash_and_two_bad_videos(
        self, run: Run, model: Path, videos: Path, tmp_path: Path
    ) -> None:
        (videos / "bad.mp4").write_bytes(b"no video")
        (videos / "deeper").mkdir()
        write_video(videos / "deeper" / "v_1.mp4", 5)
        names = ["v_0.mp4", "bad.mp4", "v_0.mp4", "gone.mp4", "v_1.mp4", "deeper/v_1.mp4"]
        (tmp_path / "list.txt").write_text("\n".join(names))
        output = tmp_path / "new" / "out"
        ended = run("extract", tmp_path / "list.txt", "--video-folder", videos, "-o", output, "--model", model)
        ended.must_end_with(1)
        assert "v_0.mp4 is listed more than once" in ended.stderr
        assert "Traceback" not in ended.stderr and "3 videos failed" in ended.stderr.splitlines()[-1]
        failures = json.loads((output / "failures.json").read_text())
        assert [Path(failure["video"]).name for failure in failures] == ["v_1.mp4", "bad.mp4", "gone.mp4"]
        assert "same file" in failures[0]["reason"] and "No such video" in failures[2]["reason"]
        assert all(failure["reason"] in ended.stderr for failure in failures)
        assert sorted(path.name for path in output.glob("*.longvlm")) == ["v_0.longvlm", "v_1.longvlm"]

    def test_secrets_in_addresses_are_neither_said_nor_kept(self, run: Run, model: Path, tmp_path: Path) -> None:
        """Two signed addresses of one file clash, and one stands there twice."""
        addresses = [f"http://me:hunter2@127.0.0.1:9/v_0.mp4?key=s3cret{number}" for number in (1, 2, 2)]
        (tmp_path / "list.txt").write_text("\n".join([*addresses, addresses[0]]))
        ended = run("extract", tmp_path / "list.txt", "-o", tmp_path / "out", "--model", model).must_end_with(1)
        told = ended.stderr + (tmp_path / "out" / "failures.json").read_text()
        assert "listed more than once" in told and "same file as those of http://127.0.0.1:9/v_0.mp4" in told
        assert "s3cret" not in told and "hunter2" not in told
        (tmp_path / "bad.txt").write_text("http://[::1/v.mp4?key=s3cret")
        bad = run("extract", tmp_path / "bad.txt", "-o", tmp_path / "out", "--model", model)
        bad.must_complain("is malformed")
        assert "s3cret" not in bad.stderr

    def test_mistakes_are_one_line(self, run: Run, model: Path, videos: Path, tmp_path: Path) -> None:
        run("extract", tmp_path / "none", "-o", tmp_path / "out").must_complain("No such folder or list file")
        run("extract", videos, "--model", model).must_complain("nowhere to write")
        (tmp_path / "file").touch()
        run("extract", videos, "-o", tmp_path / "file", "--model", model).must_complain("Can't make the folder")
        run("extract", videos, "-o", tmp_path / "out", "--model", tmp_path / "none").must_complain("none")
        assert not (tmp_path / "out").exists()

    def test_progress_has_rate_and_time_left_also_in_a_log(
        self, run: Run, model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("longvlm.commands.batch_progress.SECONDS_BETWEEN_LINES", 0.0)
        shown = run("extract", videos, "-o", tmp_path / "out", "--model", model).must_end_with(0).stderr
        assert "1 of 2 videos, " in shown and " frames/s, 0:00:" in shown and " left" in shown


class TestScript:
    @pytest.mark.parametrize("memory_flag", ["--clip_feat_path_mem", "--clip_feat_path_memory"])
    def test_the_seeds_flags_give_the_seeds_pickles(
        self, clip: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_flag: str
    ) -> None:
        (tmp_path / "list.txt").write_text("v_1.mp4\n")
        local, memory = tmp_path / "local", tmp_path / "memory"
        arguments = ["--video_dir_path", videos, "--list_file", tmp_path / "list.txt"]
        arguments += ["--clip_feat_path_local", local, memory_flag, memory, "--pretrained_path", clip]
        arguments += ["-o", tmp_path / "indexes"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert end.value.code == 0
        assert [path.name for path in local.iterdir()] == [path.name for path in memory.iterdir()] == ["v_1.pkl"]
        arrays = [pickle.loads((folder / "v_1.pkl").read_bytes()) for folder in (local, memory)]
        assert all(isinstance(array, np.ndarray) and array.dtype == np.float16 for array in arrays)
        assert [array.shape for array in arrays] == [(300, 32), (7, 32)]  # the [CLS] of all hidden states
        index = VideoIndex.load(tmp_path / "indexes" / "v_1.longvlm")
        kept = assemble(index).features.half()
        assert torch.equal(torch.from_numpy(np.concatenate([arrays[1][-5:], arrays[0]])), kept)

    def test_options_of_extract_may_follow(
        self, model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ["--video_dir_path", videos, "--clip_feat_path_local", tmp_path / "l"]
        arguments += ["--clip_feat_path_mem", tmp_path / "m", "--model", model, "-o", tmp_path / "indexes"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert end.value.code == 0
        index = VideoIndex.load(tmp_path / "indexes" / "v_1.longvlm")
        opened = LongVLM.from_pretrained(model)
        index.require_same_encoding(opened.encoder.name, opened.encoder.fingerprint, opened.compression)


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


class TestImport:
    @pytest.fixture
    def pickles(self, tmp_path: Path) -> list[object]:
        for name, shape in (("local", (300, 32)), ("memory", (25, 32))):
            (tmp_path / name).mkdir()
            (tmp_path / name / "v_1.pkl").write_bytes(pickle.dumps(np.ones(shape, dtype=np.float16)))
        return ["--local", tmp_path / "local", "--memory", tmp_path / "memory", "-o", tmp_path / "out"]

    def test_writes_indexes_and_says_what_is_unknown(
        self, run: Run, pickles: list[object], clip: Path, videos: Path, tmp_path: Path
    ) -> None:
        said = run("features", "import", *pickles).must_end_with(0).stderr
        assert "wrote 1 indexes" in said and "the encoder" in said and "the times of frames" in said
        useless = "Note: no model takes these files until they are imported again with --vision-tower (or --model)."
        assert useless in said.splitlines()
        assert VideoIndex.load(tmp_path / "out" / "v_1.longvlm").local_features.eq(1).all()
        known = ["--vision-tower", clip, "--videos", videos]
        said = run("features", "import", *pickles, *known).must_end_with(0).stderr
        assert "the encoder" not in said and useless not in said and "the times of frames" not in said
        index = VideoIndex.load(tmp_path / "out" / "v_1.longvlm")
        assert index.encoder_name == "clip_vision_model of clip" and index.video.num_frames == 20

    def test_a_base_without_a_model_is_refused(self, run: Run, pickles: list[object]) -> None:
        run("features", "import", *pickles, "--base", "x").must_complain("--base and --projector belong to a model")

    def test_a_malicious_pickle_ends_with_status_2_having_run_nothing(
        self, run: Run, pickles: list[object], tmp_path: Path
    ) -> None:
        (tmp_path / "memory" / "v_1.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "trace")))
        run("features", "import", *pickles).must_complain("v_1.pkl is refused", "Nothing in it was run")
        assert not (tmp_path / "trace").exists()
        assert not list((tmp_path / "out").iterdir())

    def test_200_rows(self, run: Run, pickles: list[object], tmp_path: Path) -> None:
        (tmp_path / "local" / "v_1.pkl").write_bytes(pickle.dumps(np.ones((200, 32), dtype=np.float16)))
        run("features", "import", *pickles).must_complain("200 rows", "300", "--tokens-per-segment 20")
        run("features", "import", *pickles, "--tokens-per-segment", 20).must_end_with(0)
