"""Scores are what the records say, and the commands work from end to end on a tiny random model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from longvlm import (
    LongVLM,
    LongVLMConfig,
    LongVLMError,
    LongVLMForConditionalGeneration,
    LongVLMProcessor,
    VideoIndex,
)
from longvlm.world.__main__ import main
from longvlm.world.evaluate import (
    ALL_KINDS,
    FOLLOW_UP,
    Record,
    as_json,
    evaluate,
    kinds_for,
    score,
)
from longvlm.world.losses import measure_losses
from longvlm.world.planned_videos import (
    EVALUATION_SEEDS,
    _index_paths,
    _rendered,
    plan_videos,
    reencode_in_turns,
    render_plan,
)
from longvlm.world.questions import Question, make_conversation, make_questions, vocabulary
from longvlm.world.reencode import REENCODINGS
from longvlm.world.scene import make_scene
from longvlm.world.wordings import TIMED_KINDS, split_words

SPECIAL = ["<s>", "</s>", "<unk>", "<vid_patch>", "<vid_start>", "<vid_end>"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that speaks the world's words."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *vocabulary()])}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:],
    )
    config = LongVLMConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
        ),
        video_token_index=SPECIAL.index("<vid_patch>"),
        compression={"tokens_per_segment": 4, "global_layers": 2, "merge_heads": 4},
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(1)  # no two words within 8e-4 of each other, so that rounding doesn't choose between them
    LongVLMForConditionalGeneration(config).save_pretrained(folder)
    LongVLMProcessor(tokenizer, image_size=28, compression=config.compression).save_pretrained(folder)
    return folder


@pytest.fixture
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model never ends an answer; without this it would always speak to the limit."""
    monkeypatch.setattr("longvlm.world.evaluate.MAX_NEW_TOKENS", 8)


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "longvlm.world", *arguments], capture_output=True, text=True)


def test_plans_are_repeatable_log_uniform_and_of_mixed_sizes() -> None:
    plans = plan_videos(400, seed=3, min_seconds=30, max_seconds=600)
    assert plans == plan_videos(400, seed=3, min_seconds=30, max_seconds=600)
    assert all(30 <= plan.duration_seconds <= 600 and 10 <= plan.fps <= 25 for plan in plans)
    assert 0.4 < np.mean([plan.duration_seconds < np.sqrt(30 * 600) for plan in plans]) < 0.6
    assert len({(plan.width, plan.height) for plan in plans}) >= 4
    others = plan_videos(400, seed=4, min_seconds=30, max_seconds=600)
    seeds = {plan.seed for plan in [*plans, *others]}
    assert len(seeds) == 800 and min(seeds) >= EVALUATION_SEEDS


@pytest.mark.parametrize(
    ("count", "low", "high", "words"),
    [
        (0, 30, 60, "number of videos is 0"),
        (1, 5, 60, "from 5 to 60 s are not"),
        (1, 60, 30, "from 60 to 30 s are not"),
    ],
)
def test_impossible_plans_are_refused(count: int, low: float, high: float, words: str) -> None:
    with pytest.raises(LongVLMError, match=words):
        plan_videos(count, seed=0, min_seconds=low, max_seconds=high)


def test_scores_count_right_answers_by_kind() -> None:
    first = Question("first", "What appears first?", "a red circle", 1 / 80)
    exists = Question("exists", "Does a red circle appear?", "yes", 0.5)
    records = [
        Record(0, 30.0, first, "a red circle", "a blue star"),
        Record(1, 30.0, first, "a red ring", "a red circle", "a red circle"),
        Record(0, 30.0, exists, "yes", "no"),
        Record(1, 30.0, exists, "Yes.", "yes", "no"),
    ]
    by_kind = {one.kind: one for one in score(records)}
    assert list(by_kind) == ["first", "exists", "all"]
    assert (by_kind["first"].n, by_kind["first"].accuracy, by_kind["first"].without_video) == (2, 0.5, 0.5)
    assert (by_kind["exists"].accuracy, by_kind["exists"].high, by_kind["exists"].chance) == (1.0, 1.0, 0.5)
    assert by_kind["exists"].low == pytest.approx(0.34, abs=0.01)  # of two videos
    assert [by_kind[kind].another_video for kind in ("first", "exists", "all")] == [1.0, 0.0, 0.5]
    assert by_kind["all"].accuracy == 0.75
    assert by_kind["first"].low == 0.0 and by_kind["first"].high == 1.0


def test_times_are_asked_of_models_that_are_given_them(checkpoint: Path) -> None:
    assert kinds_for(LongVLM.from_pretrained(checkpoint, timestamps=True)) == ALL_KINDS
    without = kinds_for(LongVLM.from_pretrained(checkpoint))
    assert set(ALL_KINDS) - set(without) == set(TIMED_KINDS) and len(without) == len(ALL_KINDS) - len(TIMED_KINDS)


@pytest.mark.usefixtures("short_answers")
def test_evaluating_a_model_end_to_end(checkpoint: Path, tmp_path: Path) -> None:
    model = LongVLM.from_pretrained(checkpoint, device="cpu", dtype="float32")
    plans = [
        dataclasses.replace(plan, width=64, height=48, fps=4)  # drawing is what takes the time
        for plan in plan_videos(2, seed=1, min_seconds=10, max_seconds=12)
    ]
    plans[1] = dataclasses.replace(plans[1], reencoding=REENCODINGS[1])
    kinds = ("first", "count", "exists")
    records = evaluate(model, plans, seed=1, kinds=kinds)
    expected = [
        question
        for plan in plans
        for question in make_questions(make_scene(plan.seed, plan.duration_seconds), seed=1, kinds=kinds)
    ]
    assert [record.question for record in records] == expected
    assert {record.video for record in records} == {0, 1}
    blind = model.ask(None, expected[0].text, max_new_tokens=8)
    assert split_words(records[0].reply_without_video) == split_words(blind.text)
    (other,) = render_plan(plans[0], tmp_path / "other.mp4")
    original, passed_on = render_plan(plans[1], tmp_path / "second.mp4")
    for record in records:
        told, second, after = (
            model.ask(model.encode(path, fps=1.0), record.question.text, max_new_tokens=8).text
            for path in (other, original, passed_on)
        )
        assert record.reply == (second if record.video else told)
        assert record.reply_to_another == (told if record.video else None)
        assert record.reply_reencoded == (after if record.video else None)
    summary = as_json(score(records), plans, seed=1, duration_seconds=(10, 12))
    assert summary["scores"]["all"]["n"] == len(records)
    assert (summary["videos"], summary["duration_seconds"]) == (2, [10, 12])


@pytest.mark.usefixtures("short_answers")
def test_kept_indexes_are_asked_again_and_missing_ones_made(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LongVLM.from_pretrained(checkpoint, device="cpu", dtype="float32")
    plans = [
        dataclasses.replace(plan, width=64, height=48, fps=4)
        for plan in plan_videos(2, seed=1, min_seconds=10, max_seconds=12)
    ]
    plans[1] = dataclasses.replace(plans[1], reencoding=REENCODINGS[1])
    arguments: dict[str, Any] = {"seed": 1, "kinds": ("first",), "with_controls": False}
    expected = evaluate(model, plans, **arguments)
    assert evaluate(model, plans[:1], **arguments, kept=tmp_path) == [one for one in expected if one.video == 0]
    (first,) = tmp_path.iterdir()
    assert VideoIndex.load(first).num_frames == math.ceil(plans[0].duration_seconds)
    drawn = []
    monkeypatch.setattr("longvlm.world.planned_videos._rendered", lambda plans: drawn.append(plans) or _rendered(plans))
    assert evaluate(model, plans, **arguments, kept=tmp_path) == expected
    assert evaluate(model, plans, **arguments, kept=tmp_path) == expected
    assert drawn == [plans[1:], []] and len(list(tmp_path.iterdir())) == 3
    with monkeypatch.context() as patch:  # the same events, drawn otherwise; and another way to pass them on
        patch.setattr("longvlm.world.planned_videos.render_frame", lambda *_: np.zeros((32, 32, 3), np.uint8))
        assert not {path.name for path in tmp_path.iterdir()} & {path.name for path in _index_paths(plans[0], tmp_path)}
    coarser = dataclasses.replace(REENCODINGS[1], options={"qmin": "9", "qmax": "9"})
    whole, passed_on = _index_paths(dataclasses.replace(plans[1], reencoding=coarser), tmp_path)
    assert whole.is_file() and not passed_on.is_file()
    other = LongVLM.from_pretrained(checkpoint, device="cpu", dtype="float32", compression={"global_layers": 1})
    with pytest.raises(LongVLMError, match=r"longvlm can't be used: .* global_layers=1 is wanted .* another folder"):
        evaluate(other, plans, **arguments, kept=tmp_path)
    rounded = LongVLM.from_pretrained(checkpoint, device="cpu", dtype="bfloat16")
    with pytest.raises(LongVLMError, match=r"was encoded in float32, and the model computes in bfloat16"):
        evaluate(rounded, plans, **arguments, kept=tmp_path)


@pytest.mark.usefixtures("short_answers")
def test_follow_ups_are_asked_in_one_conversation_and_scored_without_its_opening(
    checkpoint: Path, tmp_path: Path
) -> None:
    model = LongVLM.from_pretrained(checkpoint, device="cpu", dtype="float32")
    plans = [
        dataclasses.replace(plan, width=64, height=48, fps=4)
        for plan in plan_videos(2, seed=1, min_seconds=20, max_seconds=24)
    ]
    records = evaluate(model, plans, seed=1, kinds=(FOLLOW_UP,))
    conversations = [make_conversation(make_scene(plan.seed, plan.duration_seconds), seed=1) for plan in plans]
    assert all(conversations)
    assert [record.question for record in records] == [turn for turns in conversations for turn in turns[1:]]
    films = [model.encode(render_plan(plan, tmp_path / f"{i}.mp4")[0], fps=1.0) for i, plan in enumerate(plans)]

    def talk(index: VideoIndex | None, turns: list[Question]) -> list[str]:
        chat = model.chat(index)
        return [chat.ask(turn.text, max_new_tokens=8).text for turn in turns][1:]

    replies = [reply for film, turns in zip(films, conversations, strict=True) for reply in talk(film, turns)]
    assert [record.reply for record in records] == replies
    assert [record.reply_without_video for record in records] == [
        reply for turns in conversations for reply in talk(None, turns)
    ]
    to_another = [record.reply_to_another for record in records if record.video == 1]
    assert to_another == talk(films[0], conversations[1])


def test_render_command_writes_the_video_and_its_truth(tmp_path: Path) -> None:
    video, truth = tmp_path / "out.mp4", tmp_path / "truth.json"
    arguments = ["--seed", "4", "--duration", "12", "--size", "96x64", "--fps", "12.5"]
    done = _run("render", *arguments, "-o", str(video), "--truth", str(truth))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (96, 64, 12.5)
        assert sum(1 for _ in container.decode(stream)) == 150
    facts = json.loads(truth.read_text())
    scene = make_scene(4, 12.0)
    assert [event["object"] for event in facts["events"]] == [event.object for event in scene.events]
    for event, entry in zip(scene.events, facts["events"], strict=True):
        assert set(entry) == {"object", "action", "start_seconds", "end_seconds"}
        assert entry["start_seconds"] == pytest.approx(event.start_seconds, abs=1e-3)
    assert all(set(entry) == {"kind", "question", "answer", "subject"} for entry in facts["questions"])
    assert len(facts["questions"]) > 8


@pytest.mark.usefixtures("short_answers")
def test_evaluate_command_prints_one_json_object(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_videos(1, seed=1, min_seconds=10, max_seconds=11)[0]
    assert (plan.width, plan.height, plan.fps) == (256, 256, 10), "the seed of a video that is soon drawn"
    arguments = ["evaluate", "--videos", "1", "--seed", "1", "--duration", "10:11", "--json"]
    arguments += [
        "--model",
        str(checkpoint),
        "--dtype",
        "float32",
        "--reencoded",
        "--replies",
        str(tmp_path / "replies.jsonl"),
    ]
    arguments += ["--timestamps"]
    monkeypatch.setattr(sys, "argv", ["longvlm.world", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert "has not learned to read times" in printed.err
    assert {"start", "duration"} & set(summary["scores"])
    assert summary["videos"] == 1 and 0 <= summary["scores"]["all"]["accuracy"] <= 1
    assert summary["precision"] == "float32"
    weights = (checkpoint / "model.safetensors").read_bytes()
    assert summary["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    only, over_all = summary["reencoded"]
    assert only["low"] is None is over_all["high"], "one video tells nothing of others"
    assert (only.pop("reencoding"), over_all.pop("reencoding")) == (REENCODINGS[0].name, "all") and only == over_all
    assert over_all["n"] == summary["scores"]["all"]["n"]
    assert over_all["original"] == summary["scores"]["all"]["accuracy"]
    replies = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert len(replies) == over_all["n"] and {reply["seed"] for reply in replies} == {plan.seed}
    assert sum(reply["right"] for reply in replies) / len(replies) == pytest.approx(over_all["original"], abs=1e-4)
    assert all(isinstance(reply["reply_reencoded"], str) for reply in replies)
    told = {(reply["duration_seconds"], reply["size"], reply["fps"], reply["reencoding"]) for reply in replies}
    assert told == {(plan.duration_seconds, "256x256", 10, REENCODINGS[0].name)}, "what draws the file again"


@pytest.mark.usefixtures("short_answers")
def test_lengths_command_draws_and_tells(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["lengths", "--minutes", "0.2,0.25", "--videos", "1", "--json", "--model", str(checkpoint)]
    monkeypatch.setattr(sys, "argv", ["longvlm.world", *arguments, "-o", str(tmp_path / "lengths.png")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    first, second = json.loads(capsys.readouterr().out)["lengths"]
    assert (first["minutes"], second["minutes"]) == (0.2, 0.25)
    assert all(one["n"] > 0 and len(one["by_depth"]) == 5 for one in (first, second))
    assert (tmp_path / "lengths.png").stat().st_size > 1000


def test_losses_are_paired_and_told_by_reencoding() -> None:
    question = Question("exists", "Does a red circle appear?", "yes", 0.5)
    plans = reencode_in_turns(plan_videos(5, seed=0, min_seconds=30, max_seconds=60))
    records = [
        Record(video, 30.0, question, "yes", reply_reencoded="no" if video in (1, 4) else "yes") for video in range(5)
    ]
    by_name = {one.reencoding: one for one in measure_losses(plans, records)}
    assert list(by_name) == [*(how.name for how in REENCODINGS), "all"]
    assert [one.n for one in by_name.values()] == [2, 1, 1, 1, 5]
    assert [one.loss for one in by_name.values()] == pytest.approx([0.5, 1.0, 0.0, 0.0, 0.4])
    assert (by_name["all"].original, by_name["all"].reencoded) == (1.0, 0.6)
    assert by_name["all"].low == 0.0 < 0.4 < by_name["all"].high <= 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["render", "--duration", "3", "-o", "x.mp4"], "The duration is 3 s;"),
        (["render", "--size", "big", "-o", "x.mp4"], "--size is 'big'; write it as"),
        (["render", "--size", "33x20", "-o", "x.mp4"], "video size is 33x20"),
        (["render", "--size", "320.7x240", "-o", "x.mp4"], "--size is '320.7x240'; pixels are whole"),
        (["render", "--fps", "0", "-o", "x.mp4"], "fps is 0.0;"),
        (
            ["render", "--duration", "10", "--truth", "no-such-folder/t.json", "-o", "x.mp4"],
            "no-such-folder does not exist; create it",
        ),
        (["render", "--duration", "10", "--truth", ".", "-o", "x.mp4"], "it is a folder; give a file name"),
        (["render", "--duration", "10", "--truth", "x.mp4", "-o", "./x.mp4"], "--truth and --output are both x.mp4"),
        (["render", "--duration", "10", "--fps", "0.0004", "-o", "x.mp4"], "fps is 0.0004;"),
        (["render", "--duration", "10", "--codec", "aac", "-o", "x.mp4"], "codec is 'aac'"),
        (["render"], "Missing option '--output'"),
        (["render", "--seed", "one", "-o", "x.mp4"], "Invalid value for '--seed'"),
        (["evaluate", "--duration", "60"], "--duration is '60'; write it as MIN:MAX"),
        (["evaluate", "--videos", "0"], "The number of videos is 0"),
        (["lengths", "--minutes", "1,0.1", "-o", "x.png"], "--minutes has 0.1; videos are 0.16 minutes or longer"),
        (["lengths", "--minutes", "nan", "-o", "x.png"], "--minutes has nan;"),
        (["lengths", "-o", "x.xyz"], "Can't draw x.xyz"),
        (["lengths", "-o", "no-such-folder/x.png"], "no-such-folder does not exist; create it"),
        (["evaluate", "--model", "/no-such-folder"], "There is no model folder /no-such-folder"),
        (["dance"], "No such command 'dance'"),
    ],
)
def test_bad_arguments_get_one_line(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["longvlm.world", *arguments])
        patch.chdir(tmp_path)
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == "" and printed.err.startswith("Error: ") and printed.err.count("\n") == 1
    assert words in printed.err
    assert not list(tmp_path.iterdir())
