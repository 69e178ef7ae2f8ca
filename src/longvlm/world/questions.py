"""Questions about a scene and their answers, derived from its events alone, and the check of a reply.

Only questions with one right answer are asked: order goes by the events' starts, and where two starts are too
close to tell, or an object is about to leave, the question is left out.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from longvlm.errors import LongVLMError
from longvlm.world.scene import (
    COLOURS,
    DIRECTIONS,
    MAX_EVENT_SECONDS,
    MIN_EVENT_SECONDS,
    SHAPES,
    Event,
    Scene,
    actions_of,
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
    split_words,
    vocabulary,
    with_article,
)

__all__ = ["KINDS", "Question", "is_correct", "make_conversation", "make_questions", "vocabulary"]

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
            turns.append(replace(question, turn=len(turns)))
            if question.kind not in ("after", "before"):
                break
        if len(turns) > 1:
            return turns
    return []


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
    return [Question("when", text, TIMES_OF_VIDEO[part], 1 / 3, span, event.object)]


def _about_start(scene: Scene, rng: random.Random, event: Event) -> list[Question]:
    text = fill(_wording("start", rng), x=event.object)
    span = (event.start_seconds, event.end_seconds)
    chance = min(1.0, 2 * START_TOLERANCE_SECONDS / scene.duration_seconds)
    return [Question("start", text, clock(int(event.start_seconds)), chance, span, event.object)]


def _about_duration(scene: Scene, rng: random.Random, event: Event) -> list[Question]:
    """How long it lasts. The best blind guess lies in the middle, on a log scale, of what events may last."""
    text = fill(_wording("duration", rng), x=event.object)
    span = (event.start_seconds, event.end_seconds)
    longest = math.log(MAX_EVENT_SECONDS / MIN_EVENT_SECONDS)
    chance = min(1.0, 2 * math.log(1 + DURATION_TOLERANCE) / longest)
    return [Question("duration", text, f"{round(event.duration_seconds)} seconds", chance, span, event.object)]


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
        questions.append(Question("at", text, answer, NOTHING_SHARE, (second, second)))
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

# A time on a clock ("1:23", "1:02:03"), and a number of seconds.
_QUANTITIES = {"start": re.compile(r"\d+(?::\d\d)+"), "duration": re.compile(r"\d+")}

# What other words of a reply come down to, beside the plain verbs of the actions.
_VERBS = {
    **{verb: verb for verb in ("move", "grow", "shrink", "spin", "blink", "stay")},
    **{
        "moves": "move",
        "grows": "grow",
        "shrinks": "shrink",
        "spins": "spin",
        "blinks": "blink",
        "stays": "stay",
    },
    **{"moving": "move", "growing": "grow", "shrinking": "shrink", "spinning": "spin", "blinking": "blink"},
    **{"still": "stay", "staying": "stay", "rotates": "spin", "rotating": "spin"},
}


def is_correct(question: Question, reply: str) -> bool:
    """Whether a reply says what the answer says, whatever its case, articles, punctuation and digits.

    A reply that names several candidates where one is wanted is wrong. Times and durations need not be exact, see
    START_TOLERANCE_SECONDS and DURATION_TOLERANCE. Of `describe`, the objects and their
    order count; what they do does not.
    """
    if question.kind in _QUANTITIES:
        return _is_near_enough(question, reply)
    said = _meaning(question, reply)
    return bool(said) and said == _meaning(question, question.answer)


def _meaning(question: Question, text: str) -> tuple[str, ...]:
    """What a reply to this kind of question comes down to; empty if it says nothing of the kind."""
    words = split_words(text)
    if question.kind == "count":
        return tuple(str(number) for number in _numbers(text))
    if question.kind == "exists":
        return _distinct(words, ("yes", "no"))
    if question.kind == "direction":
        return _distinct(words, DIRECTIONS)
    if question.kind == "when":
        return _distinct(words, TIMES_OF_VIDEO)
    if question.kind == "action":
        verbs = _distinct([_VERBS.get(word, "") for word in words], set(_VERBS.values()))
        return verbs + (_distinct(words, DIRECTIONS) if "move" in verbs else ())
    repeated = question.subject if question.kind in ("after", "before") else ""
    objects = [f"{a} {b}" for a, b in pairwise(words) if a in COLOURS and b in SHAPES]
    nothing = [NOTHING] if NOTHING in words else []
    return tuple([thing for thing in objects if thing != repeated] + nothing)


def _is_near_enough(question: Question, reply: str) -> bool:
    """Whether a reply states one quantity, and one that is close enough to the true one."""
    pattern = _QUANTITIES[question.kind]
    (true_value,), said = ([_in_seconds(match) for match in pattern.findall(text)] for text in (question.answer, reply))
    tolerance = START_TOLERANCE_SECONDS if question.kind == "start" else DURATION_TOLERANCE * true_value
    return len(said) == 1 and abs(said[0] - true_value) <= tolerance


def _in_seconds(written: str) -> int:
    seconds = 0
    for part in written.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds


def _distinct(words: Iterable[str], wanted: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted({word for word in words if word in wanted}))


def _numbers(text: str) -> list[int]:
    words = re.findall(r"[a-z]+|\d+", text.lower())
    return [int(word) if word.isdigit() else NUMBERS.index(word) for word in words if word.isdigit() or word in NUMBERS]
