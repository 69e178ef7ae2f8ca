"""Questions about a scene and their answers, derived from its events alone.

Only questions with one right answer are asked: order goes by the events' starts, and where two starts are too
close to tell, or an object is about to leave, the question is left out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from longvlm.errors import LongVLMError
from longvlm.world.scene import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    Event,
    Scene,
    actions_of,
    draw_spans,
    max_events,
)
from longvlm.world.wordings import (
    ACTION_ANSWERS,
    FOLLOW_UPS,
    KINDS,
    NOTHING,
    NUMBERS,
    QUESTIONS,
    TIMES_OF_VIDEO,
    clock,
    fill,
    listed,
    vocabulary,
    with_article,
)

__all__ = ["KINDS", "Question", "make_conversation", "make_questions", "vocabulary"]

TELL_APART_SECONDS = 2.0  # starts closer than this have no order
EDGE_SECONDS = 1.5  # a moment this close to a start or an end is not asked about
NOTHING_SHARE = 0.2  # of the questions about one moment
START_TOLERANCE_SECONDS = 5.0  # half a segment at 1 frame a second
DURATION_TOLERANCE = 0.35  # of the true one
OBJECT_CHANCE = 1 / (len(COLOURS) * len(SHAPES))


@dataclass(frozen=True)
class Question:
    """One question and its answer.

    `chance`: the share of right answers of the best guess that knows the world's rules and not the video.
    `span_seconds`: when what the answer rests on is on screen; None where it is the whole video.
    `subject`: the object that the question names, if it names one. `turn`: its place in a conversation.
    """

    kind: str
    text: str
    answer: str
    chance: float
    span_seconds: tuple[float, float] | None = None
    subject: str = ""
    turn: int = 0


def make_questions(scene: Scene, *, seed: int, kinds: Iterable[str] | None = None, per_kind: int = 1) -> list[Question]:
    """At most `per_kind` different questions of each kind; fewer where the scene has no unambiguous one."""
    chosen = tuple(KINDS if kinds is None else kinds)
    unknown = [kind for kind in chosen if kind not in QUESTIONS]
    if unknown:
        raise LongVLMError(f"Unknown kind of question {unknown[0]!r}; known ones: {', '.join(KINDS)}.")
    questions = []
    for kind in chosen:
        rng = random.Random(f"longvlm questions {seed} {scene.seed} {kind}")
        asked: dict[tuple[str, str], Question] = {}
        for question in _MAKERS[kind](scene, rng, per_kind):
            asked.setdefault((question.text, question.answer), question)
        questions += list(asked.values())[:per_kind]
    return questions


def make_conversation(scene: Scene, *, seed: int) -> list[Question]:
    """Two or three turns, of which the later refer to the answer before; empty if the scene allows none.

    No turn asks for what an earlier one has named: "What comes after X?", "And before that?".
    """
    rng = random.Random(f"longvlm conversation {seed} {scene.seed}")
    openers = [*_ask_first(scene, rng, 1), *_ask_last(scene, rng, 1), *_ask_after(scene, rng, 1)]
    rng.shuffle(openers)
    for opener in openers:
        turns = [opener]
        while len(turns) < 3:
            named = {turn.answer for turn in turns} | {with_article(turn.subject) for turn in turns if turn.subject}
            event = next(event for event in scene.events if with_article(event.object) == turns[-1].answer)
            options = [
                question
                for make in (_about_after, _about_before, _about_action, _about_when)
                for question in make(scene, rng, event, follow_up=True)
                if question.answer not in named
            ]
            if not options:
                break
            question = rng.choice(options)
            if question.kind == "when" and (rank := _known_rank(turns)) is not None:
                question = replace(question, chance=_chances_of_times(_rounded(scene.duration_seconds)).thirds[rank])
            turns.append(replace(question, turn=len(turns)))
            if question.kind not in ("after", "before"):
                break
        if len(turns) > 1:
            return turns
    return []


def _known_rank(turns: list[Question]) -> int | None:
    """Which object the last answer is, if the turns tell: counted from the first one (0) or from the last (-1)."""
    opener, *others = turns
    if opener.kind == "after":
        return None
    return {"first": 0, "last": -1}[opener.kind] + sum({"after": 1, "before": -1}[turn.kind] for turn in others)


def _wording(kind: str, rng: random.Random, follow_up: bool = False) -> str:
    return rng.choice((FOLLOW_UPS if follow_up else QUESTIONS)[kind])


def _starts_alone(events: tuple[Event, ...], index: int) -> bool:
    """Whether this event's place in the order is clear: no other starts within TELL_APART_SECONDS."""
    start = events[index].start_seconds
    return all(abs(event.start_seconds - start) >= TELL_APART_SECONDS for i, event in enumerate(events) if i != index)


def _object_question(kind: str, text: str, event: Event, subject: str = "") -> Question:
    span = (event.start_seconds, event.end_seconds)
    return Question(kind, text, with_article(event.object), OBJECT_CHANCE, span, subject)


def _ask_first(scene: Scene, rng: random.Random, limit: int) -> list[Question]:
    if not _starts_alone(scene.events, 0):
        return []
    return [_object_question("first", _wording("first", rng), scene.events[0]) for _ in range(limit)]


def _ask_last(scene: Scene, rng: random.Random, limit: int) -> list[Question]:
    if not _starts_alone(scene.events, len(scene.events) - 1):
        return []
    return [_object_question("last", _wording("last", rng), scene.events[-1]) for _ in range(limit)]


def _about_neighbour(scene: Scene, rng: random.Random, event: Event, kind: str, follow_up: bool) -> list[Question]:
    index = scene.events.index(event)
    other = index + (1 if kind == "after" else -1)
    if not 0 <= other < len(scene.events):
        return []
    if not (_starts_alone(scene.events, index) and _starts_alone(scene.events, other)):
        return []
    text = fill(_wording(kind, rng, follow_up), x=event.object)
    return [_object_question(kind, text, scene.events[other], event.object)]


def _about_after(scene: Scene, rng: random.Random, event: Event, follow_up: bool = False) -> list[Question]:
    return _about_neighbour(scene, rng, event, "after", follow_up)


def _about_before(scene: Scene, rng: random.Random, event: Event, follow_up: bool = False) -> list[Question]:
    return _about_neighbour(scene, rng, event, "before", follow_up)


def _about_action(scene: Scene, rng: random.Random, event: Event, follow_up: bool = False) -> list[Question]:
    text = fill(_wording("action", rng, follow_up), x=event.object)
    span = (event.start_seconds, event.end_seconds)
    chance = 1 / len(actions_of(event.shape))
    return [Question("action", text, ACTION_ANSWERS[event.action], chance, span, event.object)]


def _about_direction(scene: Scene, rng: random.Random, event: Event) -> list[Question]:
    if event.direction is None:
        return []
    text = fill(_wording("direction", rng), x=event.object)
    span = (event.start_seconds, event.end_seconds)
    return [Question("direction", text, event.direction, 1 / len(DIRECTIONS), span, event.object)]


def _about_when(scene: Scene, rng: random.Random, event: Event, follow_up: bool = False) -> list[Question]:
    """Only for events that lie whole in one third of the video."""
    part = scene.third_of(event)
    if part is None:
        return []
    text = fill(_wording("when", rng, follow_up), x=event.object)
    span = (event.start_seconds, event.end_seconds)
    chance = _chances_of_times(_rounded(scene.duration_seconds)).third
    return [Question("when", text, TIMES_OF_VIDEO[part], chance, span, event.object)]


def _about_start(scene: Scene, rng: random.Random, event: Event) -> list[Question]:
    text = fill(_wording("start", rng), x=event.object)
    span = (event.start_seconds, event.end_seconds)
    chance = _chances_of_times(_rounded(scene.duration_seconds)).start
    return [Question("start", text, clock(int(event.start_seconds)), chance, span, event.object)]


def _about_duration(scene: Scene, rng: random.Random, event: Event) -> list[Question]:
    """Not of what blinks, which is seen for less than it lasts."""
    if event.action == "blink":
        return []
    text = fill(_wording("duration", rng), x=event.object)
    span = (event.start_seconds, event.end_seconds)
    chance = _chances_of_times(_rounded(scene.duration_seconds)).duration
    return [Question("duration", text, f"{round(event.duration_seconds)} seconds", chance, span, event.object)]


def _rounded(duration_seconds: float) -> float:
    """To two digits: chance hardly depends on the rest."""
    return float(f"{duration_seconds:.2g}")


class _ChancesOfTimes(NamedTuple):
    """How often the best fixed answer is close enough to a start, to a duration, and names the right third: of any
    object, and of those that are guessed better, being known to be the first (0), second, last (-1) or last but one.
    """

    start: float
    duration: float
    third: float
    thirds: dict[int, float]


@lru_cache(maxsize=1024)
def _chances_of_times(duration_seconds: float) -> _ChancesOfTimes:
    """In videos of this length."""
    rng = random.Random(0)
    scenes = [np.array(draw_spans(rng, duration_seconds)) for _ in range(300)]
    starts, ends = np.concatenate(scenes).T
    numbers = np.repeat(np.arange(len(scenes)), [len(spans) for spans in scenes])
    lasting, said = np.round(ends - starts), np.arange(0, duration_seconds)[:, None]
    near_start = np.abs(said - np.floor(starts)) <= START_TOLERANCE_SECONDS
    near_lasting = np.abs(said - lasting) <= DURATION_TOLERANCE * lasting
    third = duration_seconds / 3
    whole = starts // third == (ends - 1e-6) // third  # others are not asked about
    in_third = np.arange(3)[:, None] == starts // third
    ranks = np.concatenate([np.arange(len(spans)) for spans in scenes])
    ranks_from_end = np.concatenate([np.arange(-len(spans), 0) for spans in scenes])
    asked = {rank: whole & ((ranks if rank >= 0 else ranks_from_end) == rank) for rank in (0, 1, -1, -2)}
    return _ChancesOfTimes(
        _best_share(near_start, numbers),
        _best_share(near_lasting, numbers),
        _best_share(in_third[:, whole], numbers[whole]),
        {rank: _best_share(in_third[:, some], numbers[some]) for rank, some in asked.items()},
    )


def _best_share(is_right: np.ndarray, scenes: np.ndarray) -> float:
    """Of answers (A, n), how often the best one is right, where one of a scene's events is asked about; where none can
    be, all answers are as good.
    """
    if not len(scenes):
        return 1 / len(is_right)
    return float(np.average(is_right, axis=1, weights=1 / np.bincount(scenes)[scenes]).max())


def _about_each(
    about: Callable[..., list[Question]],
) -> Callable[[Scene, random.Random, int], list[Question]]:
    """Ask about the events one by one, in random order, until there are enough questions."""

    def ask(scene: Scene, rng: random.Random, limit: int) -> list[Question]:
        questions: list[Question] = []
        for event in rng.sample(scene.events, len(scene.events)):
            if len(questions) < limit:
                questions += about(scene, rng, event)
        return questions

    return ask


_ask_after = _about_each(_about_after)


def _ask_count(scene: Scene, rng: random.Random, limit: int) -> list[Question]:
    chance = 1 / max(1, max_events(scene.duration_seconds) - 1)
    return [Question("count", _wording("count", rng), NUMBERS[len(scene.events)], chance) for _ in range(limit)]


def _ask_exists(scene: Scene, rng: random.Random, limit: int) -> list[Question]:
    """Half of the questions ask for what never appears, but shares its colour or shape with what does."""
    there = {(event.colour, event.shape) for event in scene.events}
    questions = []
    for _ in range(limit):
        seen = rng.choice(scene.events)
        pair, answer = (seen.colour, seen.shape), "yes"
        span: tuple[float, float] | None = (seen.start_seconds, seen.end_seconds)
        same_shape = [(colour, seen.shape) for colour in COLOURS]
        same_colour = [(seen.colour, shape) for shape in SHAPES]
        absent = sorted(set(rng.choice((same_shape, same_colour))) - there)
        if absent and rng.random() < 0.5:
            pair, answer, span = rng.choice(absent), "no", None
        name = " ".join(pair)
        text = fill(_wording("exists", rng), x=name)
        questions.append(Question("exists", text, answer, 0.5, span, name))
    return questions


def _ask_order(scene: Scene, rng: random.Random, limit: int) -> list[Question]:
    clear = [event for i, event in enumerate(scene.events) if _starts_alone(scene.events, i)]
    questions = []
    for _ in range(limit if len(clear) >= 2 else 0):
        chosen = rng.sample(clear, min(3, len(clear)))
        text = fill(_wording("order", rng), objects=listed([event.object for event in chosen]))
        chosen.sort(key=lambda event: event.start_seconds)
        answer = ", then ".join(with_article(event.object) for event in chosen)
        questions.append(Question("order", text, answer, 1 / math.factorial(len(chosen))))
    return questions


def _ask_at(scene: Scene, rng: random.Random, limit: int) -> list[Question]:
    """At whole seconds with one object on screen, or none; not about objects that blink."""
    with_object: list[tuple[int, Event]] = []
    with_nothing: list[int] = []
    for second in range(1, math.floor(scene.duration_seconds)):
        near = [event for event in scene.events if _is_near(event, second, EDGE_SECONDS)]
        if not near:
            with_nothing.append(second)
        elif len(near) == 1 and near[0].action != "blink" and _is_near(near[0], second, -EDGE_SECONDS):
            with_object.append((second, near[0]))
    chance = (NOTHING_SHARE if with_object else 1.0) if with_nothing else OBJECT_CHANCE
    questions = []
    for _ in range(limit):
        if with_nothing and rng.random() < NOTHING_SHARE:
            second, answer = rng.choice(with_nothing), NOTHING
        elif with_object:
            second, event = rng.choice(with_object)
            answer = with_article(event.object)
        else:
            continue
        text = fill(_wording("at", rng), time=clock(second))
        questions.append(Question("at", text, answer, chance, (second, second)))
    return questions


def _is_near(event: Event, second: int, margin_seconds: float) -> bool:
    return event.start_seconds - margin_seconds < second < event.end_seconds + margin_seconds


def _ask_describe(scene: Scene, rng: random.Random, limit: int) -> list[Question]:
    """The whole story in order of the starts, where that order is clear throughout."""
    if not all(_starts_alone(scene.events, i) for i in range(len(scene.events))):
        return []
    answer = ", then ".join(
        f"{with_article(event.object)} {ACTION_ANSWERS[event.action].removeprefix('it ')}" for event in scene.events
    )
    chance = OBJECT_CHANCE ** len(scene.events)
    return [Question("describe", _wording("describe", rng), answer, chance) for _ in range(limit)]


_MAKERS: dict[str, Callable[[Scene, random.Random, int], list[Question]]] = {
    "first": _ask_first,
    "last": _ask_last,
    "after": _ask_after,
    "before": _about_each(_about_before),
    "count": _ask_count,
    "exists": _ask_exists,
    "direction": _about_each(_about_direction),
    "action": _about_each(_about_action),
    "order": _ask_order,
    "when": _about_each(_about_when),
    "at": _ask_at,
    "start": _about_each(_about_start),
    "duration": _about_each(_about_duration),
    "describe": _ask_describe,
}
