"""Multiple choice: Video-MME, MLVU, EgoSchema, LongVideoBench, MVBench, and files like theirs.

The model is shown lettered options and answers with a letter. What counts is the letter alone; a reply that names
none, or two, is wrong.
"""

from __future__ import annotations

import math
import re
import string
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longvlm.errors import LongVLMError
from longvlm.evaluation.benchmark import Benchmark
from longvlm.evaluation.rows import QUESTION_FIELDS, Annotation, Row, list_annotations, read_json, shown

NAME = "multiple-choice"
# The first that a row has counts: Video-MME's `videoID` names its files, its `video_id` is a running number.
_VIDEO = ("videoID", "video_path", "video_name", "video", "video_idx", "q_uid", "video_id")
_OPTIONS = ("options", "candidates", "choices", "option")
_ANSWER = ("answer", "correct_choice", "truth", "A")
_KEY = ("q_uid",)  # what a file of answers alone is keyed by
_TASK = ("task_type", "question_category", "question_type", "task")
_INSTRUCTION = "Answer with the letter of the right option alone."
_DURATIONS_SECONDS = ((120, "up to 2 min"), (900, "2 to 15 min"), (3600, "15 to 60 min"), (float("inf"), "over 60 min"))
# In every row of a file with one of these, the letter is written before the text: "A. Apples."
_LETTERED = re.compile(r"\(?([A-Z])[.):]\s+(.+)", re.DOTALL)

_LETTER = r"[(\[]?(?P<letter>[A-Z])[)\]]?"
_BEST = r"(?:best|correct|right)"
_ANSWER_IS = rf"(?:(?:the\s+)?(?:{_BEST}\s+)?(?:answer|option|choice)(?:\s+is)?|it\s+is|assistant)"
_ANNOUNCED = rf"(?:{_ANSWER_IS}(?:\s*:)?\s*)"  # blanks can be read in one way only, or many of them would take for ever
# What parts a letter from the text behind it: "(B) …", "B. …", "B, …", "B - …", a line break, "B because …", "B is
# right"; no initial is a letter.
_REASON = rf"\s+(?:because|since|as|is\s+(?:the\s+)?{_BEST})\b"
_PARTED = rf"(?:[(\[](?P<letter>[A-Z])[)\]]|(?P<bare>[A-Z])(?:[.):]|\s*[,–—-](?=\s)|(?=\n)|(?={_REASON})))"
_REPLIES = (
    re.compile(rf"(?i:{_ANNOUNCED})*(?i:{_LETTER})\s*[.):]?"),
    re.compile(rf"(?i:{_ANNOUNCED})*{_PARTED}(?:\s+|(?![A-Z]\.))(?P<text>\S.*)", re.DOTALL),
    # Announced, a letter that is no word by itself needs nothing to part it.
    re.compile(rf"(?i:{_ANNOUNCED})+(?:(?<=is\s)|(?<=:\s))(?P<bare>[B-HJ-Z])\s+(?P<text>\S.*)", re.DOTALL),
)
_NAMED = r"(?=\s*(?:[.):,;\n]|$|(?:and|or)\b))"  # behind a letter that is one, and no word


def parse_letter(reply: str, options: Sequence[str]) -> str | None:
    """The letter that a reply chooses, or None: "B", "(B)", "B.", "Answer: B", "B. a blue star".

    A letter with text behind it counts unless another letter is named there; the bare text of exactly one option
    counts for its letter, and before a letter in lower case: MVBench has options such as "e", "a" and "v". Of options
    that differ in signs alone ("5", "-5") the very text counts.
    """
    letters = string.ascii_uppercase[: len(options)]
    reply = reply.strip().removesuffix("</s>").strip().strip("*`\"'").strip()
    if options.count(reply) == 1 and reply not in letters:
        return letters[options.index(reply)]
    unannounced = re.sub(f"(?i){_ANNOUNCED}", "", reply, count=1)
    same = _letters_of_text(reply, options) or _letters_of_text(unannounced, options)
    for pattern in _REPLIES:
        match = pattern.fullmatch(reply.replace("**", ""))
        if match is None:
            continue
        found = match.groupdict()
        letter = (found.get("letter") or found["bare"]).upper()
        if letter not in letters:
            break
        rest = found.get("text") or ""
        others = set(re.findall(rf"\b([{letters}])\b{_NAMED}", rest)) - {letter}
        return letter if not others or _plain(rest) == _plain(options[letters.index(letter)]) else None
    return same[0] if len(same) == 1 else None


def _letters_of_text(text: str, options: Sequence[str]) -> list[str]:
    plain = _plain(text)
    same = [plain == _plain(option) for option in options]
    return [letter for letter, is_same in zip(string.ascii_uppercase, same, strict=False) if plain and is_same]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


class LeftOutWarning(UserWarning):
    """Questions have no answer in the file of answers that was given with them."""


def read(files: Sequence[str]) -> list[Row]:
    """Rows of all files; one that holds an object, such as EgoSchema's subset_answers.json, has answers by `q_uid`.

    Warns (LeftOutWarning) of questions that it has no answer to, which are left out. Raises LongVLMError, naming row
    and field, where a row lacks something, and where there is no answer to any.
    """
    held = {file: read_json(Path(file)) for file in files}
    answers = {name: answer for one in held.values() if _has_answers_alone(one) for name, answer in one.items()}
    asked = {file: one for file, one in held.items() if not _has_answers_alone(one)}
    if not asked:
        raise LongVLMError(f"--annotations {' '.join(files)}: answers, and no questions; name their file, too.")
    rows = [
        (one, Path(file).stem if len(asked) > 1 else None)  # MVBench has a file for each task
        for file, content in asked.items()
        for annotation in list_annotations(Path(file), content)
        for one in _unfold(annotation)
    ]
    if answers:
        rows = [(_answered(row, answers), task) for row, task in _with_answer(rows, answers)]
    return [_row(row, task) for row, task in rows]


def _has_answers_alone(content: Any) -> bool:
    return isinstance(content, dict) and content != {} and all(isinstance(one, int | str) for one in content.values())


def _with_answer(
    rows: list[tuple[Annotation, str | None]], answers: Mapping[str, Any]
) -> list[tuple[Annotation, str | None]]:
    known = [(row, task) for row, task in rows if row.text(_KEY) in answers]
    left_out = len(rows) - len(known)
    if not known:
        raise LongVLMError(
            f"None of {len(rows)} questions has an answer in the file of {len(answers)} answers; give two that belong "
            "together."
        )
    if left_out:
        warnings.warn(
            f"{left_out} of {len(rows)} questions have no answer among the {len(answers)} given; they are left out.",
            LeftOutWarning,
            stacklevel=3,
        )
    return known


def _answered(row: Annotation, answers: Mapping[str, Any]) -> Annotation:
    return Annotation(row.place, {**row.fields, "answer": answers[row.text(_KEY)]})


def _unfold(annotation: Annotation) -> list[Annotation]:
    """A video with a list of questions (Video-MME's own file) as one annotation for each of them.

    Raises LongVLMError, naming row and question, for a question that is no object.
    """
    questions = annotation.fields.get("questions")
    if not isinstance(questions, list):
        return [annotation]
    for number, question in enumerate(questions):
        if not isinstance(question, Mapping):
            raise LongVLMError(
                f"{annotation.place}, question {number} is {shown(question)}; an object with fields is expected."
            )
    shared = {name: value for name, value in annotation.fields.items() if name != "questions"}
    return [
        Annotation(f"{annotation.place}, question {number}", {**shared, **question})
        for number, question in enumerate(questions)
    ]


def _row(annotation: Annotation, task: str | None) -> Row:
    """The row of an annotation, which counts to `task` unless it names one."""
    options = _options(annotation)
    letter = _true_letter(annotation, options)
    lines = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    prompt = "\n".join([annotation.text(QUESTION_FIELDS), *lines, _INSTRUCTION])
    return annotation.make_row(
        NAME,
        [prompt],
        letter,
        video_name=annotation.text(_VIDEO),
        clip_seconds=_clip(annotation),
        groups=_groups(annotation.fields, task),
        options=options,
    )


def _clip(annotation: Annotation) -> tuple[float, float] | None:
    """The part of the video that is asked about, in seconds; some of MVBench's tasks name one."""
    given = [annotation.fields.get(name) for name in ("start", "end")]
    if given == [None, None]:
        return None
    start, end = (float(one) if isinstance(one, int | float) else -1.0 for one in given)
    if not 0 <= start < end:
        raise LongVLMError(
            f"{annotation.place}: its part is from {shown(given[0])} to {shown(given[1])}; 'start' and 'end' in "
            "seconds are expected, the end later than the start."
        )
    return start, end


def _options(annotation: Annotation) -> tuple[str, ...]:
    """The options' texts, without their letters."""
    numbered = [f"option {number}" for number in range(len(string.ascii_uppercase))]  # EgoSchema
    if numbered[0] in annotation.fields:
        given: Any = [annotation.fields[name] for name in numbered if name in annotation.fields]
    else:
        given = annotation.find(_OPTIONS)
    if (
        not isinstance(given, list)
        or not 2 <= len(given) <= len(numbered)
        or not all(str(one).strip() for one in given)
    ):
        raise LongVLMError(
            f"{annotation.place}: its options are {str(given)[:60]!r}; a list of 2 to 26 texts is expected."
        )
    texts = [str(one).strip() for one in given]
    matches = [_LETTERED.fullmatch(text) for text in texts]
    if all(match and match[1] == letter for match, letter in zip(matches, string.ascii_uppercase, strict=False)):
        return tuple(match[2].strip() for match in matches if match)
    return tuple(texts)


def _true_letter(annotation: Annotation, options: tuple[str, ...]) -> str:
    """The answer as a letter: from a letter, the place of the option counted from 0, or its text."""
    answer = annotation.find(_ANSWER)
    letters = string.ascii_uppercase[: len(options)]
    plain = str(answer).strip()
    if isinstance(answer, str):
        letter = parse_letter(plain, options)
        if letter is not None:
            return letter
    if not isinstance(answer, bool) and plain.isdecimal() and int(plain) < len(options):
        return letters[int(plain)]
    raise LongVLMError(
        f"{annotation.place}: the answer is {plain[:60]!r}; a letter from A to {letters[-1]}, the number of an option "
        f"from 0 to {len(options) - 1}, or an option's text is expected."
    )


def _groups(fields: Mapping[str, Any], task: str | None) -> dict[str, str]:
    groups = {}
    duration = fields.get("duration_group", fields.get("duration"))
    if isinstance(duration, str) and duration.strip():
        groups["duration"] = duration.strip()
    elif isinstance(duration, int | float) and not isinstance(duration, bool) and math.isfinite(duration):
        groups["duration"] = _duration_name(duration, is_group="duration_group" in fields)
    task = next((str(fields[name]) for name in _TASK if fields.get(name)), task)
    if task is not None:
        groups["task"] = task
    return groups


def _duration_name(seconds: float, *, is_group: bool) -> str:
    if is_group:  # LongVideoBench names its groups by their longest video
        return f"up to {seconds:g} s"
    return next(name for limit, name in _DURATIONS_SECONDS if seconds <= limit)


MULTIPLE_CHOICE = Benchmark(name=NAME, read=read)
