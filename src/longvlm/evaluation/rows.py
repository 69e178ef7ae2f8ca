"""A benchmark's questions as one kind of row, read from the JSON files that its users have. Free of heavy imports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from longvlm.errors import LongVLMError

VIDEO_FIELDS = ("video_name", "video_id")
QUESTION_FIELDS = ("question", "Q")
ANSWER_FIELDS = ("answer", "A")


@dataclass(frozen=True)
class Row:
    """A question about a video and its true answer; in a consistency test, two wordings of the question.

    `clip_seconds`: start and end of the part that is asked about, None for the whole video.
    `source` is the annotation as the file has it; with the predictions added, it is a line of the output.
    `predictions` are those that the file itself brought along. `groups` names what the row counts to in
    tables, such as {"duration": "long"}; `options` are the texts of a multiple choice, in order of their letters.
    """

    part: str
    video_name: str
    questions: tuple[str, ...]
    answer: str
    source: Mapping[str, Any]
    groups: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    predictions: tuple[str, ...] | None = None
    clip_seconds: tuple[float, float] | None = None

    @cached_property
    def key(self) -> str:
        """A hash of all that a prediction depends on, and of one that is given: equal rows share one prediction."""
        return content_hash([self.part, self.video_name, self.questions, self.source, self.predictions])

    @property
    def prediction_fields(self) -> tuple[str, ...]:
        return prediction_fields(len(self.questions))


def prediction_fields(num_questions: int) -> tuple[str, ...]:
    return ("pred",) if num_questions == 1 else tuple(f"pred{number}" for number in range(1, num_questions + 1))


def content_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Annotation:
    """One object of an annotation file; `place` names file and row, the first is row 0."""

    place: str
    fields: Mapping[str, Any]

    def find(self, names: Sequence[str]) -> Any:
        """The first of these fields that is there. Raises LongVLMError, naming the row, where none is."""
        for name in names:
            if self.fields.get(name) is not None:
                return self.fields[name]
        wanted = " or ".join(map(repr, names))
        known = ", ".join(sorted(map(str, self.fields))) or "nothing"
        raise LongVLMError(f"{self.place} lacks the field {wanted}; it has: {known}.")

    def text(self, names: Sequence[str]) -> str:
        """The same as text that is not blank; numbers are written out."""
        value = self.find(names)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            here = next(name for name in names if self.fields.get(name) is not None)
            raise LongVLMError(f"{self.place}, field {here!r} is {shown(value)}; text is expected.")
        return str(value).strip()

    def make_row(self, part: str, questions: Sequence[str], answer: str, *, video_name: str, **more: Any) -> Row:
        """The row of this annotation; predictions in it are taken out of `source`."""
        names = prediction_fields(len(questions))
        given = [self.fields.get(name) for name in names]
        source = {name: value for name, value in self.fields.items() if name not in names}
        predictions = tuple(map(str, given)) if all(isinstance(one, str) for one in given) else None
        return Row(part, video_name, tuple(questions), answer, source, predictions=predictions, **more)


def read_annotations(path: Path) -> list[Annotation]:
    """The objects of a JSON list, or of JSON lines in a file named *.jsonl. Raises LongVLMError, naming the file."""
    return list_annotations(path, read_json(path))


def list_annotations(path: Path, rows: Any) -> list[Annotation]:
    """What `path` holds, `rows`, as annotations. Raises LongVLMError where it is no list of objects."""
    if not isinstance(rows, list):
        raise LongVLMError(f"{path} holds {shown(rows)}; a JSON list of annotations is expected.")
    if not rows:
        raise LongVLMError(f"{path} holds no annotations; give a list with at least one.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise LongVLMError(f"{path}, row {number} is {shown(row)}; an object with fields is expected.")
    return [Annotation(f"{path}, row {number}", row) for number, row in enumerate(rows)]


def read_json(path: Path) -> Any:
    """What an annotation file holds; JSON lines are a list. Raises LongVLMError, naming the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        return [json.loads(line) for line in text.split("\n") if line.strip()] if _has_lines(path) else json.loads(text)
    except FileNotFoundError as error:
        raise LongVLMError(f"No such annotation file: {path}. Check --annotations.") from error
    except OSError as error:
        raise LongVLMError(f"Can't read the annotations {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # broken UTF-8 is a ValueError, too
        raise LongVLMError(f"{path} is not readable as JSON ({error}); download or write it again.") from error


def _has_lines(path: Path) -> bool:
    return path.suffix == ".jsonl"


def shown(value: Any) -> str:
    """What a JSON value is, in a few words for a message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return json.dumps(value)[:60]
