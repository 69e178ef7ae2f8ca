"""What the zero-shot question answering benchmarks share: short true answers, in one file or in two to be joined.

A judge says of every answer whether it is right, and how good it is from 0 to 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longvlm.errors import LongVLMError
from longvlm.evaluation.benchmark import Axis, Published
from longvlm.evaluation.rows import ANSWER_FIELDS, QUESTION_FIELDS, VIDEO_FIELDS, Annotation, Row, read_annotations

ID_FIELDS = ("question_id", "id")


def axes(part: str) -> tuple[Axis, ...]:
    return (Axis("answer", part, "qa", "verdict"),)


def published(longvlm: tuple[float, float], video_chatgpt: tuple[float, float]) -> Published:
    """Figures as (accuracy in %, score from 0 to 5)."""
    return tuple(
        (name, {"accuracy": accuracy, "score": score})
        for name, (accuracy, score) in (("LongVLM", longvlm), ("Video-ChatGPT", video_chatgpt))
    )


def reader(
    part: str,
    *,
    video_fields: Sequence[str] = VIDEO_FIELDS,
    groups: Callable[[Annotation], Mapping[str, str]] = lambda _: {},
) -> Callable[[Sequence[str]], list[Row]]:
    """A function from one file of questions with answers, or a file of each, to rows."""

    def read(files: Sequence[str]) -> list[Row]:
        return [
            annotation.make_row(
                part,
                [annotation.text(QUESTION_FIELDS)],
                annotation.text(ANSWER_FIELDS),
                video_name=_video_name(annotation, video_fields),
                groups=groups(annotation),
            )
            for annotation in read_joined(files)
        ]

    return read


def _video_name(annotation: Annotation, video_fields: Sequence[str]) -> str:
    """A row that has been answered may come without its video, as Video-ChatGPT writes them: then its id tells.

    ActivityNet-QA's ids are the video's name and a number; rows of one video have to be known as such.
    """
    identifier = _id_of(annotation)
    is_named = any(annotation.fields.get(name) is not None for name in video_fields)
    if is_named or identifier is None or "pred" not in annotation.fields:
        return annotation.text(video_fields)
    return re.sub(r"_\d+$", "", identifier)


def read_joined(files: Sequence[str]) -> list[Annotation]:
    """Questions with their answers. Raises LongVLMError where two files do not belong together."""
    if len(files) > 2:
        raise LongVLMError(
            f"--annotations names {len(files)} files; give one with questions and answers, or one of each."
        )
    read = [read_annotations(Path(file)) for file in files]
    if len(read) == 1:
        return read[0]
    has_questions = [any(name in one[0].fields for name in QUESTION_FIELDS) for one in read]
    if sum(has_questions) != 1:
        count = "both" if all(has_questions) else "neither"
        raise LongVLMError(
            f"--annotations {files[0]} {files[1]}: {count} of the files has questions; "
            "give one with questions, and one with answers."
        )
    questions, answers = (read[0], read[1]) if has_questions[0] else (read[1], read[0])
    by_id = _by_id(answers)
    if by_id is not None and _by_id(questions) is not None:
        return [_join(question, by_id.get(_id_of(question))) for question in questions]
    if len(questions) != len(answers):
        raise LongVLMError(
            f"{files[0]} and {files[1]} have no question_id to join them on, and {len(questions)} questions "
            f"for {len(answers)} answers; give two files that belong together."
        )
    return [_join(question, answer) for question, answer in zip(questions, answers, strict=True)]


def _join(question: Annotation, answer: Annotation | None) -> Annotation:
    if answer is None:
        raise LongVLMError(f"{question.place} (question_id {_id_of(question)}) has no answer in the other file.")
    return Annotation(question.place, {**answer.fields, **question.fields})


def _id_of(annotation: Annotation) -> str | None:
    value: Any = next((annotation.fields[name] for name in ID_FIELDS if name in annotation.fields), None)
    return None if value is None else str(value)


def _by_id(annotations: Sequence[Annotation]) -> dict[str | None, Annotation] | None:
    """Annotations by their id; None where some have none. Raises LongVLMError for an id that occurs twice."""
    by_id: dict[str | None, Annotation] = {}
    for annotation in annotations:
        name = _id_of(annotation)
        if name in by_id and name is not None:
            raise LongVLMError(
                f"{annotation.place} has the question_id {name} of {by_id[name].place}; make them differ."
            )
        by_id[name] = annotation
    return None if None in by_id else by_id
