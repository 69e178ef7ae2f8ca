"""A folder of generated videos in ActivityNet's shape, with instructions to train on and questions to be tested by.

    FOLDER/v1-2/train, v1-2/val, v1-3/train_val, Test_Videos   videos, and beside them the lists of their names
    FOLDER/video_chatgpt_training.json                         questions and answers to learn from
    FOLDER/generic_qa.json, temporal_qa.json, consistency_qa.json, test_q.json, test_a.json   benchmarks

The files have the formats of Video-ChatGPT's instructions and benchmark, and of ActivityNet-QA.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from longvlm.differences import first_difference
from longvlm.errors import LongVLMError
from longvlm.whole_files import write_whole
from longvlm.world.planned_videos import EVALUATION_SEEDS
from longvlm.world.questions import KINDS, Question, make_questions
from longvlm.world.scene import MIN_DURATION_SECONDS, Scene, make_scene
from longvlm.world.video import write_video
from longvlm.world.wordings import QUESTIONS, TIMED_KINDS

TRAINING_SEEDS = 600_000  # the bundled model learned from seeds below
# Which of the training videos lie in which folder, and the list of their names.
TRAINING_SPLITS = (
    ("v1-2/train", "video_list_v1_2_train.txt", 0.8),
    ("v1-2/val", "video_list_v1_2_val.txt", 0.1),
    ("v1-3/train_val", "video_list_v1_3_trainval.txt", 0.1),
)
TEST_SPLIT = ("Test_Videos", "anet_benchmark_video_id.txt")
INSTRUCTIONS = "video_chatgpt_training.json"
PLAN_FILE = "plan.json"
WIDTH, HEIGHT, FPS = 160, 120, 4.0  # small and slow: the encoder looks once a second, at a smaller square
LEARNED_KINDS = tuple(kind for kind in KINDS if kind not in TIMED_KINDS)
TEMPORAL_KINDS = ("first", "last", "after", "before", "order", "when")
GENERIC_KINDS = tuple(kind for kind in LEARNED_KINDS if kind not in TEMPORAL_KINDS)
# ActivityNet-QA's numbers for motion, spatial, temporal, yes or no, and number; 8 is for others.
ANET_QA_TYPES = {"action": 0, "direction": 1, **dict.fromkeys(TEMPORAL_KINDS, 2), "exists": 3, "count": 7}
QUESTIONS_PER_KIND, TEST_QUESTIONS_PER_KIND = 3, 1


@dataclass(frozen=True)
class DatasetPlan:
    """How many videos, which, and how long.

    Args:
        training_videos, test_videos: numbers of them.
        seed: chooses the videos.
        min_seconds, max_seconds: durations are log-uniform between them.
    """

    training_videos: int
    test_videos: int
    seed: int = 0
    min_seconds: float = 20.0
    max_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("training_videos", "test_videos"):
            if getattr(self, name) < 1:
                raise LongVLMError(f"The number of {name.replace('_', ' ')} is {getattr(self, name)}; 1 at least.")
        if not MIN_DURATION_SECONDS <= self.min_seconds <= self.max_seconds < float("inf"):
            raise LongVLMError(
                f"Durations from {self.min_seconds:g} to {self.max_seconds:g} s are not possible; "
                f"give MIN:MAX in seconds with {MIN_DURATION_SECONDS:g} <= MIN <= MAX."
            )


def write_dataset(folder: Path, plan: DatasetPlan, on_video: Callable[[int, int], None] | None = None) -> None:
    """Write videos, lists and questions; a video that is there already is kept.

    `on_video` is told how many of how many videos are done. Raises LongVLMError where something can't be written, where
    the folder holds a data set of another plan, whose videos are others by the same names, and where files are there
    that no such plan tells of.
    """
    training = dict(_scenes(plan, plan.training_videos, TRAINING_SEEDS))
    tests = dict(_scenes(plan, plan.test_videos, EVALUATION_SEEDS))
    splits = {**_split(list(training)), TEST_SPLIT: list(tests)}
    texts = {listing: "".join(f"{name}.mp4\n" for name in names) for (_, listing), names in splits.items()}
    for file_name, rows in (*_training_files(training), *_test_files(tests)):
        texts[file_name] = f"{json.dumps(rows, indent=1)}\n"
    try:
        _claim(folder, plan, texts)
        done, scenes = count(1), training | tests
        for (split, _), names in splits.items():
            (folder / split).mkdir(parents=True, exist_ok=True)
            for name in names:
                _write_unless_there(scenes[name], folder / split / f"{name}.mp4")
                if on_video is not None:
                    on_video(next(done), len(scenes))
        for file_name, text in texts.items():
            write_whole(folder / file_name, text.encode())
    except OSError as error:
        raise LongVLMError(
            f"Can't write {error.filename or folder}: {error.strerror}; choose another place."
        ) from error


def _claim(folder: Path, plan: DatasetPlan, to_be_written: Iterable[str]) -> None:
    """Leave the plan in the folder, so that nothing of somebody else's is taken for a part of the data set."""
    path, wanted = folder / PLAN_FILE, json.loads(json.dumps(asdict(plan)))
    if path.is_file():
        try:
            found = json.loads(path.read_bytes())
        except ValueError as error:
            raise LongVLMError(f"{path} can't be read as JSON ({error}); choose another folder.") from error
        if differing := first_difference(found, wanted):
            key, had, other = differing
            what = f"made with {key}={had}, not {key}={other}" if key else "of another plan"
            raise LongVLMError(f"{folder} holds a data set {what}; choose another folder.")
        return
    if foreign := next((folder / name for name in to_be_written if (folder / name).exists()), None):
        raise LongVLMError(f"{foreign} is there already, but no {PLAN_FILE} that tells of it; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(wanted).encode())


def _scenes(plan: DatasetPlan, number: int, first_seed: int) -> Iterator[tuple[str, Scene]]:
    """Scenes by the names of their videos, which have ActivityNet's form: v_ and eleven characters."""
    rng = random.Random(f"longvlm dataset {plan.seed} {first_seed}")
    for i in range(number):
        seed = first_seed + 10_000 * plan.seed + i
        duration = round(plan.min_seconds * (plan.max_seconds / plan.min_seconds) ** rng.random(), 2)
        yield f"v_{seed:011d}", make_scene(seed, duration)


def _split(names: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Names by folder and list of the training splits."""
    splits, first, share = {}, 0, 0.0
    for folder, listing, part in TRAINING_SPLITS:
        share += part
        last = round(share * len(names))
        splits[folder, listing] = list(names[first:last])
        first = last
    return splits


def _write_unless_there(scene: Scene, path: Path) -> None:
    if not path.is_file():
        write_video(scene, path, width=WIDTH, height=HEIGHT, fps=FPS, threads=1, show_progress=False)


def _training_files(scenes: dict[str, Scene]) -> list[tuple[str, list[dict[str, Any]]]]:
    rows = [
        {"q": question.text, "a": question.answer, "video_id": name}
        for name, scene in scenes.items()
        for question in _ask(scene, LEARNED_KINDS, QUESTIONS_PER_KIND)
    ]
    return [(INSTRUCTIONS, rows)]


def _test_files(scenes: dict[str, Scene]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The benchmarks' files by name."""
    files: dict[str, list[dict[str, Any]]] = {name: [] for name in ("generic", "temporal", "consistency", "q", "a")}
    for name, scene in scenes.items():
        for benchmark, kinds in (("generic", GENERIC_KINDS), ("temporal", TEMPORAL_KINDS)):
            for question in _ask(scene, kinds, TEST_QUESTIONS_PER_KIND):
                files[benchmark].append({"video_name": name, "Q": question.text, "A": question.answer})
        for first, second in _pairs(scene):
            row = {"video_name": name, "Q1": first.text, "Q2": second.text, "A": first.answer}
            files["consistency"].append(row)
        bare_name = name.removeprefix("v_")
        for number, question in enumerate(_ask(scene, LEARNED_KINDS, TEST_QUESTIONS_PER_KIND)):
            asked = {"question_id": f"{name}_{number}"}
            files["q"].append({"question": question.text, "video_name": bare_name, **asked})
            files["a"].append({"answer": question.answer, "type": ANET_QA_TYPES.get(question.kind, 8), **asked})
    named = {"q": "test_q", "a": "test_a"}
    return [(f"{named.get(name, f'{name}_qa')}.json", rows) for name, rows in files.items()]


def _ask(scene: Scene, kinds: Sequence[str], per_kind: int) -> list[Question]:
    return make_questions(scene, seed=scene.seed, kinds=kinds, per_kind=per_kind)


def _pairs(scene: Scene) -> Iterator[tuple[Question, Question]]:
    """One question in two wordings, of every kind that allows it."""
    for kind in LEARNED_KINDS:
        found: dict[tuple[str, str], Question] = {}
        for question in _ask(scene, (kind,), 4 * len(QUESTIONS[kind])):
            other = found.setdefault((question.subject, question.answer), question)
            if other.text != question.text:
                yield other, question
                break
