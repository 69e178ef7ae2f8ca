"""Every sentence the generated world can utter, and the closed list of words they are made of."""

from __future__ import annotations

import re
from string import Formatter

from longvlm.world.scene import ACTIONS, COLOURS, SHAPES

NUMBERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
TIMES_OF_VIDEO = ("early", "middle", "late")
NOTHING = "nothing"

# {x}: an object without article ("red circle"); {objects}: several in a row; {time}: a clock time ("1:23").
QUESTIONS: dict[str, tuple[str, ...]] = {
    "first": (
        "What appears first?",
        "Which object appears first?",
        "What is the first object in the video?",
        "What is the first thing that appears?",
        "Which object comes first in the video?",
    ),
    "last": (
        "What appears last?",
        "Which object appears last?",
        "What is the last object in the video?",
        "What is the last thing that appears?",
        "Which object comes last in the video?",
    ),
    "after": (
        "What appears right after the {x}?",
        "Which object comes right after the {x}?",
        "What comes directly after the {x}?",
        "Which object appears next after the {x}?",
        "After the {x}, what appears next?",
    ),
    "before": (
        "What appears right before the {x}?",
        "Which object comes right before the {x}?",
        "What comes directly before the {x}?",
        "Which object appears just before the {x}?",
        "Before the {x}, what appears?",
    ),
    "count": (
        "How many objects appear?",
        "How many objects are there in the video?",
        "How many objects appear in the video?",
        "How many different objects can be seen?",
        "Count the objects in the video.",
    ),
    "exists": (
        "Does a {x} appear?",
        "Is there a {x} in the video?",
        "Does a {x} appear in the video?",
        "Can a {x} be seen in the video?",
        "Does the video show a {x}?",
    ),
    "direction": (
        "Which way does the {x} move?",
        "In which direction does the {x} move?",
        "Where does the {x} move?",
        "In what direction is the {x} moving?",
        "Which way does the {x} go?",
    ),
    "action": (
        "What does the {x} do?",
        "What is the {x} doing?",
        "What happens to the {x}?",
        "How does the {x} behave?",
        "Describe what the {x} does.",
    ),
    "order": (
        "In which order do {objects} appear?",
        "In what order do {objects} appear?",
        "In which order does the video show {objects}?",
        "Put {objects} in the order in which they appear.",
        "What is the order of {objects}?",
    ),
    "when": (
        "When does the {x} appear: early, in the middle, or late?",
        "In which part of the video does the {x} appear: early, middle, or late?",
        "Does the {x} appear early, in the middle, or late?",
        "Is the {x} seen early, in the middle, or late in the video?",
        "At what point does the {x} appear: early, middle, or late?",
    ),
    "at": (
        "What is there at {time}?",
        "What can be seen at {time}?",
        "Which object is there at {time}?",
        "What does the video show at {time}?",
        "What is on the screen at {time}?",
    ),
    "start": (
        "At what time does the {x} appear?",
        "At what time is the {x} first seen?",
        "What is the time when the {x} appears?",
        "From what time on can the {x} be seen?",
        "At which time does the {x} come?",
    ),
    "duration": (
        "How long is the {x} on the screen?",
        "For how long can the {x} be seen?",
        "For how many seconds is the {x} there?",
        "How many seconds does the video show the {x}?",
        "How long does the {x} last?",
    ),
    "describe": (
        "Describe the video.",
        "What happens in the video?",
        "Tell me what happens in this video.",
        "Describe what happens from start to end.",
        "What does the video show?",
    ),
}
KINDS = tuple(QUESTIONS)
TIMED_KINDS = ("at", "start", "duration")  # only who reads times between the visual tokens can tell

# Later turns of a conversation; "that" and "it" stand for the object of the answer before.
FOLLOW_UPS: dict[str, tuple[str, ...]] = {
    "after": ("And after that?", "What comes after that?", "And then?", "What appears next?"),
    "before": ("And before that?", "What comes before that?", "What appears just before that?"),
    "action": ("What does it do?", "And what does it do?", "What happens to it?"),
    "when": (
        "When does it appear: early, in the middle, or late?",
        "Is it seen early, in the middle, or late?",
    ),
}

ACTION_ANSWERS: dict[str, str] = {
    **{action: f"it moves {action.removeprefix('move ')}" for action in ACTIONS if action.startswith("move ")},
    "grow": "it grows",
    "shrink": "it shrinks",
    "spin": "it spins",
    "blink": "it blinks",
    "stay": "it stays still",
}

_WORD = re.compile(r"[a-z]+|\d|[^\w\s]")


def with_article(thing: str) -> str:
    """ "red circle" -> "a red circle", "orange heart" -> "an orange heart"."""
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def fill(wording: str, **parts: str) -> str:
    """Put the parts into a wording, with "an" where the object's name needs it."""
    return re.sub(r"\ba (?=[aeiou])", "an ", wording.format(**parts))


def listed(things: list[str]) -> str:
    """ "the red circle, the blue star and the white ring"."""
    named = [f"the {thing}" for thing in things]
    return f"{', '.join(named[:-1])} and {named[-1]}"


def clock(time_seconds: int) -> str:
    """A time as a player shows it: 83 -> "1:23", 3723 -> "1:02:03"."""
    minutes, seconds = divmod(time_seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def split_words(text: str) -> list[str]:
    """Lower-case words, single digits and punctuation marks: the tokens of the world's closed vocabulary."""
    return _WORD.findall(text.lower())


def vocabulary() -> list[str]:
    """Every token that the world's questions and answers can contain, sorted."""
    wordings = [text for group in (QUESTIONS, FOLLOW_UPS) for texts in group.values() for text in texts]
    fixed = ["".join(literal for literal, *_ in Formatter().parse(text)) for text in wordings]
    answers = [
        *ACTION_ANSWERS.values(),
        *NUMBERS,
        *TIMES_OF_VIDEO,
        NOTHING,
        "yes no an a then and the , : . ?",
        "seconds",
        "0123456789",
    ]
    return sorted(set(split_words(" ".join([*fixed, *COLOURS, *SHAPES, *answers]))))
