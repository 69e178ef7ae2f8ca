"""Whether a reply is right: it is judged by what it says, not by how."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import pairwise

from longvlm.world.questions import DURATION_TOLERANCE, START_TOLERANCE_SECONDS, Question
from longvlm.world.scene import COLOURS, DIRECTIONS, SHAPES
from longvlm.world.wordings import NOTHING, NUMBERS, TIMES_OF_VIDEO, split_words

_NEGATION = re.compile(r"\b(?:not|never|cannot)\b|n['’]t\b")
_NEGATED_WORD = re.compile(  # "does not move", "doesn't seem to move", "cannot be said to change or move"
    r"(?:\bnot|\bnever|\bcannot|n['’]t)"
    r"(?: (?:appear|seem|look|like|it|to|be|said|really|actually|visibly|change|or|nor))* (\w+)"
)
_APPEARS = (
    r"(?:appear(?:s|ed)?|see|seen|shows?|shown|displayed?|there|visible|present|contains?|includes?|features?|have|"
    r"in the video)\b"
)
_AFFIRMS = re.compile(rf"\b{_APPEARS}")
_DENIES = re.compile(
    rf"(?:\bnot|\bnever|\bcannot|n['’]t)(?: \w+){{0,2}}? {_APPEARS}|\bthere (?:is|are)(?: not|n['’]t)\b"
)
_UNSURE = re.compile(r"\b(?:sure|certain|know|tell|say|determine|answer|see the video)\b")  # where it is negated
_ORIGIN = re.compile(r"\bfrom (?:the )?\w+")  # "from left to right" is to the right
_MINUTES = re.compile(r"(?<![.\d])(\d+) ?min(?:ute)?s?\b(?:,?(?: and)? (\d+) ?s(?:ec(?:ond)?s?)?\b)?")
_QUANTITY = re.compile(r"\d+(?::\d\d)+|\d+(?:\.\d+)?")  # a time on a clock ("1:23", "1:02:03"), or a number
_LARGER_NUMBERS = (
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
    *("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred"),
)

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
    **{"staying": "stay", "stationary": "stay", "motionless": "stay"},
    **dict.fromkeys(("rotate", "rotates", "rotating", "turns", "turning"), "spin"),
    **dict.fromkeys(("flash", "flashes", "flashing", "flickers", "flickering"), "blink"),
    **dict.fromkeys(("bigger", "larger", "expands", "expanding"), "grow"),
    **dict.fromkeys(("smaller", "contracts", "contracting"), "shrink"),
    **dict.fromkeys(("goes", "going", "travels", "travelling", "moved", "went"), "move"),
    **{"grew": "grow", "shrank": "shrink", "spun": "spin", "rotated": "spin", "turned": "spin", "blinked": "blink"},
    **{"flashed": "blink", "flickered": "blink", "stayed": "stay"},
}
_DIRECTIONS = {form: word for word in DIRECTIONS for form in (word, f"{word}ward", f"{word}wards")}
_NO_OBJECT = re.compile(r"\bno(?: objects?| thing|body)\b|\bempty\b")


def is_correct(question: Question, reply: str) -> bool:
    """Whether a reply says what the answer says, whatever its case, articles, punctuation and digits.

    A reply that names several candidates where one is wanted is wrong. Times and durations need not be exact, see
    START_TOLERANCE_SECONDS and DURATION_TOLERANCE. Of `describe`, the objects and their
    order count; what they do does not.
    """
    if question.kind in ("start", "duration"):
        return _is_near_enough(question, reply)
    said = _meaning(question, reply)
    return bool(said) and said == _meaning(question, question.answer)


def _meaning(question: Question, text: str) -> tuple[str, ...]:
    """What a reply to this kind of question comes down to; empty if it says nothing of the kind."""
    kind, text = question.kind, text.lower()
    words = split_words(text)
    is_negated = _NEGATION.search(text) is not None
    if kind == "count":
        return _numbers(text)
    if kind == "exists":
        return _existence(text, words, question.subject)
    if kind == "action":
        return _action(text)
    objects = [f"{a} {b}" for a, b in pairwise(words) if a in COLOURS and b in SHAPES]
    if kind == "describe":
        return tuple(objects)
    if kind == "at" and not objects and _NO_OBJECT.search(text):
        return (NOTHING,)
    if is_negated or "no" in words:
        return ()
    if kind == "direction":
        return _directions(text)
    if kind == "when":
        return _distinct(words, TIMES_OF_VIDEO)
    if kind == "order":
        return tuple(objects)
    repeated = question.subject if kind in ("after", "before") else ""
    nothing = [NOTHING] if NOTHING in words else []
    return tuple(dict.fromkeys([thing for thing in objects if thing != repeated] + nothing))


def _existence(text: str, words: list[str], subject: str) -> tuple[str, ...]:
    """ "yes", "no", or what a sentence says: that it appears, or doesn't; "no" alone may be of something else."""
    said = _distinct(words, ("yes", "no"))
    if said == ("no",) and words[0] != "no" and not re.search(rf"\bno (?:such\b|objects?\b|{subject})", text):
        said = ()
    if said or (_NEGATION.search(text) and _UNSURE.search(text)):
        return said
    if _DENIES.search(text):
        return ("no",)
    names_it = subject in " ".join(words) or re.search(r"\bit (?:appears|appeared|does|is)\b", text)
    return ("yes",) if names_it and _AFFIRMS.search(text) and "no" not in words else ()


def _action(text: str) -> tuple[str, ...]:
    """What does not move stays; "still" says so only where no verb says otherwise ("it is still moving")."""
    negated = {_VERBS[word] for word in _NEGATED_WORD.findall(text) if word in _VERBS}
    words = split_words(_NEGATED_WORD.sub(" ", text))
    verbs, directions = _distinct([_VERBS.get(word, "") for word in words], set(_VERBS.values())), _directions(text)
    if not verbs and ("still" in words or (negated == {"move"} and not directions)):
        return ("stay",)
    return verbs + (directions if "move" in verbs else ())


def _directions(text: str) -> tuple[str, ...]:
    words = split_words(_ORIGIN.sub(" ", text))
    return _distinct([_DIRECTIONS.get(word, "") for word in words], DIRECTIONS)


def _is_near_enough(question: Question, reply: str) -> bool:
    """Whether a reply states one quantity, and one that is close enough to the true one."""
    (true_value,), said = _quantities(question.answer), _quantities(reply)
    tolerance = START_TOLERANCE_SECONDS if question.kind == "start" else DURATION_TOLERANCE * true_value
    return len(said) == 1 and abs(said[0] - true_value) <= tolerance


def _quantities(text: str) -> list[float]:
    """In seconds; small numbers may be written as words."""
    in_digits = re.sub(r"[a-z]+", lambda word: _in_digits(word[0]), _without_larger_numbers(text.lower()))
    in_digits = re.sub(r"(\d+\.\d+) ?min(?:ute)?s?\b", lambda found: f"{60 * float(found[1]):g}", in_digits)
    on_a_clock = _MINUTES.sub(lambda parts: f"{parts[1]}:{int(parts[2] or 0):02}", in_digits)
    return [_in_seconds(written) for written in _QUANTITY.findall(on_a_clock)]


def _without_larger_numbers(text: str) -> str:
    """Words from thirteen to ninety-nine as digits."""
    teens, tens = _LARGER_NUMBERS[:7], _LARGER_NUMBERS[7:15]
    units = {word: number for number, word in enumerate(NUMBERS) if 1 <= number <= 9}
    for number, word in enumerate(teens, start=13):
        text = re.sub(rf"\b{word}\b", str(number), text)
    for number, word in enumerate(tens, start=2):
        for unit, more in units.items():
            text = re.sub(rf"\b{word}[ -]{unit}\b", str(10 * number + more), text)
        text = re.sub(rf"\b{word}\b", str(10 * number), text)
    return text


def _in_digits(word: str) -> str:
    return str(NUMBERS.index(word)) if word in NUMBERS else word


def _in_seconds(written: str) -> float:
    seconds = 0.0
    for part in written.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _distinct(words: Iterable[str], wanted: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted({word for word in words if word in wanted}))


def _numbers(text: str) -> tuple[str, ...]:
    """Each number once: "two (2) objects" are two."""
    words = [_in_digits(word) for word in re.findall(r"[a-z]+|\d+", _without_larger_numbers(text.lower()))]
    return tuple(dict.fromkeys(word for word in words if word.isdigit() or word in _LARGER_NUMBERS))
