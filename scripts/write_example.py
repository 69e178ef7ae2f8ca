"""Write docs/example.md and its picture: a long generated video, questions about it, and what the bundled model says.

    python scripts/write_example.py [--seed N] [--minutes M]

Wrong answers are shown as they are.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from longvlm import LongVLM
from longvlm.stages.tokens import count_visual_tokens, format_timestamp
from longvlm.text_table import TextTable
from longvlm.types import Answer
from longvlm.whole_files import replacing, write_whole
from longvlm.world.planned_videos import EVALUATION_SEEDS
from longvlm.world.questions import Question, make_conversation, make_questions
from longvlm.world.render import render_frame
from longvlm.world.scene import Scene, make_scene
from longvlm.world.scoring import is_correct
from longvlm.world.video import write_video

DOCS = Path(__file__).parents[1] / "docs"
KINDS = ("first", "last", "after", "before", "count", "exists", "direction", "action", "order", "when", "describe")
WIDTH, HEIGHT, FPS = 320, 240, 10.0  # the size is that of `render`
COLUMNS, GAP, CAPTION_HEIGHT = 4, 6, 18


def draw_events(scene: Scene, path: Path) -> None:
    """A picture of every object, in the middle of its time, with what it does and when."""
    rows = -(-len(scene.events) // COLUMNS)
    step_x, step_y = WIDTH + GAP, HEIGHT + CAPTION_HEIGHT + GAP
    sheet = Image.new("RGB", (COLUMNS * step_x - GAP, rows * step_y - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, event in enumerate(scene.events):
        x, y = number % COLUMNS * step_x, number // COLUMNS * step_y
        middle = (event.start_seconds + event.end_seconds) / 2
        sheet.paste(Image.fromarray(render_frame(scene, middle, WIDTH, HEIGHT)), (x, y))
        span = f"{format_timestamp(event.start_seconds)} to {format_timestamp(event.end_seconds)}"
        draw.text((x + 2, y + HEIGHT + 2), f"{span}  {event.object}: {event.action}", "black", font_size=13)
    with replacing(path) as whole:
        sheet.save(whole, quality=85)


def ask(model: LongVLM, scene: Scene) -> tuple[list[tuple[str, ...]], str]:
    """The table's rows: question, answer, truth, whether it is right, seconds; and what the video became."""
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "example.mp4"
        write_video(scene, video, width=WIDTH, height=HEIGHT, fps=FPS)
        index = model.encode(video)
    rows = [_row(one, model.ask(index, one.text)) for one in make_questions(scene, seed=0, kinds=KINDS)]
    chat = model.chat(index)
    rows += [_row(turn, chat.ask(turn.text)) for turn in make_conversation(scene, seed=0)]
    tokens = count_visual_tokens(index.num_segments, index.compression)
    return rows, f"{index.num_frames} frames, one a second, became {tokens} visual tokens"


def _row(question: Question, answer: Answer) -> tuple[str, ...]:
    text = f"… {question.text}" if question.turn else question.text
    right = "yes" if is_correct(question, answer.text) else "**no**"
    return text, answer.text, question.answer, right, f"{answer.timings.total_seconds:.1f} s"


def describe(seed: int, scene: Scene, rows: Sequence[tuple[str, ...]], tokens: str) -> str:
    duration = scene.duration_seconds
    table = TextTable("", ("question", "answer", "truth", "right", "time"), rows).as_markdown()
    num_right = sum(row[3] == "yes" for row in rows)
    return f"""# An example

The bundled model and a generated video of {format_timestamp(duration)} that it has never seen: {tokens},
and the model answers from those alone ({num_right} of {len(rows)} right). What happens in it:

![Every object, with what it does and when](example.jpg)

```
python -m longvlm.world render --seed {seed} --duration {duration:g} --fps {FPS:g} -o example.mp4
longvlm encode example.mp4 -o example.longvlm
longvlm ask example.longvlm "{rows[0][0]}"
```

{table}

A question that begins with … was asked in a conversation, after the one above it. Of a description, the objects and
their order count. About footage of the real world this model knows nothing; a LLaVA checkpoint answers in the same way,
with `--model llava-hf/llava-1.5-7b-hf`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=EVALUATION_SEEDS + 23, help="of the video")
    parser.add_argument("--minutes", type=float, default=10.0, help="its length")
    arguments = parser.parse_args()
    scene = make_scene(arguments.seed, 60 * arguments.minutes)
    draw_events(scene, DOCS / "example.jpg")
    rows, tokens = ask(LongVLM.from_pretrained(), scene)
    write_whole(DOCS / "example.md", describe(arguments.seed, scene, rows, tokens).encode())


if __name__ == "__main__":
    main()
