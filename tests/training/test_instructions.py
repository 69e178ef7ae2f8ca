"""Instruction files of both formats: what they become, and what is said where a row is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from longvlm.errors import LongVLMError
from longvlm.training.instructions import Conversation, Turn, convert_instructions, read_instructions

SHORT = [
    {"q": "What happens?", "a": "A dog runs.", "video_id": "v_1"},
    {"q": "Where?", "a": "In a park.", "video_id": "v_2"},
    {"q": "Why?", "a": "It is happy.", "video_id": "v_1"},
]
LONG = {
    "id": "row-7",
    "video": "v_1.pkl",
    "conversations": [
        {"from": "human", "value": "<video>\nWhat happens?"},
        {"from": "gpt", "value": "A dog runs."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "In a park."},
    ],
}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def with_turns(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"id": "x", "conversations": [{"from": speaker, "value": text} for speaker, text in turns], **fields}


class TestReading:
    def test_questions_and_answers_get_the_video_on_alternating_sides(self, tmp_path: Path) -> None:
        conversations = read_instructions(write(tmp_path / "short.json", SHORT))
        assert conversations[0] == Conversation(
            "v_1", "v_1", (Turn("human", "What happens?\n<video>"), Turn("gpt", "A dog runs."))
        )
        assert [conversation.turns[0].text for conversation in conversations[1:]] == [
            "<video>\nWhere?",
            "Why?\n<video>",
        ]

    def test_half_an_emoji_is_a_question_mark(self, tmp_path: Path) -> None:
        row = with_turns(("human", "caf\ud83d"), ("gpt", "\ude00 yes"))
        (conversation,) = read_instructions(write(tmp_path / "rows.json", [row]))
        assert [turn.text for turn in conversation.turns] == ["caf?", "? yes"]

    @pytest.mark.parametrize("video", ["v_1", "v_1.pkl", "v_1.mp4", "v_1.longvlm"])
    def test_conversations_are_kept_turn_by_turn_and_videos_go_by_their_id(self, tmp_path: Path, video: str) -> None:
        (conversation,) = read_instructions(write(tmp_path / "long.json", [{**LONG, "video": video}]))
        assert (conversation.id, conversation.video) == ("row-7", "v_1")
        assert [turn.speaker for turn in conversation.turns] == ["human", "gpt", "human", "gpt"]
        assert conversation.turns[0].text == "<video>\nWhat happens?"

    def test_a_conversation_may_be_about_no_video(self, tmp_path: Path) -> None:
        row = with_turns(("human", "Hello?"), ("gpt", "Hello."))
        (conversation,) = read_instructions(write(tmp_path / "text.json", [row]))
        assert conversation.video is None

    def test_a_dot_within_an_id_is_no_suffix(self, tmp_path: Path) -> None:
        rows = [{**SHORT[0], "video_id": "clip.003"}]
        assert read_instructions(write(tmp_path / "short.json", rows))[0].video == "clip.003"


class TestMistakes:
    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"q": "What?", "video_id": "v_1"}, ["row 1", "lacks the field 'a'", "'q', 'video_id'"]),
            ({**SHORT[0], "a": 3}, ["row 1", "field 'a' is 3", "text"]),
            ({**SHORT[0], "video_id": "/"}, ["row 1", "field 'video_id' is '/', which names no file"]),
            ({**SHORT[0], "q": "  "}, ["row 1", "field 'q' is empty"]),
            ({**SHORT[0], "q": "<video> what?"}, ["row 1", "'q' holds <video>"]),
            ({"question": "What?"}, ["row 1", "'conversations'", "'video_id'", "but 'question'"]),
            ("What?", ["row 1", "the text 'What?'", "object"]),
            (with_turns(video="v_1"), ["row 1", "'conversations' is an empty list"]),
            (with_turns(("gpt", "Yes."), video="v_1"), ["turn 0", "'from' is 'gpt'", "'human'"]),
            (with_turns(("human", "<video> what?"), video="v_1"), ["row 1", "ends with a question"]),
            (with_turns(("human", "What?"), ("gpt", "That."), video="v_1"), ["row 1", "<video> 0 times", "once"]),
            (with_turns(("human", "<video>"), ("gpt", "That.")), ["row 1", "<video> 1 times", "'video'"]),
            (with_turns(("human", "What?"), ("gpt", "<video>"), video="v_1"), ["turn 1", "answer", "<video>"]),
            ({**LONG, "conversations": ["What?"]}, ["turn 0", "object"]),
            ({**LONG, "conversations": [{"from": "human"}]}, ["turn 0", "lacks the field 'value'"]),
            ({**LONG, "video": 7}, ["row 1", "field 'video' is 7"]),
            ({**LONG, "image": "1.jpg"}, ["row 1", "'image'"]),
        ],
    )
    def test_an_error_names_file_row_and_field(self, tmp_path: Path, row: Any, words: list[str]) -> None:
        path = write(tmp_path / "some.json", [SHORT[0], row])
        with pytest.raises(LongVLMError) as error:
            read_instructions(path)
        for word in [str(path), *words]:
            assert word in str(error.value)

    @pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xfa", b"[" * 100_000, b""])
    def test_what_is_not_json_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "some.json").write_bytes(content)
        with pytest.raises(LongVLMError, match=r"some\.json is not JSON"):
            read_instructions(tmp_path / "some.json")

    def test_what_is_no_list_or_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(LongVLMError, match=r"some\.json holds an object; a JSON list"):
            read_instructions(write(tmp_path / "some.json", {"rows": SHORT}))
        with pytest.raises(LongVLMError, match=re.escape(str(tmp_path / "none.json"))):
            read_instructions(tmp_path / "none.json")


class TestConversion:
    def test_writes_what_reads_back_as_the_same_conversations(self, tmp_path: Path) -> None:
        source = write(tmp_path / "short.json", SHORT)
        rows = convert_instructions(source).rows
        assert rows[1] == {
            "id": "v_2",
            "video": "v_2",
            "conversations": [{"from": "human", "value": "<video>\nWhere?"}, {"from": "gpt", "value": "In a park."}],
        }
        assert read_instructions(write(tmp_path / "train.json", rows)) == read_instructions(source)

    def test_pickle_names_are_those_of_the_reference(self, tmp_path: Path) -> None:
        rows = convert_instructions(write(tmp_path / "short.json", SHORT), pickle_names=True).rows
        assert [row["video"] for row in rows] == ["v_1.pkl", "v_2.pkl", "v_1.pkl"]

    def test_rows_in_the_training_format_keep_all_their_fields(self, tmp_path: Path) -> None:
        rows = convert_instructions(write(tmp_path / "long.json", [{**LONG, "source": "made"}])).rows
        assert rows == [{**LONG, "video": "v_1", "source": "made"}]

    def test_missing_videos_are_dropped_only_when_asked_and_leave_the_others_sides_alone(self, tmp_path: Path) -> None:
        text_only = with_turns(("human", "Hello?"), ("gpt", "Hello."))
        source = write(tmp_path / "mixed.json", [SHORT[1], SHORT[0], text_only, SHORT[2]])
        assert convert_instructions(source).num_dropped == 0
        converted = convert_instructions(source, available={"v_1"})
        assert converted.num_dropped == 1
        assert [row.get("video") for row in converted.rows] == ["v_1", None, "v_1"]
        assert converted.rows[0]["conversations"][0]["value"] == "<video>\nWhat happens?"
