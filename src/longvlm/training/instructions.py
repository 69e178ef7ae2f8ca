"""Instruction data: Video-ChatGPT's questions and answers and LLaVA's conversations, read, checked, converted.

The training format is LLaVA's: a JSON list of `{"id", "video", "conversations": [{"from": "human" or "gpt",
"value": text}, …]}` in which `<video>` stands where the video goes. Free of heavy imports.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longvlm.errors import LongVLMError
from longvlm.index.video_folders import shorten, video_id

VIDEO_PLACEHOLDER = "<video>"


@dataclass(frozen=True)
class Turn:
    """One utterance; `<video>` in a human's text is where the video stands."""

    speaker: Literal["human", "gpt"]
    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns about one video: human and gpt in turn, the human first and gpt last.

    `video` is the video's id, without the suffix of any file, and None for a conversation about no video;
    exactly one human turn holds `<video>`, once, where there is one. Made by `read_instructions`.
    """

    id: str
    video: str | None
    turns: tuple[Turn, ...]


def read_instructions(path: str | Path) -> list[Conversation]:
    """The conversations of a file in Video-ChatGPT's format or in LLaVA's, row by row.

    Raises LongVLMError, naming file, row (the first is row 0) and field, where something is missing or wrong.
    """
    path = Path(path)
    return [parse_row(row, f"{path}, row {number}", number) for number, row in enumerate(read_rows(path))]


def digest_file(path: Path) -> str:
    """A hash of a file of instructions, to tell whether it has changed. Raises LongVLMError, naming it."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise LongVLMError(f"No such file: {path}. Give a JSON file of instructions.") from error
    except OSError as error:
        raise LongVLMError(f"Can't read {path}: {error.strerror or error}.") from error


def read_rows(path: Path) -> list[Any]:
    """The items of a JSON list, as they are. Raises LongVLMError, naming the file, for anything else."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise LongVLMError(f"No such file: {path}. Give a JSON file of instructions.") from error
    except OSError as error:
        raise LongVLMError(f"Can't read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # broken UTF-8 is a ValueError, too
        raise LongVLMError(f"{path} is not JSON ({error}); download or write it again.") from error
    if not isinstance(rows, list):
        raise LongVLMError(f"{path} holds {_kind(rows)}; a JSON list of instructions is expected.")
    return rows


def parse_row(row: Any, place: str, number: int) -> Conversation:
    """Row `number` of a file as a conversation; `place` names file and row in errors.

    A question and answer become two turns, with the video after the question in even rows and before it in odd
    ones, as the paper's training data has it.
    """
    if not isinstance(row, Mapping):
        raise LongVLMError(f"{place} is {_kind(row)}; an object with fields is expected.")
    if "conversations" in row:
        return _parse_conversation(row, place)
    if not {"q", "a", "video_id"} & row.keys():
        raise LongVLMError(
            f"{place} has neither the field 'conversations' (LLaVA's format) nor 'q', 'a' and 'video_id' "
            f"(Video-ChatGPT's), but {', '.join(map(repr, sorted(row))) or 'no fields at all'}."
        )
    question, answer, video = (_text(row, field, place) for field in ("q", "a", "video_id"))
    for field, text in (("q", question), ("a", answer)):
        if VIDEO_PLACEHOLDER in text:
            raise LongVLMError(
                f"{place}, field {field!r} holds {VIDEO_PLACEHOLDER}, which conversion puts in itself; remove it."
            )
    first = f"{question}\n{VIDEO_PLACEHOLDER}" if number % 2 == 0 else f"{VIDEO_PLACEHOLDER}\n{question}"
    video = _video(video, "video_id", place)
    return Conversation(video, video, (Turn("human", first), Turn("gpt", answer)))


def _parse_conversation(row: Mapping[str, Any], place: str) -> Conversation:
    if "image" in row:
        raise LongVLMError(f"{place} has the field 'image'; only videos and text can be trained on: leave it out.")
    video = _video(_text(row, "video", place), "video", place) if row.get("video") is not None else None
    given = row["conversations"]
    if not isinstance(given, list) or not given:
        raise LongVLMError(f"{place}, field 'conversations' is {_kind(given)}; a list of turns is expected.")
    turns = tuple(_parse_turn(turn, number, place) for number, turn in enumerate(given))
    if len(turns) % 2:
        raise LongVLMError(f"{place}, field 'conversations' ends with a question; an answer from 'gpt' must follow.")
    count = sum(turn.text.count(VIDEO_PLACEHOLDER) for turn in turns)
    if count != (video is not None):
        wanted = "exactly once where the row has a video" if video is not None else "only where the row has a 'video'"
        raise LongVLMError(
            f"{place}, field 'conversations' holds {VIDEO_PLACEHOLDER} {count} times; it must stand there {wanted}."
        )
    conversation_id = row.get("id", video)
    return Conversation("" if conversation_id is None else str(conversation_id), video, turns)


def _video(name: str, field: str, place: str) -> str:
    try:
        return video_id(name)
    except LongVLMError as error:
        raise LongVLMError(f"{place}, field {field!r} is {shorten(name)!r}, which names no file or address.") from error


def _parse_turn(turn: Any, number: int, place: str) -> Turn:
    place = f"{place}, turn {number} of 'conversations'"
    if not isinstance(turn, Mapping):
        raise LongVLMError(f"{place} is {_kind(turn)}; an object with 'from' and 'value' is expected.")
    expected: Literal["human", "gpt"] = "gpt" if number % 2 else "human"
    speaker, text = _text(turn, "from", place), _text(turn, "value", place)
    if speaker != expected:
        raise LongVLMError(
            f"{place}, field 'from' is {speaker!r}, but it is {expected!r}'s turn: 'human' and 'gpt' alternate."
        )
    if speaker == "gpt" and VIDEO_PLACEHOLDER in text:
        raise LongVLMError(
            f"{place}, field 'value' is an answer and holds {VIDEO_PLACEHOLDER}; put it into a question."
        )
    return Turn(expected, text)


def _text(row: Mapping[str, Any], field: str, place: str) -> str:
    """A field that must hold text that is not blank."""
    if field not in row:
        known = ", ".join(map(repr, sorted(map(str, row)))) or "no fields at all"
        raise LongVLMError(f"{place} lacks the field {field!r}; it has {known}.")
    value = row[field]
    if not isinstance(value, str):
        raise LongVLMError(f"{place}, field {field!r} is {_kind(value)}; text is expected.")
    if not value.strip():
        raise LongVLMError(f"{place}, field {field!r} is empty; fill it in, or remove the row.")
    return value.encode("utf-8", "replace").decode()  # half an emoji, which JSON may hold, is no text to a tokenizer


@dataclass(frozen=True)
class Converted:
    """Rows in the training format, and how many were left out since their video is not `available`."""

    rows: list[dict[str, Any]]
    num_dropped: int


def convert_instructions(
    path: str | Path, *, available: Collection[str] | None = None, pickle_names: bool = False
) -> Converted:
    """A file of instructions, in either format, as rows of the training format; all are checked before.

    With `available`, ids of videos, rows about others are dropped. `pickle_names` writes `ID.pkl` for a
    video, as the reference does, instead of its id. Rows that are in the training format already keep all
    their fields. Raises LongVLMError as `read_instructions` does.
    """
    path, kept, num_dropped = Path(path), [], 0
    for number, row in enumerate(read_rows(path)):
        conversation = parse_row(row, f"{path}, row {number}", number)
        if available is not None and conversation.video is not None and conversation.video not in available:
            num_dropped += 1
            continue
        kept.append(_training_row(conversation, row if "conversations" in row else {}, pickle_names))
    return Converted(kept, num_dropped)


def _training_row(conversation: Conversation, given: Mapping[str, Any], pickle_names: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"id": conversation.id}
    if conversation.video is not None:
        row["video"] = f"{conversation.video}.pkl" if pickle_names else conversation.video
    row["conversations"] = [{"from": turn.speaker, "value": turn.text} for turn in conversation.turns]
    return {**row, **{field: value for field, value in given.items() if field not in row}}


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return json.dumps(value)
