"""`longvlm demo`: six questions about a made video, with the truth beside the answers."""

from __future__ import annotations

import importlib.resources
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvlm.commands import console
from longvlm.commands.loading import load_model
from longvlm.commands.options import ModelOptions

if TYPE_CHECKING:
    from longvlm.world.questions import Question

NUM_QUESTIONS = 6
# The kinds asked for, and those that step in where a video allows no such question.
KINDS_ASKED = (
    "first",
    "after",
    "last",
    "exists",
    "action",
    "when",
    "before",
    "count",
    "order",
    "direction",
    "describe",
)
# A video drawn for the demo is like the bundled one.
DRAWN_SECONDS, DRAWN_SIZE, DRAWN_FPS = 180.0, (320, 240), 10.0


def demo(seed: int | None, model_options: ModelOptions) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = "What happens in the sample video" if seed is None else f"What happens in the video drawn from seed {seed}"
    table = Table("Question", "Answer", "Truth", "", "Time", title=title)
    num_right = 0
    with console.Progress("Loading the model") as progress, _sample(seed, progress) as (video, truth):
        progress.begin("Loading the model")
        model = load_model(model_options)
        from longvlm.stages.tokens import count_visual_tokens
        from longvlm.world.scoring import is_correct

        questions = choose_questions(truth)
        began = time.perf_counter()
        index = model.encode(video, on_progress=progress.update)
        encoding_seconds = time.perf_counter() - began
        progress.begin("Answering")
        for question in questions:
            answer = model.ask(index, question.text)
            right = is_correct(question, answer.text)
            num_right += right
            mark = "[green]right[/green]" if right else "[red]wrong[/red]"
            seconds = f"{answer.timings.total_seconds:.1f} s"
            table.add_row(question.text, escape(answer.text), question.answer, mark, seconds)
    screen = Console()
    screen.print(table)
    tokens = count_visual_tokens(index.num_segments, index.compression)
    screen.print(
        f"{num_right} of {len(questions)} right. Encoding {index.video.duration_seconds:.0f} s of video took "
        f"{encoding_seconds:.1f} s: {index.num_frames} frames became {tokens} visual tokens.",
        highlight=False,
    )


@contextmanager
def _sample(seed: int | None, progress: console.Progress) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The bundled video and its truth, or one drawn for this call; never one of those that the model learned from."""
    if seed is None:
        assets = importlib.resources.files("longvlm") / "assets"
        with importlib.resources.as_file(assets / "sample.mp4") as video:
            yield video, json.loads((assets / "sample.json").read_text(encoding="utf-8"))
        return
    from longvlm.world.planned_videos import EVALUATION_SEEDS
    from longvlm.world.scene import make_scene
    from longvlm.world.truth import truth_of
    from longvlm.world.video import write_video

    scene = make_scene(EVALUATION_SEEDS + seed, DRAWN_SECONDS)
    (width, height), fps = DRAWN_SIZE, DRAWN_FPS
    with tempfile.TemporaryDirectory(prefix="longvlm-demo-") as folder:
        video = Path(folder) / "drawn.mp4"
        progress.begin("Drawing a video")
        write_video(scene, video, width=width, height=height, fps=fps, show_progress=False)
        yield video, truth_of(scene)


def choose_questions(truth: dict[str, Any]) -> list[Question]:
    """The file's first question of each of KINDS_ASKED, NUM_QUESTIONS in all; in which third of the video an object is,
    is asked where a viewer can tell it without a clock.
    """
    from longvlm.world.questions import Question

    entries = sorted(
        truth["questions"], key=lambda entry: -_clearance(truth, entry) if entry["kind"] == "when" else 0.0
    )
    first_of_kind: dict[str, Question] = {}
    for entry in entries:
        question = Question(entry["kind"], entry["question"], entry["answer"], 0.0, subject=entry["subject"])
        first_of_kind.setdefault(question.kind, question)
    return [first_of_kind[kind] for kind in KINDS_ASKED if kind in first_of_kind][:NUM_QUESTIONS]


def _clearance(truth: dict[str, Any], entry: dict[str, str]) -> float:
    """How many seconds the object asked about is on screen away from the borders of the video's thirds."""
    (event,) = (one for one in truth["events"] if one["object"] == entry["subject"])
    borders = (truth["duration_seconds"] / 3, truth["duration_seconds"] * 2 / 3)
    return min(abs(event[moment] - border) for moment in ("start_seconds", "end_seconds") for border in borders)
