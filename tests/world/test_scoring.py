"""Replies are judged by what they say."""

from __future__ import annotations

import pytest

from longvlm.world.questions import Question
from longvlm.world.scoring import is_correct


def _question(kind: str, answer: str, subject: str = "") -> Question:
    return Question(kind, "?", answer, 0.5, subject=subject)


@pytest.mark.parametrize(
    ("kind", "answer", "reply", "right"),
    [
        ("first", "a red circle", "A Red Circle.", True),
        ("first", "a red circle", "The first object is the red circle", True),
        ("first", "a red circle", "red", False),
        ("first", "a red circle", "a red circle or a blue star", False),
        ("first", "a red circle", "a red square", False),
        ("first", "a red circle", "", False),
        ("after", "a red circle", "After the blue star comes a red circle.", True),
        ("count", "three", "3", True),
        ("count", "three", "There are three objects.", True),
        ("count", "three", "three or four", False),
        ("count", "three", "13", False),
        ("exists", "yes", "Yes, it does.", True),
        ("exists", "no", "Yes", False),
        ("exists", "no", "nothing", False),
        ("direction", "left", "It moves left.", True),
        ("direction", "left", "left and then right", False),
        ("direction", "up", "It moves upwards.", True),
        ("direction", "down", "It moves upward.", False),
        ("action", "it moves down", "It goes downwards", True),
        ("action", "it grows", "It gets bigger.", True),
        ("action", "it shrinks", "It becomes smaller.", True),
        ("action", "it blinks", "It flashes on and off.", True),
        ("action", "it stays still", "It is stationary.", True),
        ("action", "it stays still", "It gets smaller.", False),
        ("action", "it spins", "the star is spinning", True),
        ("action", "it moves up", "It is moving up", True),
        ("action", "it moves up", "it moves", False),
        ("action", "it moves up", "it moves down", False),
        ("action", "it stays still", "It stays still", True),
        ("action", "it stays still", "it blinks", False),
        ("action", "it stays still", "It is still.", True),
        ("action", "it stays still", "It does not move.", True),
        ("action", "it stays still", "It does not move left.", False),
        ("action", "it moves left", "It is still moving left.", True),
        ("action", "it stays still", "It is still moving left.", False),
        ("first", "a red circle", "There is no red circle.", False),
        ("first", "a red circle", "It is not a red circle.", False),
        ("when", "middle", "In the middle.", True),
        ("when", "middle", "early or in the middle", False),
        ("at", "nothing", "Nothing.", True),
        ("at", "nothing", "a red circle", False),
        ("at", "nothing", "There is no object.", True),
        ("at", "nothing", "There is no red circle.", False),
        ("at", "a red circle", "no object", False),
        ("at", "a red circle", "nothing, or a red circle", False),
        ("start", "1:23", "At 1:20.", True),
        ("start", "1:23", "1:28", True),
        ("start", "1:23", "1:29", False),
        ("start", "1:02:03", "1:02:00", True),
        ("start", "1:23", "1:20 or 1:25", False),
        ("start", "1:23", "83 seconds", True),
        ("start", "1:23", "after 1 minute and 20 seconds", True),
        ("start", "1:23", "20 seconds", False),
        ("start", "2:00", "At 2 minutes.", True),
        ("start", "1:00", "after 1 minute", True),
        ("start", "0:02", "at 2 minutes", False),
        ("start", "0:03", "at three seconds", True),
        ("duration", "12 seconds", "12.5 seconds", True),
        ("duration", "12 seconds", "twelve seconds", True),
        ("duration", "12 seconds", "0:12", True),
        ("count", "three", "twenty three", False),
        ("direction", "left", "It doesn't move left.", False),
        ("action", "it spins", "It does not spin.", False),
        ("exists", "no", "The red circle does not appear.", True),
        ("exists", "no", "No, it does not appear.", True),
        ("exists", "yes", "It does not appear.", False),
        ("duration", "12 seconds", "about 15 seconds", True),
        ("duration", "12 seconds", "8", True),
        ("duration", "12 seconds", "17 seconds", False),
        ("duration", "12 seconds", "a while", False),
        ("order", "a red circle, then a blue star", "red circle, blue star", True),
        ("order", "a red circle, then a blue star", "blue star, red circle", False),
        ("describe", "a red circle grows, then a blue star spins", "A red circle, then a blue star.", True),
    ],
)
def test_replies_are_judged_by_what_they_say(kind: str, answer: str, reply: str, right: bool) -> None:
    assert is_correct(_question(kind, answer, subject="blue star"), reply) is right
