"""Whole evaluations with the bundled model: resumed, half failing, judged, and reported."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from stub_judge import StubJudge

from longvlm import LongVLM, LongVLMError
from longvlm.cli import main
from longvlm.evaluation.benchmarks import BENCHMARKS
from longvlm.evaluation.judging import PROMPTS_FOLDER, load_prompts
from longvlm.evaluation.predict import Asking
from longvlm.evaluation.run import JudgeChoice, Outcome, hash_weights, run_benchmark
from longvlm.whole_files import locked

WriteJson = Callable[[str, object], str]
SHORT = Asking(answer={"max_new_tokens": 12}, batch_size=3)
QUESTIONS = [
    ("one", "What appears first?", "a red circle"),
    ("one", "Does a red circle appear?", "yes"),
    ("two", "Does a blue star appear?", "no"),
    ("one", "Does a green ring appear?", "no"),
    ("two", "What appears last?", "a pink square"),
]


@pytest.fixture(scope="module")
def model() -> LongVLM:
    return LongVLM.from_pretrained(device="cpu", dtype="float32")


@pytest.fixture
def qa_file(write_json: WriteJson) -> str:
    return write_json("qa.json", [{"video_name": v, "question": q, "answer": a, "type": 3} for v, q, a in QUESTIONS])


@pytest.fixture
def no_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take the longest; a few tests draw them."""
    monkeypatch.setattr("longvlm.evaluation.run.draw_chart", lambda results, path: path.touch())


def run(model: LongVLM | None, files: list[str], films: Path, output: Path, task: str, **more: Any) -> Outcome:
    benchmark = BENCHMARKS[task]
    settings = {"weights": "w", "asking": SHORT, "judge": None, **more}
    return run_benchmark(benchmark, benchmark.read(files), output, model=model, videos=films, **settings)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Counted:
    """A model that counts what it is asked to do, and stops when told to."""

    def __init__(self, model: LongVLM, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> None:
        self.encoded: list[str] = []
        self.asked: list[list[str]] = []
        encode, ask = model.encode, model.ask

        def counting_encode(video: Any, **more: Any) -> Any:
            self.encoded.append(Path(video).name)
            return encode(video, **more)

        def counting_ask(index: Any, question: Any, **more: Any) -> Any:
            if stop_after is not None and len(self.asked) == stop_after:
                raise KeyboardInterrupt
            self.asked.append([question] if isinstance(question, str) else question)
            return ask(index, question, **more)

        monkeypatch.setattr(model, "encode", counting_encode)
        monkeypatch.setattr(model, "ask", counting_ask)


@pytest.mark.usefixtures("no_chart")
def test_videos_are_encoded_once_and_a_stopped_run_goes_on(
    model: LongVLM, films: Path, qa_file: str, tmp_path: Path
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    with pytest.MonkeyPatch.context() as patch:
        counted = Counted(model, patch)
        outcome = run(model, [qa_file], films, whole, "activitynet-qa")
    assert counted.encoded == ["v_one.mp4", "two.mkv"] and [len(batch) for batch in counted.asked] == [3, 2]
    assert outcome.failures == [] and outcome.stopped is None
    assert (
        "Published, judged by language models, and so not comparable with the offline judge: LongVLM: accuracy 47.6, "
        "score 3.3; Video-ChatGPT: accuracy 35.2, score 2.7. --judge-model gives figures of that kind."
    ) in outcome.results.explanations
    lines = lines_of(whole / "predictions-activitynet-qa.jsonl")
    assert {line["question"] for line in lines} == {question for _, question, _ in QUESTIONS}
    assert all(line["pred"] and line["answer"] and line["type"] == 3 for line in lines)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Counted(model, patch, stop_after=1)
        run(model, [qa_file], films, halved, "activitynet-qa")
    with (halved / "predictions-activitynet-qa.jsonl").open("a") as file:
        file.write('{"question": "broken o')  # as a kill while writing leaves it
    with pytest.MonkeyPatch.context() as patch:
        counted = Counted(model, patch)
        run(model, [qa_file], films, halved, "activitynet-qa")
        assert counted.encoded == ["two.mkv"] and [len(batch) for batch in counted.asked] == [2]
        run(model, [qa_file], films, halved, "activitynet-qa")
        assert len(counted.asked) == 1, "a second run asks nothing"
    assert lines_of(halved / "predictions-activitynet-qa.jsonl") == lines
    assert (halved / "results.json").read_text() == (whole / "results.json").read_text()


@pytest.mark.usefixtures("no_chart")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=["gpu", "processor"],
)
def test_what_a_failed_batch_held_is_free_before_its_rows_are_asked_alone(
    model: LongVLM, films: Path, qa_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Cache:
        pass

    held: list[weakref.ref[Cache]] = []
    ask = LongVLM.ask

    def ask_what_fits(asked: LongVLM, video: Any, question: Any, **settings: Any) -> Any:
        if isinstance(question, str):
            assert held and all(one() is None for one in held)
            return ask(asked, video, question, **settings)
        cache = Cache()
        held.append(weakref.ref(cache))
        raise type(error)(*error.args)  # a new one: a traceback holds what it went through

    monkeypatch.setattr(LongVLM, "ask", ask_what_fits)
    outcome = run(model, [qa_file], films, tmp_path / "out", "activitynet-qa")
    assert len(held) == 2 and outcome.failures == []


@pytest.mark.usefixtures("no_chart")
def test_what_fails_is_recorded_and_tried_again(
    model: LongVLM, films: Path, write_json: WriteJson, tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "one.mp4").symlink_to(films / "v_one.mp4")
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "index.longvlm").write_bytes(b"no index")
    rows = [{"video_name": name, "question": "What?", "answer": "x"} for name in ("one", "broken", "gone", "index")]
    rows.append({"video_name": "one", "question": "Why <vid_patch>?", "answer": "x"})
    outcome = run(model, [write_json("qa.json", rows)], folder, tmp_path / "out", "msvd-qa")
    reasons = {
        (line["video"], line.get("question", "")[:4]): line for line in lines_of(tmp_path / "out/failures.jsonl")
    }
    assert set(reasons) == {("broken", ""), ("gone", ""), ("index", ""), ("one", "Why ")}
    assert "no file gone, vidgone" in reasons["gone", ""]["reason"]
    assert len(outcome.failures) == outcome.results.num_unanswered == 4
    assert outcome.results.measures[0].value.n == 1
    assert "4 rows have no answer" in (tmp_path / "out/results.md").read_text()
    (folder / "gone.mkv").symlink_to(films / "two.mkv")
    assert len(run(model, [write_json("qa.json", rows)], folder, tmp_path / "out", "msvd-qa").failures) == 3


@pytest.mark.usefixtures("no_chart")
def test_stored_indexes_answer_like_their_videos(model: LongVLM, films: Path, qa_file: str, tmp_path: Path) -> None:
    folder = tmp_path / "indexes"
    folder.mkdir()
    for name in ("v_one.mp4", "two.mkv"):
        model.encode(films / name).save(folder / Path(name).with_suffix(".longvlm").name)
    run(model, [qa_file], films, tmp_path / "direct", "activitynet-qa")
    run(model, [qa_file], folder, tmp_path / "stored", "activitynet-qa")
    name = "predictions-activitynet-qa.jsonl"
    assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "stored" / name).read_bytes()
    for encode, words in (
        (
            {"num_frames": 4},
            "about one: the stored index was sampled with num_frames=None, and num_frames=4 is asked for",
        ),
        (
            {"sampling": "keyframe"},
            "about one: the stored index holds exact frames, and --sampling keyframe is asked for",
        ),
    ):
        with pytest.raises(LongVLMError, match=f"None of the 5 rows could be asked, first of them {words}"):
            run(model, [qa_file], folder, tmp_path / "other", "activitynet-qa", asking=Asking(encode, SHORT.answer))


def note_spans(model: LongVLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The parts of videos, in seconds, that the model is asked about; the list grows as it is."""
    asked: list[tuple[float, float]] = []
    ask = model.ask

    def noting(indexes: Any, questions: Any, **more: Any) -> Any:
        asked.extend((float(i.segment_spans_seconds[0, 0]), float(i.segment_spans_seconds[-1, 1])) for i in indexes)
        return ask(indexes, questions, **more)

    monkeypatch.setattr(model, "ask", noting)
    return asked


@pytest.mark.usefixtures("no_chart")
def test_a_part_of_a_stored_index_is_asked_where_one_is_named(
    model: LongVLM, films: Path, qa_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "indexes"
    folder.mkdir()
    for name in ("v_one.mp4", "two.mkv"):
        model.encode(films / name, num_frames=20).save(folder / Path(name).with_suffix(".longvlm").name)
    asked = note_spans(model, monkeypatch)
    asking = Asking({"start": "0:06", "end": None}, SHORT.answer, batch_size=5)
    run(model, [qa_file], folder, tmp_path / "out", "activitynet-qa", asking=asking)
    assert len(asked) == 5 and all(4 < start <= 6 and end == pytest.approx(10, abs=0.3) for start, end in asked)


@pytest.mark.usefixtures("no_chart")
def test_a_stored_part_does_not_pass_for_the_whole(
    model: LongVLM, films: Path, write_json: WriteJson, tmp_path: Path
) -> None:
    folder = tmp_path / "indexes"
    folder.mkdir()
    model.encode(films / "v_one.mp4", num_frames=20, end=5).save(folder / "v_one.longvlm")
    file = write_json("qa.json", [{"video": "v_one", "question": "What?", "answer": "y"}])
    with pytest.raises(LongVLMError, match=r"holds a part of its video \(0 s to 5 s\)"):
        run(model, [file], folder, tmp_path / "out", "msvd-qa")
    asking = Asking({"start": None, "end": "0:05"}, SHORT.answer)
    assert run(model, [file], folder, tmp_path / "out", "msvd-qa", asking=asking).failures == []
    more = Asking({"start": "0:03", "end": "0:06"}, SHORT.answer)
    with pytest.raises(LongVLMError, match=r"holds a part .* \(0 s to 5 s\), and more of it is asked about"):
        run(model, [file], folder, tmp_path / "more", "msvd-qa", asking=more)
    model.encode(films / "v_one.mp4", num_frames=20, end=500).save(
        folder / "v_one.longvlm"
    )  # beyond the end: the whole
    assert run(model, [file], folder, tmp_path / "whole", "msvd-qa").failures == []


@pytest.mark.usefixtures("no_chart")
def test_rows_that_name_a_part_are_asked_about_that_part(
    model: LongVLM, films: Path, write_json: WriteJson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"video": "v_one.mp4", "question": "What?", "candidates": ["x", "y"], "answer": "y"}
    file = write_json(
        "mc.json", [row, {**row, "start": 2, "end": 5}, {**row, "start": 2, "end": 5, "question": "Who?"}]
    )
    asked = note_spans(model, monkeypatch)
    counted = Counted(model, monkeypatch)
    run(model, [file], films, tmp_path / "out", "multiple-choice")
    assert len(counted.encoded) == 2, "once for the whole, and once for the part"
    assert asked == [pytest.approx(span, abs=0.6) for span in ((0, 10), (2, 5), (2, 5))]


@pytest.mark.usefixtures("no_chart")
def test_damage_is_told_also_by_a_run_that_asks_nothing(
    model: LongVLM, films: Path, qa_file: str, tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "one.mp4").symlink_to(films / "v_one.mp4")
    whole = (films / "two.mkv").read_bytes()
    (folder / "two.mkv").write_bytes(whole[: int(0.7 * len(whole))])
    for _ in range(2):
        outcome = run(model, [qa_file], folder, tmp_path / "out", "activitynet-qa")
        assert outcome.damaged == ["two"]
        assert "1 videos are damaged" in (tmp_path / "out/results.md").read_text()


@pytest.mark.usefixtures("no_chart")
def test_a_folder_belongs_to_one_evaluation(model: LongVLM, films: Path, qa_file: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(model, [qa_file], films, output, "activitynet-qa")
    with pytest.raises(LongVLMError, match='with weights "w", and now it is "trained"; choose another -o'):
        run(model, [qa_file], films, output, "activitynet-qa", weights="trained")
    with pytest.raises(LongVLMError, match="with videos"):
        run(model, [qa_file], tmp_path, output, "activitynet-qa")
    other = LongVLM.from_pretrained(device="cpu", dtype="bfloat16")
    with pytest.raises(LongVLMError, match='with precision "float32", and now it is "bfloat16"'):
        run(other, [qa_file], films, output, "activitynet-qa")
    for changes, named in (
        ({"asking": Asking(answer={"max_new_tokens": 12, "temperature": 1.0})}, "answer"),
        ({"asking": Asking(answer=SHORT.answer, encode={"fps": 2})}, "encode"),
    ):
        with pytest.raises(LongVLMError, match=f"holds an evaluation with {named}"):
            run(model, [qa_file], films, output, "activitynet-qa", **changes)
    compressed = LongVLM.from_pretrained(
        device="cpu", dtype="float32", compression=replace(model.compression, tokens_per_segment=8)
    )
    with pytest.raises(LongVLMError, match=r"with compression"):
        run(compressed, [qa_file], films, output, "activitynet-qa")
    with locked(output), pytest.raises(LongVLMError, match="Another process is at work in"):
        run(model, [qa_file], films, output, "activitynet-qa")
    with pytest.raises(LongVLMError, match="with task"):
        run(model, [qa_file], films, output, "msvd-qa")
    with pytest.raises(LongVLMError, match=r"None of the 2 videos .* for one\.mp4; check --videos"):
        run(model, [qa_file], tmp_path, tmp_path / "new", "activitynet-qa")


def test_weights_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = hash_weights(tmp_path)
    (tmp_path / "README.md").write_text("?")
    assert hash_weights(tmp_path) == before
    (tmp_path / "mm_projector.bin").write_bytes(b"1")
    assert hash_weights(tmp_path) != before
    before = hash_weights(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ 1 }}")
    assert hash_weights(tmp_path) != before


def rate(prompt: str, attempt: int) -> str:
    if "<first_question>" in prompt:
        return "{'score': 3}"
    return (
        "{'score': 5}"
        if "<answer>\nright\n</answer>" in prompt
        else "no dictionary"
        if "odd" in prompt
        else "{'score': 1}"
    )


def test_five_axes_of_given_predictions(
    stub: StubJudge, write_json: WriteJson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.script = rate
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    row = {"video_name": "a", "Q": "What?", "A": "right"}
    generic = [{**row, "pred": "right"}, {**row, "pred": "wrong", "video_name": "b"}, {**row, "Q": "odd", "pred": "x"}]
    double = [{"video_name": "a", "Q1": "What?", "Q2": "Which?", "A": "right", "pred1": "right", "pred2": "wrong"}]
    files = [
        write_json("generic.json", generic),
        write_json("temporal.json", generic[:1]),
        write_json("consistency.json", double),
    ]
    benchmark = BENCHMARKS["video-chatgpt"]
    judge = JudgeChoice("stub", stub.url, load_prompts(benchmark.axes, None))
    outcome = run(None, files, tmp_path, tmp_path / "out", "video-chatgpt", judge=judge)
    judged = {one.name: one for one in outcome.results.measures if one.judge != "offline"}
    shown = {name: (one.value.n, one.unjudged, one.value.mean) for name, one in judged.items()}
    assert shown == {
        "correctness": (2, 1, 3.0),
        "detail": (2, 1, 3.0),
        "context": (2, 1, 3.0),
        "temporal": (1, 0, 5.0),
        "consistency": (1, 0, 3.0),
        "mean of the axes": (8, 0, pytest.approx(3.4)),
    }
    assert dict(judged["detail"].published) == {"LongVLM": 2.86, "Video-ChatGPT": 2.52}
    offline = {one.name: one.value.mean for one in outcome.results.measures if one.judge == "offline"}
    assert offline["correctness: exact match"] == pytest.approx(100 / 3)
    assert offline["consistency: token F1"] == 0.0, "the worse of two answers"
    described = dict(outcome.results.judge or {})
    assert len(described.pop("prompts")) == 16
    assert described == {"model": "stub", "url": stub.url, "versions": ["stub-2026-01-01"]}
    before = len(stub.prompts)
    again = run(None, files, tmp_path, tmp_path / "out", "video-chatgpt", judge=judge)
    assert len(stub.prompts) == before and again.results.as_json() == outcome.results.as_json()
    text = (tmp_path / "out/results.md").read_text()
    assert "| correctness | 2 of 3 | 3.00 | 1.00 to 5.00 | 2.76 | 2.40 |" in text
    assert (tmp_path / "out/results.png").read_bytes().startswith(b"\x89PNG")
    bars = sorted(bar.get_width() for axes in figures[0].axes for bar in axes.patches)
    assert bars == pytest.approx(sorted(one.value.mean for one in outcome.results.measures))


@pytest.mark.usefixtures("no_chart")
def test_a_judge_that_fails_leaves_the_offline_results(stub: StubJudge, write_json: WriteJson, tmp_path: Path) -> None:
    stub.script = lambda prompt, attempt: (401, "{}")
    rows = [{"video_name": "a", "question": "What?", "answer": "x", "pred": "x"}]
    judge = JudgeChoice("stub", stub.url, load_prompts(BENCHMARKS["msvd-qa"].axes, None))
    outcome = run(None, [write_json("qa.json", rows)], tmp_path, tmp_path / "out", "msvd-qa", judge=judge)
    assert "check OPENAI_API_KEY" in str(outcome.stopped)
    measures = json.loads((tmp_path / "out/results.json").read_text())["measures"]
    assert {(one["judge"], one["measure"], one["n"], one["mean"]) for one in measures} == {
        ("stub", "accuracy", 0, None),
        ("stub", "score", 0, None),
        ("offline", "exact match", 1, 100.0),
        ("offline", "token F1", 1, 100.0),
    }


def test_multiple_choice_by_duration_and_task(write_json: WriteJson, tmp_path: Path) -> None:
    row = {"question": "?", "options": ["A. x", "B. y"], "answer": "A"}
    rows = [
        {**row, "video": "a", "duration": "short", "task_type": "count", "pred": "A"},
        {**row, "video": "b", "duration": "long", "task_type": "count", "pred": "(B)"},
        {**row, "video": "c", "duration": "long", "task_type": "$ order $", "pred": "Answer: A"},
        {**row, "video": "c", "duration": "long", "task_type": "$ order $", "pred": "I don't know"},
    ]
    outcome = run(None, [write_json("mc.json", rows)], tmp_path, tmp_path / "out", "multiple-choice")
    shown = {(one.name, one.group): (one.value.n, one.value.mean) for one in outcome.results.measures}
    assert shown == {
        ("accuracy", None): (4, 50.0),
        ("accuracy", "duration short"): (1, 100.0),
        ("accuracy", "duration long"): (3, pytest.approx(100 / 3)),
        ("accuracy", "task count"): (2, 50.0),
        ("accuracy", "task $ order $"): (2, 50.0),
        ("chance", None): (4, 50.0),
    }
    assert "1 of 4 replies name no letter; they count as wrong." in outcome.results.notes


# --- the command ---


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["longvlm", "eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command_from_end_to_end(
    films: Path,
    stub: StubJudge,
    write_json: WriteJson,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    questions = [{"question": q, "video_name": v, "question_id": i} for i, (v, q, _) in enumerate(QUESTIONS)]
    answers = [{"answer": a, "type": 3, "question_id": i} for i, (_, _, a) in enumerate(QUESTIONS)]
    questions.append({"question": "Who?", "video_name": "gone", "question_id": 9})
    answers.append({"answer": "he", "type": 8, "question_id": 9})
    arguments = ["activitynet-qa", "--videos", films, "--annotations", write_json("q.json", questions)]
    arguments += [write_json("a.json", answers), "-o", tmp_path / "out", "--max-new-tokens", "12"]
    arguments += ["--judge-model", "stub", "--judge-url", stub.url]
    assert command(monkeypatch, *arguments) == 1
    printed = capsys.readouterr()
    assert "accuracy" in printed.out and "47.6 %" in printed.out and "Traceback" not in printed.err
    assert "1 of 6 rows could not be asked" in printed.err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "settings.json",
        "lock",
        "predictions-activitynet-qa.jsonl",
        "failures.jsonl",
        "judgements.jsonl",
        *(f"results.{suffix}" for suffix in ("json", "md", "png")),
    }
    assert command(monkeypatch, *arguments[:2], films, *arguments[3:]) == 1
    assert len(stub.prompts) == 5, "nothing is judged twice"

    (tmp_path / "prompts").mkdir()
    own = (PROMPTS_FOLDER / "qa.txt").read_text().replace("\n---\n", "\n---\nIn words of our own. ")
    (tmp_path / "prompts/qa.txt").write_text(own)
    arguments[arguments.index(tmp_path / "out")] = tmp_path / "out again"
    assert command(monkeypatch, *arguments, "--prompts", tmp_path / "prompts") == 1
    assert len(stub.prompts) == 10 and all(text.startswith("In words of our own. ") for text in stub.prompts[5:])


def test_questions_without_an_answer_are_left_out_and_counted(
    write_json: WriteJson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"question": "?", "option 0": "x", "option 1": "y", "pred": "B"}
    questions = write_json("questions.json", [{**row, "q_uid": name} for name in ("a", "b")])
    answers = write_json("subset_answers.json", {"b": 1})
    assert command(monkeypatch, "multiple-choice", "--annotations", questions, answers, "-o", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert "Warning: 1 of 2 questions have no answer among the 1 given; they are left out." in printed.err
    assert "100.0" in printed.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dance"], "There is no task 'dance'; choose one of video-chatgpt"),
        (["msvd-qa"], "name the files with --annotations"),
        (["msvd-qa", "--annotations", "none.json"], "No such annotation file: none.json"),
        (["msvd-qa", "--annotations", "qa.json"], "name the folder of their videos with --videos"),
        (["msvd-qa", "--annotations", "qa.json", "--videos", "nowhere"], "--videos nowhere is not a folder"),
        (["msvd-qa", "--annotations", "qa.json", "--judge-url", "http://x"], "name it with --judge-model"),
        (["msvd-qa", "--annotations", "qa.json", "--judge-model", "x"], "set the environment variable OPENAI_API_KEY"),
        (
            ["msvd-qa", "--annotations", "qa.json", "--judge-model", "x", "--prompts", "no"],
            "--prompts no is not a folder",
        ),
        (["multiple-choice", "--annotations", "qa.json", "--judge-model", "x"], "leave out --judge-model"),
        (["msvd-qa", "--annotations", "qa.json", "--frame-rate", "2"], "leave it out"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    write_json: WriteJson,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_json("qa.json", [{"video_name": "a", "question": "q", "answer": "a"}])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert command(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and words in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["qa.json"]
