"""The truth told beside a video is the scene's."""

from __future__ import annotations

import json
from importlib.resources import files

from longvlm.world.questions import KINDS, make_conversation, make_questions
from longvlm.world.scene import make_scene
from longvlm.world.truth import truth_of


def test_truth_holds_events_questions_and_a_conversation() -> None:
    scene = make_scene(11, 120.0)
    truth = json.loads(json.dumps(truth_of(scene)))
    assert (truth["seed"], truth["duration_seconds"]) == (11, 120.0)
    assert [(one["object"], one["action"]) for one in truth["events"]] == [(e.object, e.action) for e in scene.events]
    assert [one["start_seconds"] for one in truth["events"]] == [round(e.start_seconds, 3) for e in scene.events]
    asked = make_questions(scene, seed=11, per_kind=2)
    assert [(one["question"], one["answer"]) for one in truth["questions"]] == [(q.text, q.answer) for q in asked]
    assert {one["kind"] for one in truth["questions"]} <= set(KINDS)
    turns = make_conversation(scene, seed=11)
    assert len(turns) > 1
    assert [(one["question"], one["answer"]) for one in truth["conversation"]] == [(q.text, q.answer) for q in turns]


def test_the_bundled_samples_truth_is_that_of_its_scene() -> None:
    sample = json.loads((files("longvlm") / "assets" / "sample.json").read_text(encoding="utf-8"))
    truth = truth_of(make_scene(sample["seed"], sample["duration_seconds"]))
    assert {name: sample[name] for name in truth} == truth
