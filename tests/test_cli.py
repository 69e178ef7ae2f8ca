"""The command line, mostly in this process (`main` with arguments set), a few times as the real program."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from command_line import Ended, RunCommand
from media import barcode, serve_folder, write_audio, write_video
from PIL import Image
from tiny_checkpoint import CONTEXT_LENGTH, save_tiny_checkpoint
from waiting import PATIENCE_SECONDS, wait_until

from longvlm import LongVLM, LongVLMError, VideoIndex, __version__
from longvlm.commands import ask as ask_command
from longvlm.commands.options import VideoOptions

JSON_KEYS = [
    "video",
    "duration_seconds",
    "frames",
    "frame_times",
    "segments",
    "visual_tokens",
    "model",
    "answers",
    "timings",
    "peak_memory_bytes",
]
TIMING_KEYS = ["decode_seconds", "encode_seconds", "merge_seconds", "prefill_seconds", "generate_seconds"]
SHORT = ("--max-new-tokens", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 seconds, 25 frames a second, index at the front."""
    path = tmp_path_factory.mktemp("videos") / "film.mp4"
    return write_video(path, 100, options={"movflags": "faststart"})


@pytest.fixture(scope="module")
def film_index(film: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from longvlm import LongVLM

    path = tmp_path_factory.mktemp("indexes") / "film.longvlm"
    LongVLM.from_pretrained(model).encode(film).save(path)
    return path


# --- help and usage ---


COMMANDS = ("ask", "chat", "encode", "extract", "inspect", "plan", "train", "study", "demo", "eval")
GROUPS = {
    "data": ("check", "list", "convert"),
    "features": ("import",),
    "weights": ("apply-delta", "make-delta", "import-llava", "consolidate"),
}


@pytest.mark.parametrize("command", [*COMMANDS, *(f"{group} {one}" for group in GROUPS for one in GROUPS[group])])
def test_help_shows_how_to_call_a_command(run: RunCommand, command: str) -> None:
    shown = run(*command.split(), "--help").must_succeed().stdout
    assert shown.count(f"  longvlm {command}") >= 1, "an example"


@pytest.mark.parametrize("command", ["ask", "chat", "encode", "extract", "inspect", "plan", "demo", "eval"])
def test_commands_that_run_a_model_say_how_to_choose_it(run: RunCommand, command: str) -> None:
    shown = run(command, "--help").must_succeed().stdout
    assert "--model" in shown and "--device" in shown
    assert "--projector" in shown
    assert ("--load-in-4bit" in shown) == (command not in ("encode", "extract", "inspect"))


def test_help_lists_the_commands_also_without_arguments(run: RunCommand) -> None:
    shown = run("--help").must_succeed().stdout
    assert all(f"\n  {command} " in shown for command in (*COMMANDS, *GROUPS))
    assert run().must_succeed().stdout == shown


def test_version(run: RunCommand) -> None:
    assert run("--version").must_succeed().stdout == f"longvlm {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("frob",),
        ("ask",),
        ("ask", "film.mp4"),
        ("ask", "film.mp4", "Why?", "--frob"),
        ("ask", "film.mp4", "Why?", "--fps", "many"),
        ("ask", "film.mp4", "Why?", "--sampling", "random"),
        ("ask", "film.mp4", "Why?", "--max-new-tokens", "0"),
        ("encode", "film.mp4"),
    ],
    ids=" ".join,
)
def test_a_usage_error_is_one_line(run: RunCommand, arguments: tuple[str, ...]) -> None:
    command = " ".join(["longvlm", *arguments[:1]]) if arguments[0] != "frob" else "longvlm"
    run(*arguments).must_complain(f"See `{command} --help`.")


# --- bad input ---


def write_playlist(path: Path) -> Path:
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    return path


def bad_video(kind: str, folder: Path, film: Path) -> Path | str:
    path = folder / "bad.mp4"
    if kind == "empty file":
        path.touch()
    elif kind == "text":
        path.write_text("Once upon a time there was a text that called itself a video.\n" * 9)
    elif kind == "audio only":
        write_audio(path)
    elif kind == "without its moov":
        whole = write_video(folder / "whole.mp4", 50).read_bytes()
        path.write_bytes(whole[: whole.rindex(b"moov") - 4])
    elif kind == "without frames":
        write_video(path, 0)
    elif kind == "playlist":
        write_playlist(path)
    elif kind == "folder without images":
        (folder / "images").mkdir()
        (folder / "images" / "notes.txt").write_text("no images")
        return folder / "images"
    elif kind == "corrupt index":
        path = folder / "corrupt.longvlm"
        path.write_bytes(os.urandom(3000))
    elif kind == "unreachable":
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        return f"http://127.0.0.1:{port}/film.mp4"
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "empty file",
        "text",
        "audio only",
        "without its moov",
        "without frames",
        "playlist",
        "folder without images",
        "corrupt index",
        "unreachable",
    ],
)
def test_a_bad_video_is_refused_by_name(run: RunCommand, kind: str, tmp_path: Path, film: Path, model: Path) -> None:
    bad = bad_video(kind, tmp_path, film)
    complaint = run("ask", bad, "What happens?", "--model", model).must_complain(Path(bad).name)
    assert "root:" not in complaint.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("What?", "--start", "1:00"), "60 s"),
        (("What?", "--start", "3", "--end", "2"), "end"),
        (("What?", "--start", "soon"), "'soon'"),
        (("What?", "--fps", "-1"), "-1"),
        (("What?", "--fps", "1e12"), "1000 at most"),
        (("What?", "--num-frames", "200000000"), "10,000,000 at most"),
        (("What?", "--fps", "1", "--num-frames", "4"), "either"),
        (("What?", "--device", "abacus"), "'abacus'"),
        (("What?", "--dtype", "int3"), "'int3'"),
        (("What?", "--seed", "9" * 24), "9" * 24),
        (("What?", "--seed", "-" + "9" * 24), "-" + "9" * 24),
        (("What?", "--frame-rate", "5"), "film.mp4 carries its own"),
        (("What </s> <s>?",), "'</s>'"),
        ((" ",), "question is empty"),
        (("What?", ""), "question is empty"),
        (("What?", "long " * CONTEXT_LENGTH), str(CONTEXT_LENGTH)),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_a_bad_request_is_refused(
    run: RunCommand, film: Path, model: Path, arguments: tuple[str, ...], word: str
) -> None:
    run("ask", film, *arguments, "--model", model).must_complain(word)


def test_a_question_in_the_place_of_the_video_is_refused(run: RunCommand, film: Path, model: Path) -> None:
    run("ask", "Why? " * 100, film, "--model", model).must_complain("Why? Why?", "The video comes first")


def test_a_video_in_a_closed_folder_is_refused(run: RunCommand, model: Path, closed_folder: Path) -> None:
    run("ask", closed_folder / "film.mp4", "What?", "--model", model).must_complain("Permission denied")


def test_a_tiny_temperature_is_greedy(run: RunCommand, film_index: Path, model: Path) -> None:
    greedy, cold = (
        run("ask", film_index, "What?", "--model", model, *SHORT, "--temperature", temperature).must_succeed()
        for temperature in ("0", "1e-50")
    )
    assert cold == greedy


@pytest.mark.parametrize("name", ["/no/such/model", "no model at all!"])
def test_an_unknown_model_is_refused(run: RunCommand, film: Path, name: str) -> None:
    run("ask", film, "What?", "--model", name).must_complain(name)


def test_an_index_of_another_model_is_refused(run: RunCommand, film_index: Path, tmp_path: Path) -> None:
    other = save_tiny_checkpoint(tmp_path / "other", seed=1)
    run("ask", film_index, "What?", "--model", other).must_complain("tiny", "other")


def test_an_index_can_not_be_sampled_again(run: RunCommand, film_index: Path, model: Path) -> None:
    run("ask", film_index, "What?", "--fps", "1", "--model", model).must_complain("--fps")


@pytest.mark.parametrize("command", ["encode", "inspect"])
def test_an_output_that_can_not_be_written_is_refused_first(run: RunCommand, film: Path, command: str) -> None:
    run(command, film, "-o", "/no/such/folder/out.longvlm").must_complain("/no/such/folder")


# --- asking ---


def test_ask_prints_the_answer_alone(run: RunCommand, film: Path, model: Path) -> None:
    ended = run("ask", film, "What?", "--model", model, *SHORT).must_succeed()
    assert ended.stdout.strip()
    assert ended.stderr == "Note: the answer is cut short: more tokens were not allowed (--max-new-tokens 8).\n"
    several = run("ask", film, "What?", "What?", "--model", model, *SHORT).must_succeed()
    assert several.stdout == ended.stdout * 2
    hint, *asked, cut_short = several.stderr.splitlines()
    assert "put it in quotes" in hint and asked == ["> What?"] * 2
    assert cut_short.startswith("Note: 2 of 2 answers are cut short")


def test_an_answer_cut_by_the_context_is_told(run: RunCommand, film_index: Path, model: Path) -> None:
    question = "w" * (CONTEXT_LENGTH - 190)
    for form in ((), ("--json",)):
        ended = run("ask", film_index, question, "--model", model, "--max-new-tokens", "400", *form).must_succeed()
        assert ended.stderr.startswith("Note: the answer is cut short: the language model's context is full")
        assert ended.stderr.count("\n") == 1
        assert not form or json.loads(ended.stdout)["answers"]


VIDEO_OPTIONS = {
    "num_frames": 3,
    "fps": 2.0,
    "max_frames": 7,
    "start": "1",
    "end": "2",
    "sampling": "keyframe",
    "frame_rate": 4.0,
    "allow_references": True,
}


@pytest.mark.parametrize("field", dataclasses.fields(VideoOptions), ids=lambda field: field.name)
@pytest.mark.parametrize("command", ["ask", "encode"])
def test_every_option_of_videos_reaches_the_encoding(
    run: RunCommand,
    film: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    field: dataclasses.Field,
) -> None:
    def note(*_: object, **given: object) -> None:
        raise LongVLMError(f"saw {given[field.name]!r}")

    monkeypatch.setattr(LongVLM, "encode", note)
    monkeypatch.setattr(ask_command, "require_room", lambda *_: None)
    value, flag = VIDEO_OPTIONS[field.name], "--" + field.name.replace("_", "-")
    words = ["What?"] if command == "ask" else ["-o", tmp_path / "out.longvlm"]
    given = [flag] if value is True else [flag, value]
    run(command, film, *words, "--model", model, *given).must_complain(f"saw {value!r}")


def test_on_a_terminal_a_mistake_ends_no_chat(
    run: RunCommand, film_index: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("What </s>?\nWhat?\n"))
    ended = run("chat", film_index, "--model", model, *SHORT).must_succeed()
    assert "which the model reserves" in ended.stderr and "/quit" in ended.stderr
    assert run("ask", film_index, "What?", "--model", model, *SHORT).stdout.strip() in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ask", "What is </s>?"), "'</s>', which the model reserves"),
        (("ask", "w" * 2 * CONTEXT_LENGTH), "Ask a shorter question"),
        (("ask", "What?", "--seed", "9" * 30), "it must be a number of 64 bits"),
        (("ask", "What?", "--num-frames", "8000"), "12,002 of them visual, but the language model's context holds"),
        (("chat", "--num-frames", "8000"), "Look at fewer of the 100 frames (--num-frames"),
    ],
)
def test_what_no_video_would_be_answered_for_is_refused_before_it_is_encoded(
    run: RunCommand,
    film: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.setattr(LongVLM, "encode", lambda *_, **__: pytest.fail("it was encoded"))
    command, *others = arguments
    run(command, film, *others, "--model", model).must_complain(words)


def test_ask_json_is_one_object(run: RunCommand, film: Path, model: Path) -> None:
    ended = run("ask", film, "What happens?", "And why?", "--json", "--model", model, *SHORT).must_succeed()
    told = json.loads(ended.stdout)
    assert list(told) == JSON_KEYS and list(told["timings"]) == [*TIMING_KEYS, "total_seconds"]
    assert (told["video"], told["model"]) == (str(film), str(model))
    assert (told["frames"], told["segments"], told["visual_tokens"]) == (8, 2, 2 + 2 * 6)
    assert told["duration_seconds"] == pytest.approx(4.0)
    assert len(told["frame_times"]) == 8 and told["frame_times"] == sorted(told["frame_times"])
    assert [answer["question"] for answer in told["answers"]] == ["What happens?", "And why?"]
    parts = [told["timings"][key] for key in TIMING_KEYS]
    assert min(parts) > 0 and sum(parts) <= told["timings"]["total_seconds"]
    assert told["peak_memory_bytes"] > 50e6


def test_an_index_answers_like_its_video_which_may_be_gone(run: RunCommand, model: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "gone.mp4", 100)
    index = tmp_path / "gone.longvlm"
    direct = run("ask", video, "What?", "--model", model, *SHORT).must_succeed()
    encoded = run("encode", video, "-o", index, "--model", model).must_succeed()
    assert encoded.stdout == "" and "8 frames, 2 segments, 14 visual tokens" in encoded.stderr
    video.unlink()
    assert run("ask", index, "What?", "--model", model, *SHORT).must_succeed().stdout == direct.stdout


def test_a_name_that_is_no_text_does_no_harm(run: RunCommand, film: Path, model: Path, tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    try:
        strange.write_bytes(film.read_bytes())
    except OSError:
        pytest.skip("this file system accepts names in UTF-8 only")
    told = json.loads(run("ask", strange, "What?", "--json", "--model", model, *SHORT).must_succeed().stdout)
    assert Path(told["video"]).name == "caf\N{REPLACEMENT CHARACTER}.mp4"
    page = tmp_path / "report.html"
    run("inspect", strange, "-o", page, "--model", model).must_succeed()
    assert "<h1>caf" in page.read_text(encoding="utf-8")
    assert "caf" in run("plan", strange, "--model", model).must_succeed().stdout


def test_a_page_does_not_take_the_place_of_its_video(run: RunCommand, film: Path, model: Path, tmp_path: Path) -> None:
    copy, link = tmp_path / "copy.mp4", tmp_path / "page.html"
    copy.write_bytes(film.read_bytes())
    link.symlink_to(copy)
    for page in (copy, link):
        run("inspect", copy, "-o", page, "--model", model).must_complain(f"{page} is the video itself")
    assert copy.read_bytes() == film.read_bytes()


def test_what_is_secret_in_an_address_is_not_printed(run: RunCommand, film: Path, model: Path) -> None:
    with serve_folder(film.parent, ranges=True) as address:
        place = f"{address}/{film.name}"
        for command in (("plan",), ("ask", "What?", *SHORT)):
            ended = run(command[0], f"{place}?token=secret", *command[1:], "--json", "--model", model)
            assert json.loads(ended.must_succeed().stdout)["video"] == place
            assert "secret" not in ended.stdout + ended.stderr


def test_a_live_stream_is_not_encoded_to_be_inspected(
    run: RunCommand, film: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "live.ts", 50)
    monkeypatch.setattr(LongVLM, "encode", lambda *_, **__: pytest.fail("it was encoded"))
    with serve_folder(tmp_path, ranges=False, endless=True) as address:
        asked = ("inspect", f"{address}/live.ts", "-o", tmp_path / "page.html", "--fps", "1", "--max-frames", "3")
        run(*asked, "--model", model).must_complain("is a live stream, which can't be read twice")


def test_an_answer_is_printed_whatever_stdout_can_encode(film: Path, model: Path) -> None:
    command = [sys.executable, "-m", "longvlm", "ask", str(film), "Why?", "--model", str(model), *SHORT]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    asked = [*command, "--temperature", "2", "--seed", "3", "--max-new-tokens", "30"]
    ended = subprocess.run(asked, env=environment, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert b"?" in ended.stdout


def test_images_have_the_rate_that_is_given(run: RunCommand, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.fromarray(barcode(number)).save(folder / f"{number}.png")
    rate = ("--frame-rate", "4", "--model", model)
    told = json.loads(run("ask", folder, "What?", "--json", *SHORT, *rate).must_succeed().stdout)
    assert told["duration_seconds"] == 2 and told["frame_times"] == [number / 4 for number in range(7)]
    assert json.loads(run("plan", folder, "--json", *rate).must_succeed().stdout)["duration_seconds"] == 2
    page, kept = tmp_path / "report.html", tmp_path / "kept.longvlm"
    run("inspect", folder, "-o", page, *rate).must_succeed()
    assert "Frame at 0:01.25" in page.read_text(encoding="utf-8")
    run("encode", folder, "-o", kept, *rate).must_succeed()
    ended = run("ask", folder, "What?", "--index", kept, "--model", model, *SHORT).must_succeed()
    assert "is made anew: it holds the images at another rate (4 a second)" in ended.stderr


def test_fewer_frames_than_wanted_are_told(run: RunCommand, film: Path, model: Path, tmp_path: Path) -> None:
    ask = ("ask", film, "What?", "--num-frames", "40", "--model", model, *SHORT)
    assert "looked at" not in run(*ask).must_succeed().stderr
    by_keyframe = run(*ask, "--sampling", "keyframe").must_succeed().stderr.splitlines()
    assert by_keyframe[0].startswith("Note: looked at 9 different frames instead of 40: the nearest keyframes")
    short = write_video(tmp_path / "short.mp4", 5)
    ended = run("ask", short, "What?", "--model", model, *SHORT).must_succeed()
    assert "Note: looked at 5 different frames instead of 8: the video has no more" in ended.stderr


def test_an_index_may_be_given_as_an_address(run: RunCommand, film_index: Path, model: Path) -> None:
    plain, address = (
        run("ask", source, "What?", "--model", model, *SHORT).must_succeed().stdout
        for source in (film_index, film_index.as_uri())
    )
    assert plain == address


def test_start_and_end_slice_an_index(run: RunCommand, film_index: Path, model: Path) -> None:
    part = ("ask", film_index, "What?", "--json", "--model", model, *SHORT)
    told = json.loads(run(*part, "--start", "0:03").must_succeed().stdout)
    assert told["segments"] == 1 and told["frame_times"][0] > 1.5
    run(*part, "--start", "50").must_complain("film.mp4")
    run(*part, "--start", "3", "--end", "2").must_complain("--end")


def test_a_kept_index_is_used_while_it_fits(run: RunCommand, film: Path, model: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.longvlm"
    ask = ("ask", film, "What?", "--index", kept, "--model", model, *SHORT)
    first = run(*ask).must_succeed()
    made = kept.stat().st_mtime_ns
    assert run(*ask) == first
    assert kept.stat().st_mtime_ns == made
    again = run(*ask, "--num-frames", "4").must_succeed()
    assert "kept.longvlm is made anew: it holds other frames" in again.stderr
    assert VideoIndex.load(kept).num_frames == 4
    other_film = write_video(tmp_path / "other.mp4", 90)
    anew = run("ask", other_film, "What?", "--index", kept, "--model", model, *SHORT).must_succeed()
    assert "it holds another video (film.mp4)" in anew.stderr


def test_an_index_is_not_kept_in_another(run: RunCommand, film_index: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.longvlm"
    run("ask", film_index, "What?", "--index", other, "--model", model).must_complain("other.longvlm", "leave it out")
    assert not other.exists()


def test_a_file_that_is_no_index_is_not_overwritten(run: RunCommand, film: Path, model: Path, tmp_path: Path) -> None:
    precious = tmp_path / "letter.txt"
    precious.write_text("Dear Ada")
    run("ask", film, "What?", "--index", precious, "--model", model).must_complain("letter.txt")
    assert precious.read_text() == "Dear Ada"


def test_a_damaged_tail_is_told(run: RunCommand, film: Path, model: Path, tmp_path: Path) -> None:
    data = film.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) * 7 // 10])
    ended = run("ask", cut, "What?", "--model", model, *SHORT).must_succeed()
    assert ended.stdout.strip()
    warning = ended.stderr.splitlines()[0]
    assert warning.startswith("Warning: the end of cut.mp4 is damaged: the last ") and " s " in warning
    with warnings.catch_warnings(record=True) as caught:  # and not by Python's own way of warning as well
        warnings.simplefilter("always")
        told = run("ask", cut, "What?", "--model", model, *SHORT, "-v").must_succeed()
    assert told.stderr.count("damaged") == 1 and not [one for one in caught if "damaged" in str(one.message)]


def test_chat_reads_questions_from_a_pipe(
    run: RunCommand, film_index: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("ask", film_index, "What?", "--model", model, *SHORT).must_succeed()
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\n\nAnd then?\n/quit\nNever asked\n"))
    ended = run("chat", film_index, "--model", model, *SHORT).must_succeed()
    assert ended.stdout.startswith(first.stdout) and ended.stdout.count("\n") >= 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\nAnd then?"))
    assert run("chat", film_index, "--model", model, *SHORT) == ended


def test_a_chat_starts_over(run: RunCommand, film_index: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = ("chat", film_index, "--model", model, *SHORT)
    long = "w" * (CONTEXT_LENGTH // 2 - 90)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{long}\n{long}\n"))
    ended = run(*chat)
    assert ended.status == 2 and ended.stdout.strip()
    assert "The conversation so far takes up" in ended.stderr and "/new" in ended.stderr
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{long}\n/new\n{long}\n"))
    assert run(*chat).must_succeed().stdout == ended.stdout * 2


def test_questions_that_are_no_text_are_refused(
    run: RunCommand, film_index: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9?\n"), encoding="utf-8"))
    run("chat", film_index, "--model", model).must_complain("UTF-8")
    run("ask", film_index, os.fsdecode(b"caf\xe9?"), "--model", model).must_complain("UTF-8")


def test_the_demo_compares_answers_with_the_truth(run: RunCommand, model: Path) -> None:
    ended = run("demo", "--model", model).must_succeed()
    assert ended.stderr == ""
    assert "of 6 right. Encoding 180 s of video took" in ended.stdout
    for column in ("Question", "Answer", "Truth", "Time", "wrong"):
        assert column in ended.stdout


# --- the real program ---


# The program as a terminal starts it: what a shell runs in the background, as tests may be, ignores Ctrl-C.
PROGRAM = """
import signal
from longvlm.stages import video_access
video_access.NETWORK_TIMEOUT_SECONDS = 3600.0  # so that who waits for it is found out
signal.signal(signal.SIGINT, signal.default_int_handler)
from longvlm.cli import main
main()
"""


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def test_the_program_complains_without_noise(model: Path, tmp_path: Path) -> None:
    path = bad_video("text", tmp_path, tmp_path)
    process = start("ask", path, "What?", "--model", model, stdout=subprocess.PIPE)
    stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert Ended(process.returncode, stdout, stderr).must_complain("bad.mp4").stderr.count("\n") == 1


def test_ctrl_c_ends_at_once_while_an_address_does_not_answer(model: Path) -> None:
    """The main thread is inside a library's C code then, where Python can't raise KeyboardInterrupt."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_SECONDS)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/film.mp4"
        process = start("ask", address, "What?", "--model", model, stdout=subprocess.PIPE)
        connection, _ = server.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, stdout, stderr) == (130, "", "Interrupted.\n")


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="no list of open files here")
def test_nothing_is_left_behind_in_the_process(run: RunCommand) -> None:
    """Neither threads nor open files, nor anything that ends the process at a later Ctrl-C."""

    def state() -> tuple[int, list[str], int]:
        open_files = sorted(path.name for path in Path("/dev/fd").iterdir())
        return threading.active_count(), open_files, signal.set_wakeup_fd(-1)

    gc.collect()  # what earlier tests left open
    before = state()
    for _ in range(3):
        run("--version").must_succeed()
    wait_until(lambda: state() == before)


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start("--version", stdout=writing)
    os.close(writing)
    assert process.communicate(timeout=PATIENCE_SECONDS)[1] == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_no_room_for_the_output_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        process = start("--version", stdout=full)
        stderr = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 2
    assert stderr == "Error: Can't write the output (No space left on device); choose another place.\n"


def test_a_name_that_is_too_long_is_told(run: RunCommand, model: Path) -> None:
    run("weights", "consolidate", model, "-o", "w" * 300).must_complain("www", "name too long")


def test_a_defect_has_a_status_of_its_own(run: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts tell it from 1, with which a command ends that had to leave something out."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("longvlm.commands.demo.demo", fail)
    ended = run("demo")
    assert ended.status == 70
    assert ended.stderr.startswith("Traceback") and ended.stderr.endswith("ZeroDivisionError: ours\n")
