"""`longvlm demo`: six questions about the bundled video, with the truth beside the answers."""

from __future__ import annotations

import importlib.resources
import json
import time
from typing import TYPE_CHECKING, Any

from longvlm.commands import console
from longvlm.commands.loading import load_model
from longvlm.commands.options import ModelOptions

if TYPE_CHECKING:
    from longvlm.world.questions import Question

KINDS_ASKED = ("first", "after", "last", "exists", "action", "when")


def demo(model_options: ModelOptions) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    assets = importlib.resources.files("longvlm") / "assets"
    questions = choose_questions(json.loads((assets / "sample.json").read_text(encoding="utf-8")))
    table = Table("Question", "Answer", "Truth", "", "Time", title="What happens in the sample video")
    num_right = 0
    with (
        console.Progress("Loading the model") as progress,
        importlib.resources.as_file(assets / "sample.mp4") as video,
    ):
        model = load_model(model_options)
        from longvlm.stages.tokens import count_visual_tokens
        from longvlm.world.questions import is_correct

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


def choose_questions(truth: dict[str, Any]) -> list[Question]:
    """The file's first question of each of KINDS_ASKED."""
    from longvlm.world.questions import Question

    first_of_kind: dict[str, Question] = {}
    for entry in truth["questions"]:
        question = Question(entry["kind"], entry["question"], entry["answer"], 0.0, subject=entry["subject"])
        first_of_kind.setdefault(question.kind, question)
    return [first_of_kind[kind] for kind in KINDS_ASKED]
