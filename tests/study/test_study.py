import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from processes import family_of, needs_processes_listed, parents_of_the_living
from waiting import wait_until

from longvlm import LongVLM
from longvlm.errors import LongVLMError
from longvlm.model.checkpoints import DEFAULT_MODEL_FOLDER
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.study import course as course_module
from longvlm.study.blocks import BlockFeatures, plan_blocks
from longvlm.study.course import Answer, Run, Study, StudyLessons, StudyVideos
from longvlm.study.report import ALL, as_markdown, plot, score_rows
from longvlm.study.rows import Row, choose_rows, load_study, make_bank
from longvlm.study.side_by_side import LOG
from longvlm.study.spelling import spell_bank
from longvlm.training import default_model
from longvlm.training.auxiliary_losses import ModelWithAuxiliaryLosses
from longvlm.training.examples import IGNORED
from longvlm.training.ground_truth import STATE_COUNT, STATE_PLACE, STATE_SIZES
from longvlm.training.stage import StageSettings
from longvlm.training.untrained_model import build_model, build_tokenizer
from longvlm.world.questions import make_questions

RECIPE = Path(course_module.__file__).parent / "study.yaml"
MERGED = Row("merged", frames_per_segment=5, tokens_per_segment=8)
POOLED = Row("pooled", method="pool", background_weight=0.0, frames_per_segment=5)
FEWER = Row("fewer", method="subsample", frames_per_segment=20, with_global=False)


@pytest.fixture(scope="module")
def blocks() -> BlockFeatures:
    return BlockFeatures.encode(plan_blocks(4, first=0, seconds=20), LongVLM.from_pretrained().encoder, 20)


def tiny_study(folder: Path, **changes: Any) -> Path:
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe.update(threads=1, blocks=6, held_out_blocks=4, block_seconds=20, blocks_per_video=[1, 2], scored_videos=3)
    recipe.update(videos_per_batch=2, text_width=32, text_heads=4)
    recipe["training"] = {"steps": 2, "learning_rate": 1e-3, "warmup_steps": 1}
    recipe["start"] |= {"steps": 2, "warmup_steps": 1, "blocks": 20}
    recipe["start"]["lesson"] |= {"tokens_per_batch": 400, "segments": [1, 4]}
    recipe["rows"] = [{"name": "both", "seeds": 2}, {"name": "pooled", "method": "pool", "group": "others", "steps": 3}]
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**recipe, **changes}))
    return path


def test_the_bundled_study_has_the_papers_rows_three_times_each() -> None:
    study = load_study(RECIPE)
    main = [row for row in study.rows if row.group == "main"]
    assert [(row.seeds, row.steps) for row in main] == [(3, None)] * 5
    assert [row.name for row in main][-2:] == ["pooling", "fewer frames"]
    assert {row.group for row in study.rows if row.seeds == 1} == {
        "tokens a segment",
        "length of segments",
        "order and merging",
        "the world's own words",
    }
    assert [row.name for row in choose_rows(study, ["pooling", "local only"])] == ["pooling", "local only"]
    with pytest.raises(LongVLMError, match=r"no row 'pool'; its rows are local and global, local only"):
        choose_rows(study, ["pool"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "a", "methd": "pool"}], r"unknown key 'methd'"),
        ([{"name": "a"}, {"name": "a"}], r"two rows whose names have the same letters"),
        ([{"name": "a", "with_local": False, "with_global": False}], r"has no tokens at all"),
        ([{"name": "a", "frames_per_segment": 7}], r"a has 7 frames per segment, which must divide the 20"),
    ],
)
def test_a_wrong_row_is_refused(tmp_path: Path, rows: list[dict], message: str) -> None:
    with pytest.raises(LongVLMError, match=message):
        load_study(tiny_study(tmp_path, rows=rows))


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"start": 1.0}, r"kinds has 'start'; those that can be asked are first, last"),
        ({"first": 0}, r"kinds has 0 for 'first'; a weight must be above 0"),
    ],
)
def test_a_kind_of_question_that_a_video_without_times_does_not_answer_is_refused(
    tmp_path: Path, kinds: dict, message: str
) -> None:
    with pytest.raises(LongVLMError, match=message):
        load_study(tiny_study(tmp_path, kinds=kinds))


def test_merged_rows_average_the_patches_of_a_segment(blocks: BlockFeatures) -> None:
    bank = make_bank(blocks, MERGED)
    assert bank.local.shape == (16, 8, 128) and bank.layer_globals.shape == (16, 5, 128)
    segments = blocks.patches.float().unflatten(1, (4, 5)).flatten(0, 1)  # (16, 5, 64, 128)
    torch.testing.assert_close(bank.layer_globals[6], blocks.layer_globals[1, 10:15].float().mean(0))
    whole = make_bank(blocks, Row("all", frames_per_segment=5, tokens_per_segment=320))
    torch.testing.assert_close(whole.local, segments.flatten(1, 2))
    assert torch.equal(whole.token_events, blocks.patch_events.unflatten(1, (4, 5)).flatten(2).flatten(0, 1).long())


def test_pooling_keeps_the_mean_of_each_frame_and_of_each_place(blocks: BlockFeatures) -> None:
    bank = make_bank(blocks, POOLED)
    patches = blocks.patches.float()
    torch.testing.assert_close(bank.local, patches.mean(2).view(16, 5, 128))
    video = bank._join([0, 1])
    torch.testing.assert_close(video.visual_tokens[:64], patches[:2].flatten(0, 1).mean(0))
    torch.testing.assert_close(video.visual_tokens[64:], patches[:2].mean(2).flatten(0, 1))
    seen = blocks.patch_events.view(80, 64)
    for frame, event in enumerate(bank.token_events.flatten().tolist()):
        there = [int(e) for e in seen[frame].unique() if e >= 0]
        assert event in there if there else event == -1


def test_pooled_videos_end_with_what_was_averaged_over_all_of_it(blocks: BlockFeatures) -> None:
    """Frames first, then places, as Video-ChatGPT has them; the places are asked about the whole video."""
    videos = StudyVideos(make_bank(blocks, POOLED), build_tokenizer(), globals_last=True)
    video = videos.compose(random.Random(0), (2, 2))
    other = StudyVideos(videos.bank, build_tokenizer()).compose(random.Random(0), (2, 2))
    assert torch.equal(video.visual_tokens, torch.cat([other.visual_tokens[64:], other.visual_tokens[:64]]))
    assert torch.equal(video.token_events, torch.cat([other.token_events[64:], torch.full((64,), -1)]))
    assert video.token_segments.tolist() == [*other.token_segments[64:].tolist(), *[8] * 64]
    example = videos.make_example(video, [[("what is first?", "a red circle")]])
    shown = {event for event in video.token_events.tolist() if event >= 0}
    assert (example["states"][-64:, STATE_COUNT] == len(shown)).all()


def test_fewer_frames_keep_all_patches_of_the_middle_ones(blocks: BlockFeatures) -> None:
    bank = make_bank(blocks, FEWER)
    torch.testing.assert_close(bank.local, blocks.patches[:, 10].float())
    assert torch.equal(bank.token_events, blocks.patch_events[:, 10].long())
    assert bank.token_frames.unique().tolist() == [10.0]
    assert bank.layer_globals.shape == (4, 0, 128)
    assert len(bank._join([2, 0]).visual_tokens) == 2 * 64


@pytest.mark.parametrize(
    "row",
    [Row("temporal", merge_order="temporal", frame_code=3.0), Row("merge"), replace(POOLED, frames_per_segment=10)],
    ids=lambda row: row.name,
)
def test_many_segments_at_once_are_what_each_is_by_itself(
    long_blocks: BlockFeatures, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = make_bank(long_blocks, row)  # 32 segments, more than are merged in one call
    monkeypatch.setattr("longvlm.study.rows._SEGMENTS_AT_ONCE", 1)
    alone = make_bank(long_blocks, row)
    for name in ("local", "layer_globals", "token_poses"):
        torch.testing.assert_close(getattr(together, name), getattr(alone, name), equal_nan=True)
    for name in ("token_events", "token_frames"):
        assert torch.equal(getattr(together, name), getattr(alone, name)), name


def test_a_row_may_be_told_what_the_world_knows(blocks: BlockFeatures) -> None:
    bank = make_bank(blocks, Row("spelled", method="spell", with_global=False))
    wanted = spell_bank([replace(plan, num_segments=2) for plan in blocks.plans], 128, segment_seconds=10)
    assert bank.plans == wanted.plans and torch.equal(bank.local, wanted.local)
    assert bank.local.shape == (8, 10, 128)
    assert bank.scenes == make_bank(blocks, Row("merged")).scenes


def test_rows_without_a_part_lack_it_alone(blocks: BlockFeatures) -> None:
    both = make_bank(blocks, MERGED)
    local = make_bank(blocks, Row("local", frames_per_segment=5, tokens_per_segment=8, with_global=False))
    layers = make_bank(blocks, Row("global", frames_per_segment=5, tokens_per_segment=8, with_local=False))
    joined = both._join([1, 3]).visual_tokens
    assert torch.equal(local._join([1, 3]).visual_tokens, joined[5:])
    assert torch.equal(layers._join([1, 3]).visual_tokens, joined[:5])


@pytest.fixture(scope="module")
def long_blocks() -> BlockFeatures:
    return BlockFeatures.encode(plan_blocks(8, first=0, seconds=40), LongVLM.from_pretrained().encoder, 40)


def test_all_rows_are_taught_and_asked_the_same(long_blocks: BlockFeatures) -> None:
    study = load_study(RECIPE)
    rows = {row.file_name: row for row in study.rows}
    tokenizer, lessons = build_tokenizer(), {}
    for name, row in rows.items():
        videos = StudyVideos(make_bank(long_blocks, row), tokenizer, globals_last=row.method == "pool")
        lessons[name] = StudyLessons(videos, study, seed=0, steps=study.training.steps)
    for item in (0, 250, 599):
        said = {name: lesson[item] for name, lesson in lessons.items()}
        base = said["local-and-global"]
        for batch in said.values():
            assert ("labels" in batch) == ("labels" in base)
            if "labels" in base:
                answers = [row[row != IGNORED] for row in base["labels"]]
                assert all(torch.equal(a, b[b != IGNORED]) for a, b in zip(answers, batch["labels"], strict=True))
            for field in ("name_events", "named", "recalls"):
                assert torch.equal(batch[field], base[field])


@pytest.mark.parametrize("changes", [{"with_local": False}, {"method": "pool"}, {"tokens_per_segment": 8}])
def test_tokens_of_the_whole_video_are_not_asked_what_they_show(long_blocks: BlockFeatures, changes: dict) -> None:
    """They would else be taught that no object was ever there; but what is pooled stands after it."""
    study, row, tokenizer = load_study(RECIPE), Row("row", **changes), build_tokenizer()
    videos = StudyVideos(make_bank(long_blocks, row), tokenizer, globals_last=row.method == "pool")
    batch = StudyLessons(videos, study, seed=0, steps=study.training.steps)[400]
    shape = replace(default_model.load_recipe(default_model.RECIPE).model, text_width=32, text_heads=4)
    torch.manual_seed(0)
    learner = ModelWithAuxiliaryLosses(build_model(shape, tokenizer), state_layer=3, recall_layer=5)
    loss = learner(**batch)["loss"]
    assert torch.isfinite(loss)
    loss.backward()
    taught = sum(float(p.grad.abs().sum()) for p in (*learner.state_heads.parameters(),) if p.grad is not None)
    assert taught > 0  # names are read, too
    is_global = batch["states"][:, STATE_PLACE] == 0
    assert is_global.any() == (row.method != "pool") and (~is_global).any() == row.with_local
    for is_changed, matters in ((is_global, False), (~is_global, row.with_local)):
        states = batch["states"].clone()
        states[is_changed, :STATE_PLACE] = (states[is_changed, :STATE_PLACE] + 1) % torch.tensor(STATE_SIZES[:-1])
        assert (learner(**{**batch, "states": states})["loss"] != loss).item() == matters


def test_saved_blocks_are_the_same(blocks: BlockFeatures, tmp_path: Path) -> None:
    blocks.save(tmp_path / "blocks.safetensors")
    again = BlockFeatures.load(tmp_path / "blocks.safetensors")
    assert again.plans == blocks.plans
    for name in ("patches", "layer_globals", "patch_events", "patch_poses"):
        assert torch.equal(getattr(again, name), getattr(blocks, name))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """Cut short, as by a crash of the machine; making room, as for a full disk, would not help."""
    path = tmp_path / "blocks.safetensors"
    path.write_bytes(b"\x08")
    with pytest.raises(LongVLMError, match=r"blocks\.safetensors is damaged \(.*\); remove it, and the same command"):
        BlockFeatures.load(path)
    (tmp_path / "settings.json").write_text('{"rows"')
    with pytest.raises(LongVLMError, match=rf"settings\.json is damaged \(.*\); remove {tmp_path}, and the same"):
        Study(load_study(RECIPE), LongVLM.from_pretrained().encoder, tmp_path)


def any_article(text: str) -> str:
    return re.sub(r"\ban\b", "a", text)


def answers(*is_right: bool) -> list[Answer]:
    """First and last of one video after the other."""
    kinds = [("first", 0.1), ("last", 0.3)] * (len(is_right) // 2)
    return [
        Answer(i // 2, kind, right, chance)
        for i, (right, (kind, chance)) in enumerate(zip(is_right, kinds, strict=True))
    ]


def test_scores_are_means_over_runs_and_videos() -> None:
    runs = [
        Run("r", 0, 10.0, 0.5, answers(True, False, True, True)),
        Run("r", 1, 12.0, 0.5, answers(False, False, True, True)),
    ]
    (score,) = score_rows([(Row("r", seeds=2), runs)])
    assert score.tokens_per_video == 11.0 and score.share_by_seed == [0.75, 0.5]
    assert score.shares["first"][0] == 0.75 and score.shares["last"][0] == 0.5 and score.shares[ALL][0] == 0.625
    assert all(low <= mean <= high for mean, low, high in score.shares.values())
    assert score.shares[ALL][1:] == (0.0, 1.0)  # two videos say next to nothing
    assert score.chances == pytest.approx({"first": 0.1, "last": 0.3, ALL: 0.2})
    assert score.asked == {"first": 2, "last": 2, ALL: 4} and score.gain is None
    assert "| first | 2 | 10 | 75.0 (" in as_markdown([score])


def test_rows_trained_for_longer_are_compared_with_the_first_trained_as_long() -> None:
    right, wrong = [True, True], [False, False]
    runs = [[Run("x", 0, 1.0, 0.5, answers(*right * good, *wrong * (40 - good)))] for good in (20, 30, 10)]
    longer = {"group": "longer", "steps": 9}
    rows = [Row("r"), Row("r, 9 steps", **longer), Row("b, 9 steps", tokens_per_segment=8, **longer)]
    scores = score_rows(list(zip(rows, runs, strict=True)))
    assert [score.row.name for score in scores] == ["r", "r", "r, 9 steps", "b, 9 steps"]
    assert [score.gain and score.gain[0] for score in scores] == [None, None, None, -0.5]
    assert "| all, less r trained as long |" in as_markdown(scores)
    alone = score_rows([(rows[0], runs[0]), (rows[2], runs[2])])
    assert alone[-1].gain and alone[-1].gain[0] == -0.25
    assert "| all, less r |" in as_markdown(alone) and "as long" not in as_markdown(alone)


def test_rows_are_compared_with_the_first_on_the_same_seeds_and_videos() -> None:
    easy, hard = [True, True], [False, False]
    first = [Run("r", seed, 1.0, 0.5, answers(*easy * 20, *hard * 20)) for seed in (0, 1)]
    better = [Run("b", seed, 1.0, 0.5, answers(*easy * 20, *[True, False] * 20)) for seed in (0, 1)]
    swept = [Run("s", 0, 1.0, 0.5, answers(*easy * 20, *hard * 20))]
    scores = score_rows([(Row("r", seeds=2), first), (Row("b", seeds=2), better), (Row("s", group="sweep"), swept)])
    assert [(score.row.name, score.row.group, len(score.share_by_seed)) for score in scores] == [
        ("r", "main", 2),
        ("b", "main", 2),
        ("r", "sweep", 1),
        ("s", "sweep", 1),
    ]
    gain, low, high = scores[1].gain
    assert gain == 0.25 and 0.15 < low < gain < high < 0.35  # half a point each in half of the videos
    assert scores[0].shares[ALL][2] - scores[0].shares[ALL][1] > 1.5 * (high - low)
    assert scores[3].gain == (0.0, 0.0, 0.0)
    mixed = score_rows([(Row("r", seeds=2), first), (Row("b", seeds=2), better), (Row("c"), swept)])
    assert mixed[2].gain == (0.0, 0.0, 0.0), "of the seed that both have"
    assert "| all, less r |  |  |  | +25.0 (" in as_markdown(scores)


def test_the_plot_has_a_panel_for_each_group_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row("r"), Row("s", group="sweep"), Row("t", group="other sweep")]
    right = answers(True, False, True, True)
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    found = [(row, [Run(row.name, 0, 10.0 * number, 0.5, right)]) for number, row in enumerate(rows, start=1)]
    plot(score_rows(found), tmp_path / "plot.png")
    shown = [axes.get_title().partition(":")[0] for axes in figures[0].axes if axes.get_visible()]
    assert shown == ["main", "sweep", "other sweep"] and len(figures[0].axes) == 4


def test_a_document_gets_no_table_of_some_rows(run: Callable[..., Any], tmp_path: Path) -> None:
    document = tmp_path / "study.md"
    document.write_text("# Study\n<!-- table: study -->\n| all rows |\n\n<!-- end of table -->\n")
    before = document.read_text()
    command = ["study", "--row", "pooling", "--runs", tmp_path / "runs", "-o", tmp_path / "out", "--document", document]
    run(*command).must_complain(
        "--document gets the table of all rows, and --row asks for some; leave one of them out."
    )
    assert document.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["study.md"]


def test_the_command_finishes_rows_and_takes_finished_ones_up(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "study.md"
    document.write_text("# Study\n<!-- table: study -->\n<!-- end of table -->\n")
    command = ["study", "--recipe", str(tiny_study(tmp_path)), "--runs", str(tmp_path / "runs"), "--json"]
    command += ["-o", str(tmp_path / "out"), "--document", str(document)]
    steps, run_stage = [], course_module.run_stage

    def count_and_run(module: Any, lessons: Any, collate: Any, stage: StageSettings, *others: Any, **more: Any) -> Any:
        steps.append((stage.steps, len(lessons)))
        return run_stage(module, lessons, collate, stage, *others, **more)

    monkeypatch.setattr(course_module, "run_stage", count_and_run)
    first = json.loads(run(*command).stdout)
    assert steps == [(2, 2), (2, 2), (3, 3)]
    assert [(row["row"], row["seeds"], row["group"]) for row in first["rows"]] == [
        ("both", 2, "main"),
        ("both", 1, "others"),
        ("pooled", 1, "others"),
    ]
    assert set(first["rows"][0]["scores"]) <= {*load_study(RECIPE).kinds, ALL}
    assert first["settings"]["encoder"] == LongVLM.from_pretrained().encoder.fingerprint
    assert not [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]  # no checkpoint is left
    assert json.loads((tmp_path / "out/study.json").read_text()) == first
    assert (tmp_path / "out/study.png").stat().st_size > 10_000
    assert "| question | n | guessing | both | pooled |" in document.read_text()
    image = "![All questions, with 95 % intervals](out/study.png)"
    assert document.read_text().endswith(f" |\n\n{image}\n\n<!-- end of table -->\n")

    def refuse(*_: Any) -> None:
        raise AssertionError("a finished row was trained again")

    monkeypatch.setattr(course_module, "run_stage", refuse)
    monkeypatch.setattr("longvlm.study.start.run_stage", refuse)
    assert json.loads(run(*command).stdout) == first

    tiny_study(tmp_path, rows=[{"name": "both", "tokens_per_segment": 8}])
    run(*command).must_complain("runs holds a study that differs in both; choose another folder with --runs")
    monkeypatch.setattr("longvlm.study.course._digest_code", lambda: "other")
    tiny_study(tmp_path)
    run(*command).must_complain("runs holds a study that differs in code")
    monkeypatch.undo()
    tiny_study(tmp_path, text_width=64)
    run(*command).must_complain("runs holds a study that differs in text_width")


def test_rows_trained_side_by_side_score_as_one_after_the_other(run: Callable[..., Any], tmp_path: Path) -> None:
    """By processes that are told to end, or to name what is wrong, in their parent."""
    recipe, runs = tiny_study(tmp_path, threads=2), tmp_path / "runs"
    command = ["study", "--recipe", str(recipe), "--runs", str(runs), "-o", str(tmp_path / "out"), "--json"]
    side_by_side = json.loads(run(*command).stdout)
    finished = {path.name: path.read_bytes() for path in runs.glob("*-[0-9].json")}
    assert sorted(finished) == ["both-0.json", "both-1.json", "pooled-0.json"]
    assert "train_runtime" in (runs / LOG).read_text(), "what the Trainer says does not stand between the notes"
    for name in finished:
        (runs / name).unlink()
    tiny_study(tmp_path)  # one thread
    assert json.loads(run(*command).stdout) == side_by_side
    assert {path.name: path.read_bytes() for path in runs.glob("*-[0-9].json")} == finished
    (runs / "both-0.json").write_text("{")
    tiny_study(tmp_path, threads=2)
    run(*command).must_complain(f"{runs / 'both-0.json'} is damaged")


@needs_processes_listed
def test_processes_side_by_side_end_with_a_killed_parent(tmp_path: Path) -> None:
    recipe = tiny_study(tmp_path, threads=2, training={"steps": 1_000, "learning_rate": 1e-3, "warmup_steps": 1})
    command = [sys.executable, "-m", "longvlm", "study", "--recipe", recipe, "--runs", tmp_path / "runs"]
    with subprocess.Popen([*command, "-o", tmp_path / "out"], stderr=subprocess.DEVNULL) as parent:
        trained = [tmp_path / "runs" / name for name in ("both-0", "both-1")]
        wait_until(lambda: all(any(folder.glob("checkpoint-*")) for folder in trained))
        family = family_of(parent.pid)
        parent.kill()
    assert len(family) >= 4  # two that train, and two that make their lessons
    wait_until(lambda: not family & parents_of_the_living().keys())


def test_a_row_that_is_always_wrong_has_an_interval_all_the_same() -> None:
    runs = [Run("r", seed, 1.0, 0.5, [Answer(video, "first", False, 0.1) for video in range(50)]) for seed in (0, 1)]
    share, low, high = score_rows([(Row("r", seeds=2), runs)])[0].shares["first"]
    assert (share, low) == (0.0, 0.0) and high == pytest.approx(0.071, abs=0.002)


def test_blocks_too_short_for_an_event_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LongVLMError, match=r"block_seconds is 4; an event and the gap after it take 4\.75"):
        load_study(tiny_study(tmp_path, block_seconds=4, rows=[{"name": "a", "frames_per_segment": 2}]))


def _study(folder: Path) -> Study:
    (folder / "runs").mkdir()
    return Study(load_study(tiny_study(folder)), LongVLM.from_pretrained().encoder, folder / "runs")


def test_every_run_starts_from_the_same_language_model_with_a_projector_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, begun = _study(tmp_path), []
    start = study.start()
    assert start and not any("vision_tower" in name or "multi_modal_projector" in name for name in start)

    def note(learner: ModelWithAuxiliaryLosses, *_: Any, **__: Any) -> None:
        begun.append({name: tensor.clone() for name, tensor in learner.state_dict().items()})
        (study.folder / f"both-{len(begun) - 1}").mkdir()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("what all rows start from was trained again")

    monkeypatch.setattr("longvlm.study.start.run_stage", refuse)
    monkeypatch.setattr(course_module, "run_stage", note)
    for seed in (0, 1):
        study.run(study.settings.rows[0], seed)
    for state in begun:
        own = {name for name in state if ".vision_tower." in name or ".multi_modal_projector." in name}
        assert state.keys() - own == start.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in start.items())
    projector = "model.model.multi_modal_projector.linear_1.weight"
    assert not torch.equal(begun[0][projector], begun[1][projector])


def test_what_is_scored_as_right_is_what_the_model_would_say(
    long_blocks: BlockFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the bundled model, which answers most questions about tokens that are made as its own, and some wrong."""
    row, tokenizer = load_study(RECIPE).rows[0], build_tokenizer()
    model = LongVLMForConditionalGeneration.from_pretrained(DEFAULT_MODEL_FOLDER, dtype=torch.float32)
    settings = replace(
        load_study(RECIPE), scored_videos=4, kinds=dict.fromkeys(["first", "after", "count", "describe"], 1.0)
    )
    study = Study.__new__(Study)
    study.settings = settings
    videos = StudyVideos(make_bank(long_blocks, row), tokenizer)
    monkeypatch.setattr(study, "_videos", lambda *_: videos)
    said, answered = [], study._score(model, tokenizer, row, 0).answers
    for number in range(settings.scored_videos):
        video = videos.compose(random.Random(f"exam {number}"), settings.blocks_per_video)
        for question in make_questions(video.scene, seed=number, kinds=settings.kinds, per_kind=1):
            asked = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.text}]}]
            prompt = videos._processor.prompt(asked, num_segments=len(video.visual_tokens))
            batch = videos._processor(prompt)
            ids = model.generate(**batch, visual_tokens=video.visual_tokens, max_new_tokens=90, do_sample=False)[0]
            reply = tokenizer.decode(ids[batch["input_ids"].shape[1] :], skip_special_tokens=True)
            wanted = tokenizer.decode(tokenizer(question.answer)["input_ids"], skip_special_tokens=True)
            is_right = any_article(reply) == any_article(wanted)
            said.append((number, question.kind, is_right, question.chance))
            assert not is_right or answered[len(said) - 1].said == reply
    assert [answer[:-1] for answer in answered] == said
    assert {is_right for _, _, is_right, _ in said} == {True, False}
