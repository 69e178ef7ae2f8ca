"""What is known of a generated video, as plain data for a JSON file."""

from __future__ import annotations

from typing import Any

from longvlm.world.questions import Question, make_conversation, make_questions
from longvlm.world.scene import Scene

QUESTIONS_PER_KIND = 2


def truth_of(scene: Scene) -> dict[str, Any]:
    """The scene's events, questions with their answers, and a conversation whose later turns refer back (or none)."""
    return {
        "seed": scene.seed,
        "duration_seconds": scene.duration_seconds,
        "events": [
            {
                "object": event.object,
                "action": event.action,
                "start_seconds": round(event.start_seconds, 3),
                "end_seconds": round(event.end_seconds, 3),
            }
            for event in scene.events
        ],
        "questions": [_plain(one) for one in make_questions(scene, seed=scene.seed, per_kind=QUESTIONS_PER_KIND)],
        "conversation": [_plain(turn) for turn in make_conversation(scene, seed=scene.seed)],
    }


def _plain(question: Question) -> dict[str, str]:
    return {
        "kind": question.kind,
        "question": question.text,
        "answer": question.answer,
        "subject": question.subject,
    }
