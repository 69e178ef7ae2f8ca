import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from longvlm import LongVLM
from longvlm.errors import LongVLMError
from longvlm.study import course as course_module
from longvlm.study.blocks import BlockFeatures, plan_blocks
from longvlm.study.course import KINDS, Run, Study, StudyVideos
from longvlm.study.report import ALL, as_markdown, score_row
from longvlm.study.rows import Row, choose_rows, load_study, make_bank
from longvlm.training.run import StageSettings
from longvlm.training.untrained_model import build_tokenizer

RECIPE = Path(course_module.__file__).parent / "study.yaml"
MERGED = Row("merged", frames_per_segment=5, tokens_per_segment=8)
POOLED = Row("pooled", method="pool", frames_per_segment=5)
FEWER = Row("fewer", method="subsample", frames_per_segment=20, with_global=False)


@pytest.fixture(scope="module")
def blocks() -> BlockFeatures:
    return BlockFeatures.encode(plan_blocks(4, first=0, seconds=20), LongVLM.from_pretrained().encoder, 20)


def tiny_study(folder: Path, **changes: Any) -> Path:
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe.update(threads=1, blocks=6, held_out_blocks=4, block_seconds=20, blocks_per_video=[1, 2], scored_videos=3)
    recipe.update(videos_per_batch=2, text_width=32, text_heads=4)
    recipe["training"] = {"steps": 2, "learning_rate": 1e-3, "warmup_steps": 1}
    recipe["rows"] = [{"name": "both", "seeds": 2}, {"name": "pooled", "method": "pool", "group": "others"}]
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**recipe, **changes}))
    return path


def test_the_bundled_study_has_the_papers_rows_three_times_each() -> None:
    study = load_study(RECIPE)
    assert [row.seeds for row in study.rows if row.group == "main"] == [3] * 5
    assert isinstance(study.training, StageSettings)
    assert {row.group for row in study.rows} == {"main", "tokens", "segments", "merging"}
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


def test_fewer_frames_keep_all_patches_of_the_middle_ones(blocks: BlockFeatures) -> None:
    bank = make_bank(blocks, FEWER)
    torch.testing.assert_close(bank.local, blocks.patches[:, 10].float())
    assert torch.equal(bank.token_events, blocks.patch_events[:, 10].long())
    assert bank.token_frames.unique().tolist() == [10.0]
    assert bank.layer_globals.shape == (4, 0, 128)
    assert len(bank._join([2, 0]).visual_tokens) == 2 * 64


def test_rows_without_a_part_lack_it_alone(blocks: BlockFeatures) -> None:
    both = make_bank(blocks, MERGED)
    local = make_bank(blocks, Row("local", frames_per_segment=5, tokens_per_segment=8, with_global=False))
    layers = make_bank(blocks, Row("global", frames_per_segment=5, tokens_per_segment=8, with_local=False))
    joined = both._join([1, 3]).visual_tokens
    assert torch.equal(local._join([1, 3]).visual_tokens, joined[5:])
    assert torch.equal(layers._join([1, 3]).visual_tokens, joined[:5])


def test_all_rows_see_the_same_scenes_and_questions(blocks: BlockFeatures) -> None:
    tokenizer = build_tokenizer()
    videos = [StudyVideos(make_bank(blocks, row), tokenizer) for row in (MERGED, POOLED, FEWER)]
    for seed in range(5):
        scenes = [one.compose(random.Random(seed), (1, 3)).scene for one in videos]
        assert scenes[0] == scenes[1] == scenes[2]


def test_saved_blocks_are_the_same(blocks: BlockFeatures, tmp_path: Path) -> None:
    blocks.save(tmp_path / "blocks.safetensors")
    again = BlockFeatures.load(tmp_path / "blocks.safetensors")
    assert again.plans == blocks.plans
    for name in ("patches", "layer_globals", "patch_events", "patch_poses"):
        assert torch.equal(getattr(again, name), getattr(blocks, name))


def test_scores_are_means_over_runs_and_videos() -> None:
    runs = [
        Run("r", 0, 10.0, [(0, "first", True), (0, "last", False), (1, "first", True), (1, "last", True)]),
        Run("r", 1, 12.0, [(0, "first", False), (0, "last", False), (1, "first", True), (1, "last", True)]),
    ]
    score = score_row(Row("r", seeds=2), runs)
    assert score.tokens_per_video == 11.0
    assert score.shares["first"][0] == 0.75 and score.shares["last"][0] == 0.5 and score.shares[ALL][0] == 0.625
    assert all(low <= mean <= high for mean, low, high in score.shares.values())
    assert score.shares[ALL][1:] == (0.0, 1.0)  # two videos say next to nothing
    assert "| r | 11 | 75.0 (" in as_markdown([score])


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
    first = json.loads(run(*command).stdout)
    assert [(row["row"], row["seeds"], row["group"]) for row in first["rows"]] == [
        ("both", 2, "main"),
        ("pooled", 1, "others"),
    ]
    assert set(first["rows"][0]["scores"]) <= {*KINDS, ALL}
    assert json.loads((tmp_path / "out/study.json").read_text()) == first
    assert (tmp_path / "out/study.png").stat().st_size > 10_000
    assert "| both |" in document.read_text() and "| pooled |" in document.read_text()
    image = "![All questions, with 95 % intervals](out/study.png)"
    assert document.read_text().endswith(f" |\n\n{image}\n\n<!-- end of table -->\n")

    def refuse(*_: Any) -> None:
        raise AssertionError("a finished row was trained again")

    monkeypatch.setattr(Study, "_train", refuse)
    assert json.loads(run(*command).stdout) == first

    tiny_study(tmp_path, rows=[{"name": "both", "tokens_per_segment": 8}])
    run(*command).must_complain("runs holds a study that differs in both; choose another folder with --runs")
    tiny_study(tmp_path, text_width=64)
    run(*command).must_complain("runs holds a study that differs in text_width")


def test_a_row_that_is_always_wrong_has_an_interval_all_the_same() -> None:
    runs = [Run("r", seed, 1.0, [(video, "first", False) for video in range(50)]) for seed in (0, 1)]
    share, low, high = score_row(Row("r", seeds=2), runs).shares["first"]
    assert (share, low) == (0.0, 0.0) and high == pytest.approx(0.071, abs=0.002)


def test_blocks_too_short_for_an_event_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LongVLMError, match=r"block_seconds is 4; an event and the gap after it take 4\.75"):
        load_study(tiny_study(tmp_path, block_seconds=4, rows=[{"name": "a", "frames_per_segment": 2}]))
