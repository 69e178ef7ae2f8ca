"""Replies are read strictly, and prompts are the user's to replace."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvlm import LongVLMError
from longvlm.evaluation.benchmarks import BENCHMARKS
from longvlm.evaluation.judging import PROMPTS_FOLDER, Judgement, load_prompts, parse_reply
from longvlm.evaluation.rows import Row


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("{'score': 4}", Judgement(4.0)),
        ('  {"score": 0}\n', Judgement(0.0)),
        ('{"score": 3.5, "why": "half"}', Judgement(3.5)),
        ("{'score': 6}", None),
        ("{'score': -1}", None),
        ("{'score': True}", None),
        ("{'score': '4'}", None),
        ('{"score": NaN}', None),
        ("{'score': 4", None),
        ("Score: 4", None),
        ("4", None),
        ("```json\n{'score': 4}\n```", None),
        ("Sure! {'score': 4}", None),
        ("{'score': 4} {'score': 5}", None),
        ("dict(score=4)", None),
        ("{'score': __import__('os').getpid() * 0}", None),
        ("[" * 5000, None),
        ("{'score': 4}" + " " * 5 + "x" * 20_000, None),
        ("", None),
    ],
)
def test_ratings(reply: str, expected: Judgement | None) -> None:
    assert parse_reply(reply, with_verdict=False) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("{'pred': 'yes', 'score': 5}", Judgement(5.0, True)),
        ('{"pred": "No ", "score": 1}', Judgement(1.0, False)),
        ("{'pred': 'maybe', 'score': 3}", None),
        ("{'pred': True, 'score': 3}", None),
        ("{'score': 3}", None),
        ("{'pred': 'yes'}", None),
    ],
)
def test_verdicts(reply: str, expected: Judgement | None) -> None:
    assert parse_reply(reply, with_verdict=True) == expected


@pytest.mark.parametrize("name", ["video-chatgpt", "activitynet-qa"])
def test_our_prompts_hold_every_text_once(name: str) -> None:
    benchmark = BENCHMARKS[name]
    for axis in benchmark.axes:
        questions = ("$Q1 {x}", "Q2?")[: axis.num_questions]
        row = Row(axis.part, "v", questions, "the $answer", {})
        predictions = ("<one>", "$prediction two")[: axis.num_questions]
        system, user = load_prompts([axis], None)[axis.name].fill(row, predictions)
        assert (system["role"], user["role"]) == ("system", "user")
        for text in (*questions, *predictions, row.answer):
            assert user["content"].count(text) == 1
        wanted = "{'pred': 'yes', 'score': 5}" if axis.kind == "verdict" else "{'score': 4}"
        assert wanted in system["content"]
        assert parse_reply(wanted, with_verdict=axis.kind == "verdict") is not None


def test_a_prompt_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "detail.txt").write_text("Price $$1. $question / ${answer} / $prediction")
    axes = BENCHMARKS["video-chatgpt"].axes[:2]
    prompts = load_prompts(axes, tmp_path)
    row = Row("generic", "v", ("Q",), "A", {})
    assert prompts["detail"].fill(row, ("P",)) == [{"role": "user", "content": "Price $1. Q / A / P"}]
    assert prompts["correctness"] == load_prompts(axes, None)["correctness"]
    (tmp_path / "detail.txt").write_text("Judge $question at $$1.\n--- \n${answer} / $prediction")
    assert load_prompts(axes, tmp_path)["detail"].fill(row, ("P",)) == [
        {"role": "system", "content": "Judge Q at $1."},
        {"role": "user", "content": "A / P"},
    ]


def test_half_an_emoji_does_not_stop_the_judging() -> None:
    (axis,) = BENCHMARKS["activitynet-qa"].axes[:1]
    row = Row(axis.part, "v", ("Q?",), "caf\ud83d", {})
    _, user = load_prompts([axis], None)[axis.name].fill(row, ("yes \ude00",))
    assert "caf?" in user["content"] and "yes ?" in user["content"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("qa.txt", "$question $answer", r"qa\.txt must hold \$answer, \$prediction, \$question"),
        ("qa.txt", "$question $answer $prediction $guess", r"it has .*\$guess"),
        ("qa.txt", "$question $answer $prediction costs 5 $ ", "A dollar sign itself"),
        ("qa.txt", "For $5.\n---\n$question $answer $prediction", "A dollar sign itself"),
        ("qa.txt", "$question $answer $prediction\n---\n", "has no message of the user"),
        ("question.txt", "$question $answer $prediction", r"has question\.txt; prompts are called .*qa\.txt"),
        ("notes.md", "", "has no .txt files"),
    ],
)
def test_a_wrong_prompt_is_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(LongVLMError, match=words):
        load_prompts(BENCHMARKS["msvd-qa"].axes, tmp_path)


def test_every_axis_has_a_prompt_and_every_prompt_an_axis() -> None:
    asked = {axis.prompt for benchmark in BENCHMARKS.values() for axis in benchmark.axes}
    assert asked == {path.stem for path in PROMPTS_FOLDER.glob("*.txt")}
