import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from longvlm.errors import LongVLMError
from longvlm.stages.video import open_video
from longvlm.world.dataset import INSTRUCTIONS, TEST_SPLIT, TRAINING_SPLITS, DatasetPlan, write_dataset

PLAN = DatasetPlan(training_videos=10, test_videos=2, seed=1, min_seconds=10, max_seconds=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("anet")
    done: list[tuple[int, int]] = []
    write_dataset(folder, PLAN, lambda number, total: done.append((number, total)))
    assert done == [(number, 12) for number in range(1, 13)]
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    assert rows
    return rows


def test_lists_name_the_videos_of_their_folders(folder: Path) -> None:
    for split, listing in ((TRAINING_SPLITS[i][0], TRAINING_SPLITS[i][1]) for i in range(3)):
        names = (folder / listing).read_text().split()
        assert sorted(names) == sorted(path.name for path in (folder / split).iterdir())
    assert len(list(folder.glob("v1-*/*/*.mp4"))) == 10
    tests = (folder / TEST_SPLIT[1]).read_text().split()
    assert sorted(tests) == sorted(path.name for path in (folder / TEST_SPLIT[0]).iterdir())
    with open_video(folder / TEST_SPLIT[0] / tests[0]) as reader:
        assert 9.5 < (reader.info.duration_seconds or 0) < 12.5


def test_instructions_are_about_training_videos_alone(folder: Path) -> None:
    rows = read(folder / INSTRUCTIONS)
    assert all(row.keys() == {"q", "a", "video_id"} for row in rows)
    assert {row["video_id"] for row in rows} == {path.stem for path in folder.glob("v1-*/*/*.mp4")}


def test_benchmarks_have_their_fields_and_are_about_test_videos(folder: Path) -> None:
    tests = {path.stem for path in (folder / TEST_SPLIT[0]).iterdir()}
    fields = {"generic": {"video_name", "Q", "A"}, "consistency": {"video_name", "Q1", "Q2", "A"}}
    for name in ("generic", "temporal", "consistency"):
        rows = read(folder / f"{name}_qa.json")
        assert all(row.keys() == fields.get(name, fields["generic"]) for row in rows)
        assert {row["video_name"] for row in rows} <= tests
    assert all(row["Q1"] != row["Q2"] for row in read(folder / "consistency_qa.json"))
    questions, answers = read(folder / "test_q.json"), read(folder / "test_a.json")
    assert [row["question_id"] for row in questions] == [row["question_id"] for row in answers]
    assert len({row["question_id"] for row in questions}) == len(questions)
    assert {f"v_{row['video_name']}" for row in questions} == tests
    assert all(0 <= row["type"] <= 8 and row["answer"] for row in answers)


def test_it_is_that_of_its_seed_and_keeps_what_is_there(folder: Path) -> None:
    video = next(folder.glob("v1-2/train/*.mp4"))
    before, instructions = video.stat().st_mtime_ns, (folder / INSTRUCTIONS).read_text()
    write_dataset(folder, PLAN)
    assert video.stat().st_mtime_ns == before
    assert (folder / INSTRUCTIONS).read_text() == instructions


def test_another_plan_is_refused(folder: Path) -> None:
    """Its videos would be others by the same names."""
    plan = DatasetPlan(**json.loads((folder / "plan.json").read_text()))
    other = dataclasses.replace(plan, max_seconds=plan.max_seconds + 1)
    with pytest.raises(LongVLMError, match=rf"made with max_seconds={plan.max_seconds}"):
        write_dataset(folder, other)


def test_files_that_are_not_of_a_generated_data_set_are_kept(tmp_path: Path) -> None:
    (tmp_path / "test_q.json").write_text("mine")
    with pytest.raises(LongVLMError, match=r"test_q\.json is there already, but no plan\.json"):
        write_dataset(tmp_path, PLAN)
    assert [path.name for path in tmp_path.iterdir()] == ["test_q.json"]
    assert (tmp_path / "test_q.json").read_text() == "mine"


@pytest.mark.parametrize(("text", "words"), [("{", r"plan\.json can't be read as JSON"), ("[1]", "of another plan")])
def test_a_plan_that_is_none_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(LongVLMError, match=words):
        write_dataset(tmp_path, PLAN)


def test_impossible_plans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LongVLMError, match="number of training videos is 0; 1 at least"):
        DatasetPlan(0, 1)
    with pytest.raises(LongVLMError, match="Durations from 5 to 4 s are not possible"):
        DatasetPlan(1, 1, min_seconds=5, max_seconds=4)
    (tmp_path / "file").write_text("")
    with pytest.raises(LongVLMError, match="Can't write"):
        write_dataset(tmp_path / "file", PLAN)
