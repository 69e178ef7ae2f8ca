"""Questions are right, unambiguous, made of few words, and replies are judged by what they say."""

from __future__ import annotations

import itertools
import math
import random
import re

import pytest

from longvlm.errors import LongVLMError
from longvlm.world.questions import KINDS, Question, make_conversation, make_questions, vocabulary
from longvlm.world.scene import COLOURS, SHAPES, Scene, make_scene
from longvlm.world.scoring import is_correct
from longvlm.world.wordings import NUMBERS, TIMES_OF_VIDEO, split_words

OBJECT = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
COUNT_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, list[Question]]]:
    rng = random.Random(2)
    scenes = [make_scene(seed, rng.choice((10.0, 40.0, 90.0, 400.0, 3700.0))) for seed in range(200)]
    return [(scene, make_questions(scene, seed=7, per_kind=3)) for scene in scenes]


def _objects(text: str) -> list[str]:
    return [" ".join(pair) for pair in OBJECT.findall(text)]


def _expected(scene: Scene, question: Question) -> str:
    """The answer once more, from the events and the words of the question alone."""
    spans = {event.object: (event.start_seconds, event.end_seconds) for event in scene.events}
    actions = {event.object: event.action for event in scene.events}
    in_order = sorted(spans, key=lambda thing: spans[thing][0])
    named = _objects(question.text)
    match question.kind:
        case "first" | "last":
            return in_order[0 if question.kind == "first" else -1]
        case "after" | "before":
            return in_order[in_order.index(named[0]) + (1 if question.kind == "after" else -1)]
        case "count":
            return COUNT_WORDS.split()[len(spans)]
        case "exists":
            return "yes" if named[0] in spans else "no"
        case "direction":
            return actions[named[0]].split()[1]
        case "action":
            verb, *way = actions[named[0]].split()
            return " ".join(["it", verb + "s", *way, *(["still"] if verb == "stay" else [])])
        case "order":
            return " ".join(sorted(named, key=lambda thing: spans[thing][0]))
        case "when":
            middle = sum(spans[named[0]]) / 2 / scene.duration_seconds
            return "early" if middle < 1 / 3 else "middle" if middle < 2 / 3 else "late"
        case "start":
            minutes, seconds = divmod(int(spans[named[0]][0]), 60)
            hours, minutes = divmod(minutes, 60)
            return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        case "duration":
            start, end = spans[named[0]]
            return f"{end - start:.0f} seconds"
        case "at":
            moment = _moment(question.text)
            return " ".join(thing for thing, (a, b) in spans.items() if a < moment < b) or "nothing"
    assert question.kind == "describe"
    return " ".join(in_order)


def _moment(text: str) -> int:
    """The seconds of a time such as 1:02:03."""
    digits = re.search(r"(?:(\d+):)?(\d+):(\d\d)", text)
    assert digits
    hours, minutes, seconds = (int(part or 0) for part in digits.groups())
    return 3600 * hours + 60 * minutes + seconds


def test_answers_are_true(asked: list[tuple[Scene, list[Question]]]) -> None:
    for scene, questions in asked:
        for question in questions:
            expected = _expected(scene, question)
            said = " ".join(_objects(question.answer)) or question.answer
            assert said == expected, f"{scene.seed}: {question}"
            assert is_correct(question, question.answer)
            assert 0 <= question.chance <= 1


def test_every_kind_is_asked_and_none_twice(asked: list[tuple[Scene, list[Question]]]) -> None:
    kinds = dict.fromkeys(KINDS, 0)
    for _, questions in asked:
        assert len({(question.text, question.answer) for question in questions}) == len(questions)
        for kind, group in itertools.groupby(questions, key=lambda question: question.kind):
            size = len(list(group))
            assert size <= 3
            kinds[kind] += size > 0
    assert min(kinds.values()) > 60, kinds


def test_order_is_asked_only_where_it_can_be_seen(asked: list[tuple[Scene, list[Question]]]) -> None:
    for scene, questions in asked:
        starts = {event.object: event.start_seconds for event in scene.events}
        for question in questions:
            if question.kind in ("first", "last", "after", "before", "order", "describe"):
                for thing in _objects(question.answer):
                    assert all(abs(starts[thing] - s) >= 2 for other, s in starts.items() if other != thing)
            if question.kind == "at":
                moment = _moment(question.text)
                times = [time for event in scene.events for time in (event.start_seconds, event.end_seconds)]
                assert all(abs(moment - time) >= 1.5 for time in times)
                assert not any(event.action == "blink" and event.object in question.answer for event in scene.events)
            if question.kind == "duration":  # what blinks is seen for less than it lasts
                assert not any(event.action == "blink" and event.object in question.text for event in scene.events)
            if question.kind == "exists" and question.answer == "no":
                colour, shape = _objects(question.text)[0].split()
                assert any(event.colour == colour or event.shape == shape for event in scene.events)


def test_yes_and_no_are_about_as_frequent(asked: list[tuple[Scene, list[Question]]]) -> None:
    answers = [question.answer for _, questions in asked for question in questions if question.kind == "exists"]
    assert 0.42 < answers.count("yes") / len(answers) < 0.58


@pytest.mark.parametrize(
    ("duration_seconds", "kind"),
    [(60.0, "start"), (60.0, "duration"), (300.0, "duration"), (30.0, "when"), (300.0, "when"), (60.0, "count")],
)
def test_chance_is_what_the_best_fixed_answer_reaches(duration_seconds: float, kind: str) -> None:
    scenes = [make_scene(5000 + seed, duration_seconds) for seed in range(400)]
    asked = [question for scene in scenes for question in make_questions(scene, seed=0, kinds=[kind])]
    said = [f"{second} seconds" for second in range(int(duration_seconds))]
    said = {"when": list(TIMES_OF_VIDEO), "count": NUMBERS}.get(kind, said)
    best = max(sum(is_correct(question, reply) for question in asked) for reply in said) / len(asked)
    assert asked[0].chance == pytest.approx(best, abs=0.05)


@pytest.mark.parametrize("kinds", [("first",), ("last",), ("first", "after"), ("last", "before"), ("after",)])
def test_chance_of_a_follow_up_knows_what_the_turns_before_it_tell(kinds: tuple[str, ...]) -> None:
    scenes = [make_scene(5000 + seed, 200.0) for seed in range(1000)]
    conversations = [make_conversation(scene, seed=0) for scene in scenes]
    asked = [turns[-1] for turns in conversations if tuple(turn.kind for turn in turns) == (*kinds, "when")]
    best = max(sum(is_correct(question, reply) for question in asked) for reply in TIMES_OF_VIDEO) / len(asked)
    (chance,) = {question.chance for question in asked}
    assert len(asked) > 30
    assert chance == pytest.approx(best, abs=3 * math.sqrt(chance * (1 - chance) / len(asked)))
    assert (chance > 0.6) == (kinds != ("after",))


def test_the_shortest_videos_can_be_asked_about() -> None:
    for seed in range(40):
        asked = make_questions(make_scene(seed, 9.5), seed=0, per_kind=3)
        assert asked and all(question.answer and 0 < question.chance <= 1 for question in asked)


def test_a_scene_with_room_for_one_event_can_be_asked_when_it_starts() -> None:
    scene = make_scene(3, 6.0, num_events=1)
    (question,) = make_questions(scene, seed=0, kinds=["start"])
    assert question.answer == f"0:{int(scene.events[0].start_seconds):02d}" and 0 < question.chance <= 1


def test_same_seed_same_questions() -> None:
    scene = make_scene(3, 80.0)
    assert make_questions(scene, seed=1) == make_questions(scene, seed=1)
    assert make_questions(scene, seed=1) != make_questions(scene, seed=2)
    first = make_questions(scene, seed=1, kinds=["first"])
    assert first == [question for question in make_questions(scene, seed=1) if question.kind == "first"]


def test_conversations_refer_back() -> None:
    found = 0
    for seed in range(60):
        scene = make_scene(seed, 90.0)
        turns = make_conversation(scene, seed=seed)
        assert [turn.turn for turn in turns] == list(range(len(turns)))
        for before, turn in itertools.pairwise(turns):
            assert not _objects(turn.text), "a later turn names no object"
            subject = _objects(before.answer)[0]
            index = [event.object for event in scene.events].index(subject)
            assert turn.subject == subject
            if turn.kind in ("after", "before"):
                neighbour = scene.events[index + (1 if turn.kind == "after" else -1)]
                assert _objects(turn.answer) == [neighbour.object]
            found += 1
    assert found > 60


def test_no_turn_asks_for_what_was_named_before() -> None:
    for seed in range(300):
        turns = make_conversation(make_scene(seed, 90.0), seed=seed)
        for number, turn in enumerate(turns):
            named = {thing for before in turns[:number] for thing in _objects(f"{before.text} {before.answer}")}
            assert not named & set(_objects(turn.answer)), [one.text for one in turns]


def test_the_vocabulary_is_small_and_complete(asked: list[tuple[Scene, list[Question]]]) -> None:
    words = set(vocabulary())
    assert vocabulary() == sorted(words) and len(words) < 400
    for scene, questions in asked:
        for question in [*questions, *make_conversation(scene, seed=1)]:
            assert set(split_words(f"{question.text} {question.answer}")) <= words
            assert "".join(split_words(question.text)) == re.sub(r"\s", "", question.text.lower())


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(LongVLMError, match="'smell'"):
        make_questions(make_scene(0, 20.0), seed=0, kinds=["smell"])


def test_the_chance_of_nothing_is_that_of_its_being_asked() -> None:
    asked = [q for seed in range(600) for q in make_questions(make_scene(5000 + seed, 30.0), seed=0, kinds=["at"])]
    nothing = sum(question.answer == "nothing" for question in asked) / len(asked)
    assert sum(question.chance for question in asked) / len(asked) == pytest.approx(nothing, abs=0.035)
