"""Every spelling of the benchmarks' files, and the letters of multiple choices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longvlm import LongVLMError
from longvlm.commands.eval import TASKS
from longvlm.evaluation.benchmark import find_video
from longvlm.evaluation.benchmarks import BENCHMARKS
from longvlm.evaluation.benchmarks.multiple_choice import LeftOutWarning, parse_letter
from longvlm.evaluation.rows import read_annotations

WriteJson = Callable[[str, object], str]


def read(task: str, *files: str) -> list[Any]:
    return BENCHMARKS[task].read(files)


def test_the_command_line_knows_every_benchmark() -> None:
    assert tuple(BENCHMARKS) == TASKS


# --- Video-ChatGPT ---


@pytest.mark.parametrize(
    ("plain", "double"),
    [
        (
            {"video_name": "v_1", "Q": "What?", "A": "This."},
            {"video_name": "v_1", "Q1": "What?", "Q2": "Which?", "A": "This."},
        ),
        (
            {"video_id": "v_1", "question": "What?", "answer": "This.", "question_id": 7},
            {"video_id": "v_1", "question": "What?", "question2": "Which?", "answer": "This.", "question_id": 7},
        ),
    ],
)
def test_video_chatgpt_in_both_spellings(write_json: WriteJson, plain: Any, double: Any) -> None:
    files = [
        write_json("consistency_qa.json", [double]),
        f"temporal={write_json('b.json', [plain])}",
        write_json("Generic.json", [plain]),
    ]
    consistency, temporal, generic = read("video-chatgpt", *files)
    assert (consistency.part, temporal.part, generic.part) == ("consistency", "temporal", "generic")
    assert consistency.questions == ("What?", "Which?") and generic.questions == temporal.questions == ("What?",)
    assert {row.video_name for row in (consistency, temporal, generic)} == {"v_1"}
    assert consistency.answer == "This." and generic.source == plain and generic.predictions is None
    assert consistency.prediction_fields == ("pred1", "pred2") and generic.prediction_fields == ("pred",)
    assert len({row.key for row in (consistency, temporal, generic)}) == 3


def test_predictions_in_the_file_are_taken_up(write_json: WriteJson) -> None:
    row = {"video_name": "v_1", "Q": "What?", "A": "This."}
    generic = write_json("generic.json", [{**row, "pred": "That."}, row])
    double = {"video_name": "v", "Q1": "a", "Q2": "b", "A": "c", "pred1": "d", "pred2": ""}
    lines = write_json("consistency.jsonl", json.dumps(double) + "\n\n")
    one, two, three = read("video-chatgpt", generic, lines)
    assert (one.predictions, two.predictions, three.predictions) == (("That.",), None, ("d", ""))
    assert one.source == two.source == row and one.key != two.key, "an answer given is of its own"


def test_a_file_that_does_not_say_its_part_is_refused(write_json: WriteJson) -> None:
    rows = [{"video_name": "v", "Q": "q", "A": "a"}]
    with pytest.raises(LongVLMError, match=r"write generic=.*mine\.json"):
        read("video-chatgpt", write_json("mine.json", rows))
    with pytest.raises(LongVLMError, match="are both the generic questions"):
        read("video-chatgpt", write_json("generic.json", rows), write_json("generic2.json", rows))


# --- zero-shot question answering ---

QUESTIONS = [
    {"question": "Who?", "video_name": "1QIUV7WYKXg", "question_id": "v_1_1"},
    {"question": "Where?", "video_name": "1QIUV7WYKXg", "question_id": "v_1_2"},
]
ANSWERS = [
    {"answer": "home", "type": 6, "question_id": "v_1_2"},
    {"answer": "a man", "type": 3, "question_id": "v_1_1"},
]


@pytest.mark.parametrize("swapped", [False, True])
def test_activitynet_qa_is_joined_on_question_id(write_json: WriteJson, swapped: bool) -> None:
    files = [write_json("q.json", QUESTIONS), write_json("a.json", ANSWERS)]
    rows = read("activitynet-qa", *(files[::-1] if swapped else files))
    assert [(row.questions, row.answer, row.groups["type"]) for row in rows] == [
        (("Who?",), "a man", "yes/no"),
        (("Where?",), "home", "location"),
    ]
    assert rows[0].source == {**QUESTIONS[0], "answer": "a man", "type": 3}


def test_activitynet_qa_row_by_row_and_with_id(write_json: WriteJson) -> None:
    bare = [{name: value for name, value in row.items() if name != "question_id"} for row in (*QUESTIONS, *ANSWERS)]
    rows = read("activitynet-qa", write_json("q.json", bare[:2]), write_json("a.json", bare[2:]))
    assert [row.answer for row in rows] == ["home", "a man"]
    renamed = [{**row, "id": row["question_id"]} for row in (*QUESTIONS, *ANSWERS)]
    for row in renamed:
        del row["question_id"]
    rows = read("activitynet-qa", write_json("q.json", renamed[:2]), write_json("a.json", renamed[2:]))
    assert [row.answer for row in rows] == ["a man", "home"]
    joined = [{"id": "v_1_1", "question": "Who?", "answer": "a man", "pred": "A woman"}]
    (row,) = read("activitynet-qa", write_json("pred.json", joined))
    assert row.video_name == "v_1", "questions about one video are known as such"
    assert (row.answer, row.predictions, row.groups) == ("a man", ("A woman",), {})


@pytest.mark.parametrize(
    ("questions", "answers", "words"),
    [
        (QUESTIONS, ANSWERS[:1], r"q\.json, row 0 \(question_id v_1_1\) has no answer"),
        (QUESTIONS, QUESTIONS, "both of the files has questions"),
        (ANSWERS, ANSWERS, "neither of the files has questions"),
        (QUESTIONS, [ANSWERS[0], ANSWERS[0]], r"row 1 has the question_id v_1_2 of"),
        (QUESTIONS, [{"answer": "x"}], "2 questions for 1 answers"),
        ([{"question": "Who?", "question_id": "v_1_1"}], ANSWERS, r"row 0 lacks the field 'video_name' or 'video_id'"),
        ([{**QUESTIONS[0], "question": " "}], ANSWERS, r"row 0, field 'question' is \" \"; text is expected"),
        ([{**QUESTIONS[0], "question": {}}], ANSWERS, r"field 'question' is an object; text"),
        (["Who?"], ANSWERS, r"q\.json, row 0 is \"Who\?\"; an object"),
        ([], ANSWERS, r"q\.json holds no annotations"),
        ({}, ANSWERS, r"q\.json holds an object; a JSON list"),
        ("[{", ANSWERS, r"q\.json is not readable as JSON"),
        ("[" * 100_000, ANSWERS, r"q\.json is not readable as JSON"),
    ],
)
def test_bad_files_are_named(write_json: WriteJson, questions: Any, answers: Any, words: str) -> None:
    with pytest.raises(LongVLMError, match=words) as caught:
        read("activitynet-qa", write_json("q.json", questions), write_json("a.json", answers))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LongVLMError, match=r"No such annotation file: .*none\.json"):
        read("msvd-qa", str(tmp_path / "none.json"))
    with pytest.raises(LongVLMError, match="Can't read the annotations"):
        read("msvd-qa", str(tmp_path))
    with pytest.raises(LongVLMError, match="names 3 files"):
        read("msvd-qa", "a", "b", "c")


@pytest.mark.parametrize(
    ("task", "row", "files"),
    [
        ("activitynet-qa", {"video_name": "x"}, ("x.mp4", "v_x.mkv", "v_x.webm", "x.longvlm", "v_x.longvlm")),
        ("msvd-qa", {"video_name": "x_1_2"}, ("x_1_2.avi",)),
        ("msvd-qa", {"video_id": 1301}, ("vid1301.avi", "1301.mp4")),
        ("msrvtt-qa", {"video_id": 6513, "id": 1, "category_id": 2}, ("video6513.mp4",)),
        ("msrvtt-qa", {"video": "video6513"}, ("video6513.mp4",)),
        ("tgif-qa", {"gif_name": "tumblr_1"}, ("tumblr_1.gif", "tumblr_1.mp4")),
        ("tgif-qa", {"video_name": "tumblr_1.gif"}, ("tumblr_1.gif", "tumblr_1.longvlm", "tumblr_1.mp4")),
    ],
)
def test_videos_are_found(write_json: WriteJson, tmp_path: Path, task: str, row: Any, files: tuple[str, ...]) -> None:
    (one,) = read(task, write_json("qa.json", [{**row, "question": "Who?", "answer": "he"}]))
    folder = tmp_path / "videos"
    folder.mkdir()
    assert find_video(folder, one.video_name, BENCHMARKS[task]) is None
    for file in files:
        (folder / file).touch()
        assert find_video(folder, one.video_name, BENCHMARKS[task]) == folder / file
        (folder / file).unlink()


def test_a_stored_index_comes_first(tmp_path: Path) -> None:
    for name in ("v_x.longvlm", "x.mp4"):
        (tmp_path / name).touch()
    assert find_video(tmp_path, "x", BENCHMARKS["activitynet-qa"]) == tmp_path / "v_x.longvlm"


# --- multiple choice ---

OPTIONS = ["a cat", "a dog", "a cow", "vitamin C."]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        (" b\n", "B"),
        ("B)", "B"),
        ("**B**", "B"),
        ("Answer: B", "B"),
        ("answer: (b).", "B"),
        ("The answer is B.", "B"),
        ("The correct option is (B)", "B"),
        ("B. a dog", "B"),
        ("(B) a dog, since it barks.", "B"),
        ("Answer: B. a dog", "B"),
        ("D. vitamin C.", "D"),
        ("The answer is option B.", "B"),
        ("B\nThe dog barks.", "B"),
        ("B, since it barks", "B"),
        ("B - a dog", "B"),
        ("(B)a dog", "B"),
        ("**B.** a dog", "B"),
        ("[B]", "B"),
        ("B, because A is no animal", "B"),
        ("A dog.", "B"),
        ("a dog", "B"),
        ("B</s>", "B"),
        ("Assistant: B", "B"),
        ("It is B.", "B"),
        ("B is correct", "B"),
        ("A is the right answer.", "A"),
        ("B because it barks", "B"),
        ("The answer is B because it barks.", "B"),
        ("The answer is B which barks.", "B"),
        ("The answer is a dog.", "B"),
        ("It is a cow", "C"),
        ("The answer is A horse", None),
        ("Option B is wrong", None),
        ("B is wrong", None),
        ("The answer is B because it isn't C.", None),
        ("The answer is B or C", None),
        ("E", None),
        ("B or C", None),
        ("B. or C.", None),
        ("B, C", None),
        ("B - C", None),
        ("B, if not C", None),
        ("A\nB\nC", None),
        ("B.A.", None),
        ("A horse", None),
        ("Because", None),
        ("I think it is B", None),
        ("", None),
        ("...", None),
    ],
)
def test_letters(reply: str, letter: str | None) -> None:
    assert parse_letter(reply, OPTIONS) == letter


@pytest.mark.parametrize("words", ["answer ", "the answer is  ", "It is\n\n", "Answer :  ", "the best option is "])
def test_a_reply_that_repeats_itself_is_read_at_once(words: str) -> None:
    assert parse_letter(200 * words + "none", OPTIONS) is None
    assert parse_letter(200 * words + "B.", OPTIONS) == "B"


@pytest.mark.parametrize(
    ("reply", "options", "letter"),
    [
        ("B. J. K. Rowling", ["Stephen King", "J. K. Rowling", "Dan Brown"], "B"),
        ("(B) U.S. flag", ["a", "U.S. flag", "c"], "B"),
        ("A. A. Lincoln", ["A. Lincoln", "B. Obama"], "A"),
    ],
)
def test_an_options_text_may_begin_with_an_initial(reply: str, options: list[str], letter: str) -> None:
    assert parse_letter(reply, options) == letter


def test_the_text_of_two_equal_options_is_no_answer() -> None:
    assert parse_letter("YES", ["yes", "Yes.", "no"]) is None


@pytest.mark.parametrize(
    ("reply", "options", "letter"),
    [
        ("-5", ["5", "-5", "0"], "B"),
        ("5", ["5", "-5", "0"], "A"),
        ("+", ["+", "-", "x"], "A"),
        ("C++", ["C", "C++", "Java"], "B"),
        ("", ["+", "3", "7"], None),
        ("...", ["+", "3", "7"], None),
    ],
)
def test_of_options_that_differ_in_signs_the_very_text_counts(
    reply: str, options: list[str], letter: str | None
) -> None:
    assert parse_letter(reply, options) == letter


@pytest.mark.parametrize(
    ("reply", "letter"), [("a", "B"), ("v", "C"), ("(v)", "C"), ("A", "A"), ("C", "C"), ("B. a", "B"), ("V", "C")]
)
def test_options_that_are_letters_themselves(reply: str, letter: str | None) -> None:
    assert parse_letter(reply, ["e", "a", "v"]) == letter


BENCHMARK_ROWS: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    "Video-MME": (
        {
            "video_id": "001",
            "videoID": "film",
            "duration": "short",
            "task_type": "Counting Problem",
            "question_id": "001-1",
            "options": ["A. one", "B. two", "C. three", "D. four"],
            "answer": "C",
        },
        "C",
        {"duration": "short", "task": "Counting Problem"},
    ),
    "MLVU": (
        {
            "video": "film.mp4",
            "duration": 480.7,
            "candidates": ["one", "two", "three"],
            "answer": "three",
            "question_type": "count",
        },
        "C",
        {"duration": "2 to 15 min", "task": "count"},
    ),
    "LongVideoBench": (
        {
            "video_id": "film",
            "video_path": "film.mp4",
            "candidates": ["1", "2", "0"],
            "correct_choice": 2,
            "duration": 12.3,
            "duration_group": 15,
            "question_category": "T2O",
        },
        "C",
        {"duration": "up to 15 s", "task": "T2O"},
    ),
    "EgoSchema": ({"q_uid": "film", **{f"option {i}": f"C does {i}" for i in range(5)}, "answer": "2"}, "C", {}),
    "EgoSchema on the hub": ({"video_idx": "film", "option": ["C runs", "C sits", "C eats"], "answer": "2"}, "C", {}),
    "MVBench": ({"video": "film.webm", "candidates": ["up", "down", "left"], "answer": "left"}, "C", {}),
    "one letter": ({"video_name": "film", "choices": ["C", "A", "B"], "answer": "C"}, "C", {}),
}


@pytest.mark.parametrize("name", BENCHMARK_ROWS)
def test_multiple_choice_in_many_spellings(write_json: WriteJson, name: str) -> None:
    given, letter, groups = BENCHMARK_ROWS[name]
    (row,) = read("multiple-choice", write_json("mc.json", [{**given, "question": "How many?"}]))
    assert (row.answer, row.groups) == (letter, groups)
    assert row.video_name.split(".")[0] == "film"
    lines = row.questions[0].splitlines()
    assert lines[0] == "How many?" and lines[1] == f"A. {row.options[0]}" and "A. A." not in row.questions[0]


def test_the_truth_may_be_an_option_that_is_a_letter(write_json: WriteJson) -> None:
    row = {"video": "film.mp4", "question": "Which letter?", "candidates": ["l", "v", "e"]}
    rows = read("multiple-choice", write_json("mc.json", [{**row, "answer": one} for one in row["candidates"]]))
    assert [one.answer for one in rows] == ["A", "B", "C"]


def test_several_files_are_several_tasks_and_rows_may_ask_about_a_part(write_json: WriteJson) -> None:
    row = {"video": "film.mp4", "question": "What?", "candidates": ["x", "y"], "answer": "y"}
    files = [
        write_json("action_sequence.json", [{**row, "start": 1.5, "end": 9}]),
        write_json("counting.json", [row, {**row, "task_type": "own"}]),
    ]
    rows = read("multiple-choice", *files)
    assert [one.groups for one in rows] == [{"task": "action_sequence"}, {"task": "counting"}, {"task": "own"}]
    assert [one.clip_seconds for one in rows] == [(1.5, 9.0), None, None]


def test_video_mme_with_questions_under_each_video(write_json: WriteJson) -> None:
    questions = [{"question": f"q{i}", "options": ["A. x", "B. y"], "answer": "B", "task_type": "t"} for i in range(2)]
    rows = read(
        "multiple-choice", write_json("mc.json", [{"video_id": "1", "duration": "long", "questions": questions}])
    )
    assert [row.questions[0].splitlines()[0] for row in rows] == ["q0", "q1"]
    assert rows[0].groups == {"duration": "long", "task": "t"}


def _egoschema(write_json: WriteJson) -> str:
    """Its questions, which have no answers."""
    options = {f"option {number}": f"C does {number}" for number in range(5)}
    return write_json("questions.json", [{"q_uid": name, "question": "What?", **options} for name in ("a", "b", "c")])


def test_egoschemas_questions_and_its_file_of_answers(write_json: WriteJson) -> None:
    questions = _egoschema(write_json)
    with pytest.warns(LeftOutWarning, match="1 of 3 questions have no answer among the 2 given; they are left out"):
        rows = read("multiple-choice", write_json("subset_answers.json", {"c": 3, "a": 0}), questions)
    assert [(row.video_name, row.answer, row.groups) for row in rows] == [("a", "A", {}), ("c", "D", {})]
    assert [row.source["answer"] for row in rows] == [0, 3]


def test_files_of_answers_that_fit_no_question_are_refused(write_json: WriteJson) -> None:
    answers = write_json("subset_answers.json", {"x": 3})
    with pytest.raises(LongVLMError, match="None of 3 questions has an answer in the file of 1 answers"):
        read("multiple-choice", _egoschema(write_json), answers)
    with pytest.raises(LongVLMError, match=r"subset_answers\.json: answers, and no questions; name their file, too"):
        read("multiple-choice", answers)
    with pytest.raises(LongVLMError, match="holds an object; a JSON list of annotations is expected"):
        read("multiple-choice", write_json("mc.json", {"rows": [{}]}))


def test_a_question_that_is_no_object_is_named(write_json: WriteJson) -> None:
    question = {"question": "q", "options": ["A. x", "B. y"], "answer": "B"}
    rows = [{"video_id": "1", "questions": [question]}, {"video_id": "2", "questions": [question, "q1"]}]
    path = write_json("mc.json", rows)
    with pytest.raises(LongVLMError) as caught:
        read("multiple-choice", path)
    assert str(caught.value) == f'{path}, row 1, question 1 is "q1"; an object with fields is expected.'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "E"}, "the answer is 'E'; a letter from A to B"),
        ({"answer": 2}, "the answer is '2'"),
        ({"answer": True}, "the answer is 'True'"),
        ({"start": 9, "end": 1.5}, "its part is from 9 to 1.5; 'start' and 'end' in seconds"),
        ({"start": 9}, "its part is from 9 to null"),
        ({"options": ["A. x"]}, "a list of 2 to 26 texts"),
        ({"options": "x, y"}, "a list of 2 to 26 texts"),
        ({"options": None}, "lacks the field 'options' or 'candidates'"),
    ],
)
def test_bad_choices_are_named(write_json: WriteJson, change: Any, words: str) -> None:
    row = {"video": "v", "question": "q", "options": ["A. x", "B. y"], "answer": "A", **change}
    with pytest.raises(LongVLMError, match=words) as caught:
        read("multiple-choice", write_json("mc.json", [row]))
    assert "mc.json, row 0" in str(caught.value)


def test_videos_with_suffixes_in_capitals_are_found(tmp_path: Path) -> None:
    (tmp_path / "v_x.MP4").touch()
    assert find_video(tmp_path, "x", BENCHMARKS["activitynet-qa"]) == tmp_path / "v_x.MP4"
    assert find_video(tmp_path, "x" * 300, BENCHMARKS["activitynet-qa"]) is None  # longer than a file's name may be


def test_no_videos_outside_the_folder_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    (folder / "part").mkdir(parents=True)
    for place in (tmp_path, folder / "part"):
        (place / "x.mp4").touch()
    for name in ("../x", "../x.mp4", "part/../../x.mp4", str(tmp_path / "x.mp4"), str(tmp_path / "x")):
        assert find_video(folder, name, BENCHMARKS["multiple-choice"]) is None, name
    assert find_video(folder, "part/x.mp4", BENCHMARKS["multiple-choice"]) == folder / "part" / "x.mp4"


def test_json_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = "one\u2028two\u0085three"
    path.write_text(json.dumps({"question": text}, ensure_ascii=False) + "\r\n\n", encoding="utf-8")
    assert [one.fields for one in read_annotations(path)] == [{"question": text}]
