"""The Video-ChatGPT benchmark: open answers, rated from 0 to 5 on five axes; three files of questions.

Maaz et al., Video-ChatGPT, ACL 2024, section 4; LongVLM, ECCV 2024, table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longvlm.errors import LongVLMError
from longvlm.evaluation.benchmark import Axis, Benchmark
from longvlm.evaluation.rows import ANSWER_FIELDS, QUESTION_FIELDS, VIDEO_FIELDS, Annotation, Row, read_annotations

PARTS = ("generic", "temporal", "consistency")
_FIRST_WORDING, _SECOND_WORDING = ("Q1", *QUESTION_FIELDS), ("Q2", "question2")


def read(files: Sequence[str]) -> list[Row]:
    """Rows of the parts whose files are given, as PART=FILE or as a file whose name says the part.

    Raises LongVLMError where that is unclear, a part is given twice, or a row lacks a field.
    """
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for file in files:
        part, path = split_part(file)
        if part in seen:
            raise LongVLMError(f"--annotations: {file} and {seen[part]} are both the {part} questions; give one.")
        seen[part] = file
        rows += [_row(annotation, part) for annotation in read_annotations(path)]
    return rows


def split_part(file: str) -> tuple[str, Path]:
    stated, _, rest = file.partition("=")
    if stated in PARTS and rest:
        return stated, Path(rest)
    named = [part for part in PARTS if part in Path(file).stem.lower()]
    if len(named) != 1:
        raise LongVLMError(
            f"--annotations {file}: its name does not say which questions it has; "
            f"write generic={file}, temporal={file} or consistency={file}."
        )
    return named[0], Path(file)


def _row(annotation: Annotation, part: str) -> Row:
    if part == "consistency":
        questions = [annotation.text(_FIRST_WORDING), annotation.text(_SECOND_WORDING)]
    else:
        questions = [annotation.text(QUESTION_FIELDS)]
    answer, video_name = annotation.text(ANSWER_FIELDS), annotation.text(VIDEO_FIELDS)
    return annotation.make_row(part, questions, answer, video_name=video_name)


VIDEO_CHATGPT = Benchmark(
    name="video-chatgpt",
    read=read,
    axes=(
        Axis("correctness", "generic", "correctness", "rating"),
        Axis("detail", "generic", "detail", "rating"),
        Axis("context", "generic", "context", "rating"),
        Axis("temporal", "temporal", "temporal", "rating"),
        Axis("consistency", "consistency", "consistency", "rating", num_questions=2),
    ),
    published=(
        (
            "LongVLM",
            {
                "correctness": 2.76,
                "detail": 2.86,
                "context": 3.34,
                "temporal": 2.39,
                "consistency": 3.11,
                "mean of the axes": 2.89,
            },
        ),
        (
            "Video-ChatGPT",
            {
                "correctness": 2.40,
                "detail": 2.52,
                "context": 2.62,
                "temporal": 1.98,
                "consistency": 2.37,
                "mean of the axes": 2.38,
            },
        ),
    ),
)
