import copy
import dataclasses
import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from longvlm import LongVLM
from longvlm.errors import LongVLMError
from longvlm.training.auxiliary_losses import ModelWithAuxiliaryLosses
from longvlm.training.default_model import RECIPE, Course, load_recipe, main, take_only
from longvlm.training.drawn_blocks import BlockPlan
from longvlm.training.examples import IGNORED, ComposedBatches, Lesson
from longvlm.training.segment_bank import SegmentBank
from longvlm.training.stage import PARTS, StageSettings, run_stage
from longvlm.training.untrained_model import build_tokenizer
from longvlm.world.questions import make_questions
from longvlm.world.scene import SHAPES, make_scene
from longvlm.world.video import write_video
from longvlm.world.wordings import TIMED_KINDS


def tiny_recipe(folder: Path) -> Path:
    """The shipped recipe with every number that costs time turned down."""
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["threads"] = 2
    recipe["model"].update(vision_width=32, vision_layers=2, vision_heads=2, text_width=32, text_layers=5, text_heads=4)
    recipe["model"].update(global_layers=2, state_layer=2, recall_layer=4)
    recipe["bank"] = {"blocks": 20, "segments_per_block": [1, 2], "scenes": 2, "segments_per_scene": [2, 3]}
    recipe["encoder"].update(steps=2, warmup_steps=1, batch_size=2)
    for stage in recipe["lessons"]:
        stage.update(steps=2, warmup_steps=1, averaged_steps=min(stage.get("averaged_steps", 0), 2))
        stage["lesson"].update(tokens_per_batch=300, segments=[2, 3])
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    folder = tmp_path_factory.mktemp("course")
    course = Course(load_recipe(tiny_recipe(folder)), folder / "run")
    course.run()
    return course


def test_every_stage_reports_and_is_not_run_twice(course: Course) -> None:
    log = json.loads(course.log_path.read_text())
    assert list(log) == ["encoder", "bank", "videos", "long", "answers", "hours", "gaps", "mixed"]
    spent = {"wall_seconds", "cpu_seconds", "rounded_products", "recipe"}
    assert set(log["encoder"]) == {"colour", "shape", "empty", "pose_error", *spent}
    again = Course(course.recipe, course.folder)
    again.run()
    assert json.loads(again.log_path.read_text()) == log
    expected = dict(course.model.named_parameters())
    for name, weight in again.model.named_parameters():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("is_fast", [True, False])
def test_products_are_rounded_where_that_is_fast(
    course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_fast: bool
) -> None:
    """Those of learning; the encoder is an exact one again when the bank is made."""
    monkeypatch.setattr("longvlm.training.default_model.multiplies_bfloat16_fast", lambda device: is_fast)
    products: list[torch.dtype] = []
    multiply = torch.Tensor.__matmul__

    def note(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        products.append(one.dtype)
        return multiply(one, other)

    recipe = dataclasses.replace(course.recipe, lessons=())
    monkeypatch.setattr(torch.Tensor, "__matmul__", note)
    other = Course(recipe, tmp_path)
    other.run()
    assert (torch.bfloat16 in products) == is_fast
    linear = [layer for layer in other.model.modules() if isinstance(layer, nn.Linear)]
    assert {(type(layer), layer.weight.dtype) for layer in linear} == {(nn.Linear, torch.float32)}
    assert {stage["rounded_products"] for stage in json.loads(other.log_path.read_text()).values()} == {is_fast}


def test_a_run_stopped_in_the_middle_of_a_stage_ends_with_the_same_weights(
    course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = 0
    forward = ModelWithAuxiliaryLosses.forward

    def stop_at_the_fourth_step(self: ModelWithAuxiliaryLosses, *arguments: Any, **named: Any) -> Any:
        nonlocal parts
        parts += 1
        if parts > 3 * course.recipe.threads:
            raise KeyboardInterrupt
        return forward(self, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ModelWithAuxiliaryLosses, "forward", stop_at_the_fourth_step)
        Course(course.recipe, tmp_path).run()
    assert (tmp_path / "videos.pt").is_file() and (tmp_path / "long.begun.json").is_file()
    assert (tmp_path / "long" / "checkpoint-1").is_dir() and not (tmp_path / "long.pt").exists()
    again = Course(course.recipe, tmp_path)
    again.run()
    expected = course.learner.state_dict()
    for name, weight in again.learner.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_the_exported_model_encodes_and_answers(course: Course, tmp_path: Path) -> None:
    again = Course(course.recipe, course.folder)  # an export leaves its course in bfloat16
    again.run()
    again.export(tmp_path / "model")
    write_video(make_scene(5, 12.0), tmp_path / "video.mp4", width=64, height=48, fps=5, show_progress=False)
    model = LongVLM.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    exported = model.language_model.state_dict()
    for name, weight in course.model.state_dict().items():
        assert torch.equal(exported[name], weight.bfloat16().float()), name
    index = model.encode(tmp_path / "video.mp4")
    assert index.num_frames == 12  # one a second, as the model was trained
    assert index.compression == course.model.config.compression_settings
    assert index.compression.tokens_per_segment == course.recipe.model.tokens_per_segment
    assert index.compression.merge_schedule is not None
    assert index.compression.merge_schedule[:3] == (160, 120, 90)  # a quarter of what is left, level by level
    assert model.ask(index, "What appears first?", max_new_tokens=3).new_tokens >= 1


def test_a_bank_that_was_begun_is_gone_on_with(course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longvlm.training.default_model.BLOCKS_PER_PART", 8)
    encode, made = SegmentBank.encode, []

    def encode_twice(plans: Any, *more: Any, **named: Any) -> SegmentBank:
        if len(made) == 2:
            made.clear()
            raise KeyboardInterrupt
        made.append(len(plans))
        return encode(plans, *more, **named)

    monkeypatch.setattr(SegmentBank, "encode", encode_twice)
    recipe = dataclasses.replace(course.recipe, lessons=())
    with pytest.raises(KeyboardInterrupt):
        Course(recipe, tmp_path).run()
    assert not (tmp_path / "bank.safetensors").exists()
    spent = [json.loads(path.read_text())["wall_seconds"] for path in (tmp_path / "bank").glob("*.json")]
    again = Course(recipe, tmp_path)
    again.run()
    assert made == [6], "of 20 blocks and 2 scenes, the two parts of eight were not made again"
    assert again.log["bank"]["wall_seconds"] >= round(sum(spent), 1) - 0.1
    assert not (tmp_path / "bank").exists()
    joined, whole = (load_file(folder / "bank.safetensors") for folder in (tmp_path, course.folder))
    assert joined.keys() == whole.keys() and all(torch.equal(joined[name], whole[name]) for name in whole)
    assert (
        SegmentBank.load(tmp_path / "bank.safetensors").plans
        == SegmentBank.load(course.folder / "bank.safetensors").plans
    )


def compose_batches(
    course: Course, num_batches: int = 8, kinds: Sequence[str] = ("exists", "first"), **settings: Any
) -> ComposedBatches:
    bank = SegmentBank.load(course.folder / "bank.safetensors")
    shares = {"conversation_share": 0.0, "names_share": 0.0}
    asked = {"tokens_per_batch": 400, "segments": (2, 4), "opening_range": 0.5, "questions_per_video": 3, **shares}
    timestamps = settings.pop("timestamps", False)
    lesson, weights = Lesson(**{**asked, **settings}), dict.fromkeys(kinds, 1.0)
    return ComposedBatches(
        bank, course.processor, lesson, num_batches=num_batches, kinds=weights, timestamps=timestamps, seed="3"
    )


def test_with_timestamps_the_segments_times_are_written_and_asked_for(course: Course) -> None:
    batch = compose_batches(course, kinds=TIMED_KINDS, timestamps=True)[0]
    compression = course.model.config.compression_settings
    for row in batch["input_ids"]:
        words = course.tokenizer.decode(row[row != course.processor.video_token_id])
        clocks = re.findall(r"\d+:\d\d", words.split("<user>")[1].split("<vid_end>")[0])
        num_visual = int((row == course.processor.video_token_id).sum())
        num_segments = (num_visual - compression.global_layers) // compression.tokens_per_segment
        assert clocks == [f"0:{10 * number:02}" for number in range(num_segments)]
    untimed = compose_batches(course)[0]
    assert not re.search(r"\d:\d\d", course.tokenizer.decode(untimed["input_ids"].flatten()))


def test_names_teach_no_answers(course: Course) -> None:
    batch = compose_batches(course, names_share=1.0)[0]
    assert "labels" not in batch
    assert len(batch["input_ids"]) > 1
    assert int(batch["is_name"].sum()) == len(batch["recalls"]) == len(batch["named"]) == len(batch["name_events"])
    words = course.tokenizer.convert_ids_to_tokens(batch["input_ids"][1][batch["is_name"][1]].tolist())
    assert len(words) >= 12 and set(words) <= set(SHAPES)


def test_batches_are_the_same_each_time_and_learn_only_answers(course: Course) -> None:
    batches = compose_batches(course)
    for index in (0, 5):
        batch, same = batches[index], batches[index]
        assert all(torch.equal(batch[key], same[key]) for key in batch)
        learned = course.tokenizer.decode(batch["labels"][batch["labels"] != IGNORED])
        turns = [turn.strip() for turn in learned.split("</s>") if turn.strip()]
        assert turns
        assert all(turn in ("yes", "no") or turn.split()[0] in ("a", "an") for turn in turns), turns
        places = batch["input_ids"] == course.processor.video_token_id
        assert int(places.sum()) == len(batch["visual_tokens"]) == len(batch["states"])
        assert len(set(places.sum(1).tolist())) == 1  # videos of one length
        # The last token of a video sees itself and nothing later; what only padding sees is padding.
        is_token = batch["input_ids"] != 0
        assert torch.equal(batch["attention_mask"].diagonal(dim1=2, dim2=3), torch.ones_like(is_token)[:, None])
        seen = (batch["attention_mask"][:, 0] & is_token[:, :, None]).any(1)
        assert torch.equal(seen, is_token)
        assert torch.all(batch["labels"][~is_token] == IGNORED)


def test_batches_are_filled_to_the_budget(course: Course) -> None:
    batches = compose_batches(course, tokens_per_batch=1000)
    sizes = [batches[index]["input_ids"].numel() for index in range(8)]  # with padding
    assert all(600 <= size <= 1200 for size in sizes), sizes
    assert len(compose_batches(course, tokens_per_batch=1)[0]["input_ids"]) == 1  # never none


def test_a_batch_is_dealt_evenly_to_parts_that_hold_its_videos(course: Course) -> None:
    whole = compose_batches(course, tokens_per_batch=500)
    dealt = compose_batches(course, tokens_per_batch=500)
    dealt.parts = 2
    numbers = set()
    for index in range(8):
        rows = [row[row != 0].tolist() for row in whole[index]["input_ids"]]
        parts = [[row[row != 0].tolist() for row in part["input_ids"]] for part in dealt[index][PARTS]]
        assert len(parts) == 2 and len(parts[0]) == len(parts[1])
        together = [row for pair in zip(*parts, strict=True) for row in pair]
        assert together[: len(rows)] == rows and len(together) == len(rows) + len(rows) % 2  # one more if need be
        numbers.add(len(rows) % 2)
    assert numbers == {0, 1}
    lonely = compose_batches(course, tokens_per_batch=1)
    lonely.parts = 2
    assert [len(part["input_ids"]) for part in lonely[0][PARTS]] == [1, 1]


def test_long_videos_lose_empty_segments_and_keep_their_places(course: Course) -> None:
    long = {"segments": (20, 20), "opening_range": 1.0, "tokens_per_batch": 1}
    whole, part = (compose_batches(course, **long, shown_segments=shown)[0] for shown in (None, 8))
    compression = course.model.config.compression_settings
    per_video = compression.global_layers + 20 * compression.tokens_per_segment
    assert len(whole["visual_tokens"]) == per_video > len(part["visual_tokens"])
    for batch in (whole, part):
        in_text = batch["input_ids"][0] == course.processor.video_token_id
        last_place = batch["position_ids"][0][in_text].max() - batch["position_ids"][0][in_text].min()
        assert last_place == per_video - 1


def test_noise_wears_what_the_encoder_saw_and_nothing_else(course: Course) -> None:
    clean, noisy = (compose_batches(course, feature_noise=noise)[0] for noise in (0.0, 0.5))
    assert torch.equal(clean["input_ids"], noisy["input_ids"])
    is_global = torch.zeros(len(clean["visual_tokens"]), dtype=torch.bool)
    in_text = clean["input_ids"] == course.processor.video_token_id
    per_video = int(in_text.sum(1)[0])
    for video in range(len(in_text)):
        is_global[video * per_video : video * per_video + course.model.config.compression_settings.global_layers] = True
    change = (noisy["visual_tokens"] - clean["visual_tokens"]).abs()
    assert not change[is_global].any() and (change[~is_global].amax(1) > 0).all()


def test_conversations_refer_back(course: Course) -> None:
    texts = []
    for share in (0.0, 1.0):
        batches = compose_batches(course, segments=(6, 6), opening_range=1.0, conversation_share=share)
        texts.append(" ".join(course.tokenizer.decode(batches[i]["input_ids"].flatten()) for i in range(4)))
    assert "after that" not in texts[0] and "before that" not in texts[0]
    assert "after that" in texts[1] or "before that" in texts[1] or "does it do" in texts[1]


def test_a_lesson_may_ask_of_some_actions_and_weigh_kinds_itself(course: Course) -> None:
    batches = compose_batches(course, kinds=("first",), actions=("stay", "blink"), kind_weights={"exists": 2.0})
    assert batches.kinds == {"first": 1.0, "exists": 2.0}
    scenes = batches.bank.scenes
    assert all(not scene.events or {e.action for e in scene.events} & {"stay", "blink"} for scene in scenes)
    every = SegmentBank.load(course.folder / "bank.safetensors").scenes
    num_acting = sum(any(event.action in ("stay", "blink") for event in scene.events) for scene in every)
    num_empty = sum(not scene.events for scene in every)
    assert (num_acting, num_empty) > (0, 0) and len(scenes) == num_acting + (num_empty + 1) // 2
    much_else = compose_batches(course, num_batches=20, kind_weights={"exists": 100.0}, questions_per_video=1)
    learned = [batch["labels"][batch["labels"] != IGNORED] for batch in map(much_else.__getitem__, range(20))]
    answers = [course.tokenizer.decode(ids).split("</s>") for ids in learned]
    replies = [reply.strip() for some in answers for reply in some if reply.strip()]
    assert sum(reply in ("yes", "no") for reply in replies) > 0.9 * len(replies) > 10
    with pytest.raises(LongVLMError, match=r"actions has 'sleep'; the known ones are move left"):
        compose_batches(course, actions=("stay", "sleep"))
    with pytest.raises(LongVLMError, match=r"kind_weights has 0 for 'count'; a weight must be above 0"):
        compose_batches(course, kind_weights={"count": 0.0})
    with pytest.raises(LongVLMError, match=r"kind_weights has 'why'; the known ones are first"):
        compose_batches(course, kind_weights={"why": 1.0})


def test_the_last_stage_leaves_the_average_of_its_weights(course: Course) -> None:
    *earlier, stage = load_recipe(RECIPE).lessons
    assert (stage.averaged_steps, *{other.averaged_steps for other in earlier}) == (700, 0)
    left = torch.load(course.folder / f"{stage.name}.pt", weights_only=True)
    checkpoint = max((course.folder / stage.name).glob("checkpoint-*"))
    last, average = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "average"))
    changed = [name for name in average if not torch.equal(last[name], average[name])]
    assert "state_heads.weight" in changed and not any("vision_tower" in name for name in average)
    for name in average:
        assert torch.equal(left[name], average[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"averaged_steps": 2601}, r"lessons.0: averaged_steps is 2601; give 0, or a number up to .* the steps, 2600"),
        ({"loss_weights": {"counts": 2.0}}, r"lessons.0: loss_weights has 'counts'; the known ones are count, motion"),
        ({"loss_weights": {"count": "much"}}, r"lessons.0: loss_weights.count is 'much'; a number is expected"),
    ],
)
def test_wrong_weights_of_a_stage_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["lessons"][0].update(change)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(LongVLMError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_the_tokenizer_knows_and_returns_every_question_and_answer() -> None:
    tokenizer = build_tokenizer()
    for written in ("12 seconds", "1:23", "1:02:03", "a red circle, then a blue star"):
        assert tokenizer.decode(tokenizer(written, add_special_tokens=False)["input_ids"]) == written
    for seed in range(30):
        for question in make_questions(make_scene(seed, 90.0), seed=seed):
            for text in (question.text, question.answer):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert tokenizer.unk_token_id not in ids, text
            assert tokenizer.decode(ids).replace(" ", "") == question.answer.lower().replace(" ", "")


def test_the_quick_recipe_makes_a_model_of_the_same_shape() -> None:
    quick = load_recipe(RECIPE.with_name("default_model_quick.yaml"))
    assert quick.model == load_recipe(RECIPE).model
    whole = load_recipe(RECIPE)
    assert sum(stage.steps for stage in quick.lessons) < sum(stage.steps for stage in whole.lessons) / 3
    assert quick.lessons[0].loss_weights == whole.lessons[0].loss_weights


def test_a_recipe_with_a_misspelt_or_missing_key_is_refused(tmp_path: Path) -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["encoder"]["learning_rat"] = 1
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(LongVLMError, match=r"r.yaml: encoder has the unknown key 'learning_rat'"):
        load_recipe(tmp_path / "r.yaml")
    del recipe["encoder"]["learning_rat"], recipe["encoder"]["steps"]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(LongVLMError, match=r"encoder lacks the key 'steps'"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("lesson", "segments", [4], r"segments is \[4\]; 2 values are expected"),
        ("lesson", "segments", 4, r"segments is 4; a list is expected"),
        ("lesson", "segments", [12, 3], r"segments is \[12, 3\]; give the least, from 1 up"),
        ("lesson", "segments", [0, 3], r"segments is \[0, 3\]; give the least, from 1 up"),
        ("lesson", "questions_per_video", 0, r"questions_per_video is 0; it must be at least 1"),
        ("lesson", "shown_segments", 0, r"shown_segments is 0; it must be at least 1"),
        ("lesson", "names_share", 1.5, r"names_share is 1.5; give a share from 0 to 1"),
        ("lesson", "feature_noise", -0.1, r"feature_noise is -0.1; it must be 0 or more"),
        ("bank", "segments_per_scene", [4, 3], r"segments_per_scene is \[4, 3\]; give the least"),
        ("bank", "segments_per_block", [], r"segments_per_block is \[\]; give some numbers"),
        ("bank", "segments_per_block", [1, "2"], r"segments_per_block.1 is '2'; a whole number is expected"),
    ],
)
def test_values_that_a_recipe_can_not_have_are_refused(
    tmp_path: Path, part: str, key: str, value: object, message: str
) -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    {"lesson": recipe["lessons"][0]["lesson"], "bank": recipe["bank"]}[part][key] = value
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(LongVLMError, match=message):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recall_layer": 7}, "state_layer is 3 and recall_layer 7 of 7 text layers; choose 2 <= state_layer"),
        ({"state_layer": 1}, "state_layer is 1 and recall_layer 5 of 7 text layers"),
        ({"text_heads": 2}, "text_heads is 2; 3 at least look names up"),
    ],
)
def test_a_model_too_small_for_what_it_is_to_learn_is_refused(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["model"].update(change)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(LongVLMError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_short_videos_come_first(course: Course) -> None:
    settings: dict[str, Any] = {"num_batches": 3000, "segments": (2, 40)}
    growing = compose_batches(course, opening_range=0.35, **settings)
    steady = compose_batches(course, opening_range=1.0, **settings)

    def lengths(batches: ComposedBatches, which: range) -> list[int]:
        return [batches._draw_length(i, random.Random(i)) for i in which]

    assert max(lengths(growing, range(100))) <= 6
    assert min(lengths(growing, range(3000))) == 2
    assert lengths(growing, range(2000, 3000)) == lengths(steady, range(2000, 3000))
    assert max(lengths(steady, range(300))) > 30
    assert max(lengths(steady, range(3000))) == 40


def test_stages_of_another_recipe_are_not_taken_up(course: Course) -> None:
    longer = dataclasses.replace(course.recipe.lessons[0], steps=3)
    recipe = dataclasses.replace(course.recipe, lessons=(longer, *course.recipe.lessons[1:]))
    with pytest.raises(
        LongVLMError, match=r"'videos' of another recipe, or after other stages \(videos\.steps differs"
    ):
        Course(recipe, course.folder).run()
    fewer = dataclasses.replace(
        course.recipe, lessons=course.recipe.lessons[1:]
    )  # what came after learned from it, too
    with pytest.raises(LongVLMError, match=rf"holds the stage '{fewer.lessons[0].name}' .* \(after\..* differs\)"):
        Course(fewer, course.folder).run()
    with pytest.raises(LongVLMError, match=r"'encoder' of another recipe, or after other stages \(threads differs\)"):
        Course(dataclasses.replace(course.recipe, threads=1), course.folder).run()


def test_a_bank_of_scenes_that_are_drawn_otherwise_now_is_refused(
    course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockPlan, "scene", lambda plan, seconds: make_scene(plan.seed + 1, 60.0, num_events=1))
    with pytest.raises(LongVLMError, match=r"bank\.safetensors shows scenes that are drawn in another way now"):
        SegmentBank.load(course.folder / "bank.safetensors")


def test_times_are_not_written_where_segments_are_left_out(course: Course) -> None:
    timed = dataclasses.replace(course.recipe.model, timestamps=True)
    with pytest.raises(LongVLMError, match=r"shown_segments leaves segments out, whose times .* would need places"):
        dataclasses.replace(course.recipe, model=timed)


def test_two_threads_learn_from_a_batch_as_one_does(course: Course, tmp_path: Path) -> None:
    """Bit for bit, answers and all that is known at tokens; the replica's hooks are its own."""

    class InTurn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.learner = copy.deepcopy(course.learner)

        def forward(self, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
            first, second = (self.learner(**batch)["loss"] / len(batches) for batch in batches)
            first.backward()
            return {"loss": second}

    batches = compose_batches(course, num_batches=4, tokens_per_batch=1000)
    batches.parts = 2
    assert all(len(batches[index][PARTS]) == 2 for index in range(4))
    settings, in_turn, together = StageSettings(4, 1e-2, 1), InTurn(), copy.deepcopy(course.learner)
    torch.set_num_threads(1)
    run_stage(in_turn, batches, lambda items: {"batches": items[0][PARTS]}, settings, tmp_path / "in turn", seed=0)
    torch.set_num_threads(2)
    run_stage(together, batches, take_only, settings, tmp_path / "together", seed=0)
    learned = in_turn.learner.state_dict()
    for name, parameter in together.state_dict().items():
        assert torch.equal(parameter, learned[name]), name
    assert not torch.equal(together.model.lm_head.weight, course.model.lm_head.weight)


def test_lessons_of_one_name_are_refused(course: Course) -> None:
    first = course.recipe.lessons[0]
    for lessons in ((first, first), (dataclasses.replace(first, name="bank"),)):
        with pytest.raises(LongVLMError, match=rf"lessons has '{lessons[-1].name}' twice, or by a name that is taken"):
            dataclasses.replace(course.recipe, lessons=lessons)


def test_a_stage_begun_by_another_recipe_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in its first stage; then the recipe is changed, which its checkpoints know nothing of."""
    path, folder = tiny_recipe(tmp_path), tmp_path / "run"

    def stop(self: Course) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["default_model", str(path), "--runs", str(folder), "--output", str(folder)])
    with monkeypatch.context() as patch:
        patch.setattr(Course, "train_encoder", stop)
        assert main() == 130
    assert capsys.readouterr().err == "Interrupted; the same command goes on from the last checkpoint.\n"
    recipe = yaml.safe_load(path.read_text())
    recipe["encoder"]["steps"] += 1
    path.write_text(yaml.safe_dump(recipe))
    assert main() == 2
    assert capsys.readouterr().err == (
        f"Error: {folder} holds the stage 'encoder' of another recipe, or after other stages (encoder.steps differs); "
        "choose another folder with --runs, or remove that one.\n"
    )
