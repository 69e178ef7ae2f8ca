"""How well a model knows the generated world: files are written, encoded, asked about, and scored by kind.

Intervals are clustered by video (questions about one video stand or fall together): a bootstrap over videos.
Beside every score stand chance, and what the same model answers without the video, and to another video in its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from longvlm.intervals import interval_of_share
from longvlm.text_table import TextTable
from longvlm.world.planned_videos import ENCODED_FPS, VideoPlan, encode_planned
from longvlm.world.questions import KINDS, Question, make_conversation, make_questions
from longvlm.world.scene import make_scene
from longvlm.world.scoring import is_correct
from longvlm.world.wordings import TIMED_KINDS

if TYPE_CHECKING:
    from longvlm.pipeline import LongVLM
    from longvlm.video_index import VideoIndex

MAX_NEW_TOKENS = 128  # the longest right answer, a story of twelve events, has about a hundred
FOLLOW_UP = "follow-up"  # later turns of a conversation, whatever they ask for
ALL_KINDS = (*KINDS, FOLLOW_UP)


@dataclass(frozen=True)
class Record:
    """One question asked: the reply to the video, the reply without it, the reply to another video in its place (None
    for the first video of an evaluation, before which there is none), and the reply to the video as it was passed on.
    """

    video: int
    duration_seconds: float
    question: Question
    reply: str
    reply_without_video: str = ""
    reply_to_another: str | None = None
    reply_reencoded: str | None = None

    @property
    def kind(self) -> str:
        return FOLLOW_UP if self.question.turn else self.question.kind

    @property
    def correct(self) -> bool:
        return is_correct(self.question, self.reply)

    @property
    def correct_without_video(self) -> bool:
        return is_correct(self.question, self.reply_without_video)

    @property
    def correct_by_another(self) -> bool:
        return self.reply_to_another is not None and is_correct(self.question, self.reply_to_another)

    @property
    def correct_reencoded(self) -> bool:
        return self.reply_reencoded is not None and is_correct(self.question, self.reply_reencoded)


@dataclass(frozen=True)
class Score:
    """Accuracy on one kind of question, as shares of 1; `low` and `high` bound its 95 % interval."""

    kind: str
    n: int
    accuracy: float
    low: float
    high: float
    chance: float
    without_video: float
    another_video: float


def evaluate(
    model: LongVLM,
    plans: Sequence[VideoPlan],
    *,
    seed: int,
    kinds: Sequence[str] | None = None,
    per_kind: int = 1,
    with_controls: bool = True,
    kept: Path | None = None,
) -> list[Record]:
    """Render every planned video, read it back through the model at 1 frame a second, and ask; then pass it on as its
    plan says, and ask the same again.

    Videos live in a temporary folder only as long as they are needed. `seed` chooses the questions. `kinds` are some
    of ALL_KINDS, those that the model can tell unless given. `with_controls`, everything is also asked without the
    video, and of the video before it; else those replies are empty. In the folder `kept`, videos stay as indexes, so
    that those that lie there are neither drawn nor encoded again, for any model with the same encoder.

    Raises LongVLMError where an index there is of another encoder, or can't be read or written.
    """
    chosen = tuple(kinds) if kinds is not None else kinds_for(model)
    single_turn = [kind for kind in chosen if kind != FOLLOW_UP]
    records: list[Record] = []
    controls = _Controls(model) if with_controls else None
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=Console(stderr=True), transient=True) as progress, _leaving_cores_for_drawing():
        task = progress.add_task("Videos", total=len(plans))
        for number, indexes in enumerate(encode_planned(model, plans, kept)):
            scene = make_scene(plans[number].seed, plans[number].duration_seconds)
            questions = make_questions(scene, seed=seed, kinds=single_turn, per_kind=per_kind)
            conversation = make_conversation(scene, seed=seed) if FOLLOW_UP in chosen else []
            if questions or conversation:
                rows = _ask_in_all_ways(model, indexes, questions, conversation, controls)
                records += [Record(number, plans[number].duration_seconds, *row) for row in rows]
            progress.advance(task)
    return records


def _ask_in_all_ways(
    model: LongVLM,
    indexes: Sequence[VideoIndex],
    questions: Sequence[Question],
    conversation: Sequence[Question],
    controls: _Controls | None,
) -> list[tuple[Question, str, str, str | None, str | None]]:
    """What a Record holds after the video's number and duration, of every question; `indexes` are the video, and the
    one that was passed on if there is any.
    """
    asked = [*questions, *conversation]
    replies, *after = (_ask(model, index, questions, conversation) for index in indexes)
    blind, another = controls.guess(questions, conversation) if controls else ([""] * len(asked), None)
    if controls:
        controls.another = indexes[0]
    nothing = [None] * len(asked)
    rows = list(zip(asked, replies, blind, another or nothing, after[0] if after else nothing, strict=True))
    if conversation:
        del rows[len(questions)]  # its first turn, which refers to nothing
    return rows


def _ask(
    model: LongVLM, index: VideoIndex | None, questions: Sequence[Question], conversation: Sequence[Question]
) -> list[str]:
    """The replies to single questions, then to a conversation, whose turns see the model's own earlier replies.

    One by one: the video is read once for all of them, and no short answer waits for a long one.
    """
    replies = [model.ask(index, question.text, max_new_tokens=MAX_NEW_TOKENS).text for question in questions]
    chat = model.chat(index) if conversation else None
    return replies + [chat.ask(turn.text, max_new_tokens=MAX_NEW_TOKENS).text for turn in conversation if chat]


class _Controls:
    """The same questions without the video, and to `another` video: what can be right by guessing alone."""

    def __init__(self, model: LongVLM) -> None:
        self.another: VideoIndex | None = None
        self._model = model
        self._blind: dict[str, str] = {}  # the reply without a video depends on the question's text alone

    def guess(
        self, questions: Sequence[Question], conversation: Sequence[Question]
    ) -> tuple[list[str], list[str] | None]:
        """The replies without a video, and those to another if there was one."""
        new = sorted({question.text for question in questions} - set(self._blind))
        guesses = self._model.ask([None] * len(new), new, max_new_tokens=MAX_NEW_TOKENS) if new else []
        self._blind.update((text, guess.text) for text, guess in zip(new, guesses, strict=True))
        blind = [self._blind[question.text] for question in questions] + _ask(self._model, None, [], conversation)
        if self.another is None:
            return blind, None
        return blind, _ask(self._model, self.another, questions, conversation)


def kinds_for(model: LongVLM) -> tuple[str, ...]:
    """All kinds of question, but those about times only for a model that is given times."""
    return tuple(kind for kind in ALL_KINDS if model.config.timestamps or kind not in TIMED_KINDS)


@contextmanager
def _leaving_cores_for_drawing() -> Iterator[None]:
    """A thread of torch that waits for a core which another process has makes all the others wait."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_json_lines(records: Sequence[Record], plans: Sequence[VideoPlan]) -> str:
    """Every question with its right answer and the replies, one JSON object a line, and what draws its video again."""
    lines = [
        {
            "seed": plan.seed,
            "duration_seconds": plan.duration_seconds,
            "size": f"{plan.width}x{plan.height}",
            "fps": plan.fps,
            "reencoding": None if plan.reencoding is None else plan.reencoding.name,
            "kind": record.kind,
            "question": record.question.text,
            "answer": record.question.answer,
            "right": record.correct,
            "reply": record.reply,
            "reply_without_video": record.reply_without_video,
            "reply_to_another": record.reply_to_another,
            "reply_reencoded": record.reply_reencoded,
        }
        for record in records
        for plan in (plans[record.video],)
    ]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def score(records: Sequence[Record]) -> list[Score]:
    """One score per kind that was asked, in the order of ALL_KINDS, then one over all questions."""
    scores = [_score(kind, [r for r in records if r.kind == kind]) for kind in ALL_KINDS]
    return [*(one for one in scores if one.n), _score("all", records)]


def _score(kind: str, records: Sequence[Record]) -> Score:
    if not records:
        return Score(kind, 0, *[float("nan")] * 6)
    correct = np.array([record.correct for record in records], dtype=float)
    low, high = interval_of_share(correct, np.array([record.video for record in records]))
    by_another = [record.correct_by_another for record in records if record.reply_to_another is not None]
    return Score(
        kind=kind,
        n=len(records),
        accuracy=float(correct.mean()),
        low=low,
        high=high,
        chance=float(np.mean([record.question.chance for record in records])),
        without_video=float(np.mean([record.correct_without_video for record in records])),
        another_video=float(np.mean(by_another)) if by_another else float("nan"),
    )


def tabulate(scores: Sequence[Score], title: str) -> TextTable:
    columns = ["question", "n", "right", "95 % interval", "chance", "without video", "another video"]
    rows: list[tuple[str, ...]] = [
        (
            one.kind,
            str(one.n),
            f"{one.accuracy:.1%}",
            f"{one.low:.1%} – {one.high:.1%}",
            f"{one.chance:.1%}",
            f"{one.without_video:.1%}",
            "–" if isnan(one.another_video) else f"{one.another_video:.1%}",
        )
        for one in scores
    ]
    if all(isnan(one.another_video) for one in scores):  # there was none
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return TextTable(title, tuple(columns), rows)


def as_json(
    scores: Sequence[Score],
    plans: Sequence[VideoPlan],
    *,
    seed: int,
    duration_seconds: tuple[float, float],
) -> dict[str, Any]:
    """The same as the table, for machines: shares of 1. `duration_seconds`: the least and the most that were drawn."""
    return {
        "videos": len(plans),
        "seed": seed,
        "duration_seconds": list(duration_seconds),
        "seconds_of_video": round(sum(plan.duration_seconds for plan in plans), 1),
        "encoded_fps": ENCODED_FPS,
        "scores": {
            one.kind: {
                "n": one.n,
                "accuracy": round(one.accuracy, 4),
                "interval_95": [round(one.low, 4), round(one.high, 4)],
                "chance": round(one.chance, 4),
                "without_video": round(one.without_video, 4),
                "another_video": None if isnan(one.another_video) else round(one.another_video, 4),
            }
            for one in scores
        },
    }
