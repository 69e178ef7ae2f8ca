"""`longvlm eval` where videos or the judge fail it: what is said, how it ends, and what is kept."""

from __future__ import annotations

import dataclasses
import errno
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import RunCommand
from stub_judge import Outcome, StubJudge

from longvlm import LongVLM, VideoIndex
from longvlm.evaluation import judge as judge_module
from longvlm.video_index import UNKNOWN_FINGERPRINT

WriteJson = Callable[[str, object], str]
ROWS = [
    {"video_name": name, "question": "Does a red circle appear?", "answer": "yes"} for name in ("one", "two", "one")
]
ROWS[2]["question"] = "What appears first?"
GIVEN = [{"video_name": "one", "question": f"{number}?", "answer": "x", "pred": "x"} for number in range(4)]
CLAIMED = {"settings.json", "lock", "failures.jsonl"}


@pytest.fixture(autouse=True)
def no_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take the longest."""
    monkeypatch.setattr("longvlm.evaluation.run.draw_chart", lambda results, path: path.touch())


@pytest.fixture(scope="module")
def stored(films: Path) -> dict[str, VideoIndex]:
    return encode(films)


@pytest.fixture(scope="module")
def of_fewer_tokens(films: Path, stored: dict[str, VideoIndex]) -> dict[str, VideoIndex]:
    fewer = stored["one"].compression.tokens_per_segment - 1
    return encode(films, tokens_per_segment=fewer, merge_schedule=None)


def encode(films: Path, **compression: object) -> dict[str, VideoIndex]:
    model = LongVLM.from_pretrained(device="cpu", dtype="float32", compression=compression or None)
    return {name: model.encode(films / file) for name, file in (("one", "v_one.mp4"), ("two", "two.mkv"))}


@pytest.fixture
def arguments(write_json: WriteJson, tmp_path: Path) -> list[object]:
    asked: list[object] = ["eval", "msvd-qa", "--annotations", write_json("qa.json", ROWS), "-o", tmp_path / "out"]
    return [*asked, "--max-new-tokens", 4, "--device", "cpu", "--dtype", "float32"]


@pytest.fixture
def given(write_json: WriteJson, tmp_path: Path, stub: StubJudge) -> list[object]:
    """Predictions that are there, to be judged by the stub."""
    asked: list[object] = ["eval", "msvd-qa", "--annotations", write_json("given.json", GIVEN), "-o", tmp_path / "out"]
    return [*asked, "--judge-model", "stub", "--judge-url", stub.url]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def save(indexes: dict[str, VideoIndex], folder: Path) -> Path:
    folder.mkdir()
    for name, index in indexes.items():
        index.save(folder / f"{name}.longvlm")
    return folder


def with_encoder(index: VideoIndex, name: str, fingerprint: str) -> VideoIndex:
    return dataclasses.replace(index, encoder_name=name, encoder_fingerprint=fingerprint)


def results_in(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


# --- videos ---


def test_features_of_which_none_fits_are_one_line_and_no_result(
    run: RunCommand,
    arguments: list[object],
    stored: dict[str, VideoIndex],
    of_fewer_tokens: dict[str, VideoIndex],
    tmp_path: Path,
) -> None:
    own = stored["one"]
    tokens, segments = own.compression.tokens_per_segment, own.num_segments
    others = save(of_fewer_tokens, tmp_path / "others")
    ended = run(*arguments, "--videos", others).must_complain()
    assert ended.stderr.splitlines()[-1] == (
        f"Error: None of the 3 rows could be asked, first of them about one: The index of {own.video.name} was made "
        f"with tokens_per_segment={tokens - 1}, but tokens_per_segment={tokens} is wanted here: it has "
        f"{segments * (tokens - 1)} rows of local features (visual tokens), where {segments * tokens} are expected. "
        "Encode the video again with this model (`longvlm encode`, or `longvlm extract` for many). All reasons are in "
        f"{tmp_path / 'out' / 'failures.jsonl'}."
    )
    assert names_in(tmp_path / "out") == CLAIMED
    run(*arguments, "--videos", save(stored, tmp_path / "own")).must_succeed()
    assert results_in(tmp_path / "out")["unanswered"] == 0, "a folder without a prediction is free for other videos"
    run(*arguments, "--videos", others).must_complain("holds an evaluation with videos")


def test_some_features_that_do_not_fit_are_told_with_the_remedy(
    run: RunCommand, arguments: list[object], stored: dict[str, VideoIndex], tmp_path: Path
) -> None:
    other, unknown = with_encoder(stored["two"], "clip of huge", "f" * 64), UNKNOWN_FINGERPRINT
    videos = save({"one": stored["one"], "two": other}, tmp_path / "videos")
    ended = run(*arguments, "--videos", videos).must_end_with(1)
    own = f"{stored['one'].encoder_name} ({stored['one'].encoder_fingerprint[:12]})"
    told = (
        f"two: The index of two.mkv was made by encoder clip of huge (ffffffffffff), but {own} is wanted here. Encode "
        "the video again with this model (`longvlm encode`, or `longvlm extract` for many), or use the model that "
        "encoded it."
    )
    assert told.removeprefix("two: ") in ended.stderr.splitlines()
    assert "1 of 3 rows could not be asked" in ended.stderr and "Run the same command again" not in ended.stderr
    assert "Once that is mended, the same command asks only those." in ended.stderr

    with_encoder(other, "unknown (imported reference features)", unknown).save(videos / "two.longvlm")
    ended = run(*arguments, "--videos", videos).must_end_with(1)
    assert (
        f"The index of two.mkv was made by encoder unknown (imported reference features) (unknown), but {own} is "
        "wanted here. Import the features again, naming their encoder with --vision-tower (or --model)."
    ) in ended.stderr.splitlines()

    stored["two"].save(videos / "two.longvlm")
    run(*arguments, "--videos", videos).must_succeed()


def test_of_many_failures_the_first_few_are_told(
    run: RunCommand, write_json: WriteJson, stored: dict[str, VideoIndex], tmp_path: Path
) -> None:
    rows = [{"video_name": name, "question": "?", "answer": "x"} for name in ("one", *map(str, range(7)))]
    videos = save({"one": stored["one"]}, tmp_path / "videos")
    ended = run(
        *("eval", "msvd-qa", "--annotations", write_json("qa.json", rows), "-o", tmp_path / "out"),
        *("--videos", videos, "--max-new-tokens", 4, "--device", "cpu"),
    ).must_end_with(1)
    told = [line for line in ended.stderr.splitlines() if line.startswith("no file ")]
    assert [line.split(",")[0] for line in told] == [f"no file {number}" for number in range(5)]
    assert "… and 2 more" in ended.stderr.splitlines()


# --- the judge ---


def test_an_unreachable_judge_is_told_before_the_first_question(
    run: RunCommand, arguments: list[object], films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        ended = run(*arguments, "--videos", films, "--judge-model", "stub", "--judge-url", url)
    assert ended.must_complain().stderr.splitlines()[-1] == (
        f"Error: The judge stub at {url} failed: no answer from it "
        f"([Errno {errno.ECONNREFUSED}] Connection refused); check --judge-url, and that it is running, "
        "or leave --judge-model out and judge later."
    )
    assert names_in(tmp_path / "out") == CLAIMED - {"failures.jsonl"}


def test_a_wrong_key_is_told_before_the_first_question(
    run: RunCommand, arguments: list[object], films: Path, stub: StubJudge, tmp_path: Path
) -> None:
    stub.listing = (401, '{"error": {"message": "bad key"}}')
    stub.script = lambda prompt, attempt: stub.listing
    ended = run(*arguments, "--videos", films, "--judge-model", "stub", "--judge-url", stub.url)
    ended.must_complain(f"The judge stub at {stub.url} failed: status 401, bad key; check OPENAI_API_KEY.")
    assert names_in(tmp_path / "out") == CLAIMED - {"failures.jsonl"}


def test_a_judge_that_has_nothing_left_to_do_is_not_contacted(
    run: RunCommand, given: list[object], stub: StubJudge, write_json: WriteJson
) -> None:
    stub.script = lambda prompt, attempt: "never readable" if "1?" in prompt else "{'pred': 'yes', 'score': 4}"
    first = run(*given).must_succeed()
    assert (stub.listed, len(stub.prompts)) == (1, 3 + judge_module.REPLIES)
    stub.listing, stub.script = (401, "{}"), lambda prompt, attempt: (401, "{}")
    assert run(*given) == first
    assert (stub.listed, len(stub.prompts)) == (1, 3 + judge_module.REPLIES)
    write_json("given.json", [*GIVEN, {**GIVEN[0], "question": "One more?"}])
    run(*given).must_complain("status 401", "check OPENAI_API_KEY")


def test_a_video_that_stays_missing_asks_for_no_judge(
    run: RunCommand, arguments: list[object], stored: dict[str, VideoIndex], stub: StubJudge, tmp_path: Path
) -> None:
    videos = save({"one": stored["one"]}, tmp_path / "videos")
    arguments += ["--videos", videos, "--judge-model", "stub", "--judge-url", stub.url]
    first = run(*arguments).must_end_with(1)
    stub.listing, stub.script = (401, "{}"), lambda prompt, attempt: (401, "{}")
    assert run(*arguments) == first
    stored["two"].save(videos / "two.longvlm")
    run(*arguments).must_complain("status 401", "check OPENAI_API_KEY")


def test_the_password_in_a_judges_address_is_in_no_result(
    run: RunCommand, given: list[object], stub: StubJudge, tmp_path: Path
) -> None:
    given[-1] = stub.url.replace("://", "://someone:secret@")
    run(*given).must_succeed()
    assert results_in(tmp_path / "out")["judge"]["url"] == stub.url
    for path in (tmp_path / "out").iterdir():
        assert b"secret" not in path.read_bytes(), path.name


def test_replies_that_are_missing_are_told_apart_from_unreadable_ones(
    run: RunCommand, given: list[object], stub: StubJudge, tmp_path: Path
) -> None:
    def script(prompt: str, attempt: int) -> Outcome:
        if "0?" in prompt:
            return "{'pred': 'yes', 'score': 4}"
        return "never readable" if "1?" in prompt else (400, '{"error": {"message": "too long"}}')

    stub.script = script
    ended = run(*given, "--judge-concurrency", 1).must_end_with(1)
    unreadable = (
        "The judge sent no reply that could be read to 1 of 4 requests (to ask again, remove the lines with "
        '"score": null from judgements.jsonl). They count to no mean.'
    )
    unreached = (
        "The judge sent no reply at all to 2 of 4 requests: it was not reached, or refused them; they are asked again "
        "by the same command. They count to no mean."
    )
    results = results_in(tmp_path / "out")
    assert results["notes"][:2] == [unreadable, unreached]
    assert [f"Note: {note}" for note in (unreadable, unreached)] == ended.stderr.splitlines()[1:3]
    shown = {
        (one["judge"], one["measure"]): (one["n"], one["unreadable"], one["unreached"]) for one in results["measures"]
    }
    judged = f"stub [{results['judge']['versions'][0]}]"
    assert shown == {
        (judged, "accuracy"): (1, 1, 2),
        (judged, "score"): (1, 1, 2),
        ("offline", "exact match"): (4, 0, 0),
        ("offline", "token F1"): (4, 0, 0),
    }


def test_a_judge_that_goes_away_is_not_called_unreadable(
    run: RunCommand, given: list[object], stub: StubJudge, tmp_path: Path
) -> None:
    stub.script = lambda prompt, attempt: "{'pred': 'yes', 'score': 4}" if len(stub.prompts) == 1 else None
    ended = run(*given, "--judge-concurrency", 1).must_end_with(2)
    assert "sent no reply at all to 3 of 4 requests" in ended.stderr and "could be read" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"Error: The judge stub at {stub.url} failed: no answer from it")
    assert results_in(tmp_path / "out")["measures"][0]["n"] == 1, "what was judged is kept"
    stub.script = lambda prompt, attempt: "{'pred': 'yes', 'score': 4}"
    run(*given).must_succeed()
    assert results_in(tmp_path / "out")["measures"][0]["n"] == 4
