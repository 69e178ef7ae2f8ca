"""`python -m longvlm.world`: write one video of the generated world, or score a model on many."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longvlm.commands.ending import run_to_end
from longvlm.commands.options import ModelOptions, spread_options
from longvlm.errors import LongVLMError

if TYPE_CHECKING:
    from longvlm.pipeline import LongVLM

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, help=__doc__
)


@app.command()
def render(
    output: Annotated[Path, typer.Option("--output", "-o", help="The video file to write (.mp4, .mkv, .webm).")],
    seed: Annotated[int, typer.Option(help="Chooses the video; with the same duration, always the same.")] = 0,
    duration: Annotated[float, typer.Option(help="In seconds.")] = 60.0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels, both even.")] = "320x240",
    fps: Annotated[float, typer.Option(help="Frames per second.")] = 15.0,
    codec: Annotated[
        str | None, typer.Option(help="libx264, mpeg4, libvpx-vp9 …; what suits the file's ending unless given.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="JSON file for the events, the questions and the answers.")] = None,
) -> None:
    """Write one video, and what happens in it.

    Example: python -m longvlm.world render --seed 7 --duration 180 -o out.mp4 --truth truth.json
    """
    from longvlm.whole_files import require_writable, write_whole
    from longvlm.world.scene import make_scene
    from longvlm.world.truth import truth_of
    from longvlm.world.video import usual_codec, write_video

    width, height = _pair(size, "x", "--size", "WIDTHxHEIGHT, such as 320x240")
    if not (width.is_integer() and height.is_integer()):
        raise LongVLMError(f"--size is {size!r}; pixels are whole, write it as 320x240.")
    scene = make_scene(seed, duration)
    if truth is not None and truth.resolve() == output.resolve():
        raise LongVLMError(f"--truth and --output are both {output}; give each a file of its own.")
    for path in (output, truth):
        if path is not None:
            require_writable(path)
    write_video(scene, output, width=int(width), height=int(height), fps=fps, codec=codec or usual_codec(output))
    if truth is not None:
        facts = {
            "video": output.name,
            "width": int(width),
            "height": int(height),
            "fps": fps,
            **truth_of(scene),
        }
        write_whole(truth, f"{json.dumps(facts, indent=2)}\n".encode())


Indexes = Annotated[
    Path | None,
    typer.Option(
        help="Folder where encoded videos stay: what lies there is neither drawn nor encoded again, for this model and "
        "any other with the same encoder."
    ),
]


@app.command()
@spread_options
def evaluate(
    model_options: ModelOptions,
    videos: Annotated[int, typer.Option(help="How many videos.")] = 20,
    seed: Annotated[int, typer.Option(help="Chooses the videos; none of them occurs in training.")] = 0,
    duration: Annotated[str, typer.Option(help="MIN:MAX in seconds; durations are log-uniform.")] = "30:600",
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="Write times between the segments' tokens, and ask about times, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as markdown.")] = False,
    reencoded: Annotated[
        bool,
        typer.Option(
            "--reencoded",
            help="Also pass the files on (VP9, MPEG-4, half the size, other rate, logo), and say what that costs.",
        ),
    ] = False,
    replies: Annotated[
        Path | None, typer.Option(help="JSON Lines file for every question, its right answer and the replies.")
    ] = None,
    indexes: Indexes = None,
) -> None:
    """Render videos, encode them at 1 frame a second, ask, and score by kind of question.

    Example: python -m longvlm.world evaluate --videos 20 --seed 1 --duration 30:600
    """
    from longvlm.commands.console import note
    from longvlm.commands.loading import load_model
    from longvlm.whole_files import make_folder, require_writable, write_whole
    from longvlm.world import evaluate as evaluation
    from longvlm.world.losses import as_json as losses_as_json
    from longvlm.world.losses import measure_losses
    from longvlm.world.losses import tabulate as tabulate_losses
    from longvlm.world.planned_videos import plan_videos, reencode_in_turns

    shortest, longest = _pair(duration, ":", "--duration", "MIN:MAX in seconds, such as 30:600")
    plans = plan_videos(videos, seed=seed, min_seconds=shortest, max_seconds=longest)
    if reencoded:
        plans = reencode_in_turns(plans)
    if replies is not None:
        require_writable(replies)
    if indexes is not None:
        make_folder(indexes)

    loaded = load_model(model_options)
    if timestamps and not loaded.config.timestamps:
        note(f"{loaded.name} has not learned to read times; what it says about them may mean nothing.")
        loaded.config.timestamps = True
    records = evaluation.evaluate(loaded, plans, seed=seed, kept=indexes)
    if replies is not None:
        write_whole(replies, evaluation.as_json_lines(records, plans).encode())
    scores, losses = evaluation.score(records), measure_losses(plans, records) if reencoded else []
    if as_json:
        durations = (shortest, longest)
        told = evaluation.as_json(scores, plans, seed=seed, duration_seconds=durations)
        told |= {"reencoded": losses_as_json(losses)} if reencoded else {}
        print(json.dumps(_describe_model(loaded) | told))
        return
    from rich.console import Console

    tables = [evaluation.tabulate(scores, f"{loaded.name} on {len(plans)} videos")]
    if reencoded:
        tables.append(tabulate_losses(losses))
    if as_markdown:
        print("\n\n".join(table.as_markdown() for table in tables))
    else:
        for table in tables:
            Console().print(table.as_rich())


@app.command()
@spread_options
def lengths(
    model_options: ModelOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="The heat map to write (.png, .svg, .pdf).")],
    minutes: Annotated[str, typer.Option(help="Lengths of the videos.")] = "1,5,20,60",
    videos: Annotated[int, typer.Option(help="How many videos of each length.")] = 10,
    seed: Annotated[int, typer.Option(help="Chooses the videos; none of them occurs in training.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    indexes: Indexes = None,
) -> None:
    """Accuracy against the length of the video, and the depth at which an object appears in it.

    Example: python -m longvlm.world lengths --minutes 1,5,20,60 --videos 10 -o lengths.png
    """
    from longvlm.commands.loading import load_model
    from longvlm.whole_files import make_folder
    from longvlm.world import lengths as study

    wanted = _numbers(minutes, "--minutes", "numbers such as 1,5,20,60")
    study.require_plottable(output)
    study.require_lengths(wanted)
    if indexes is not None:
        make_folder(indexes)

    loaded = load_model(model_options)
    scores = study.measure_lengths(loaded, wanted, videos=videos, seed=seed, kept=indexes)
    study.plot(scores, output)
    if as_json:
        told = {"seed": seed, "videos": videos, "drawn_fps": study.FRAMES_PER_SECOND}
        print(json.dumps(_describe_model(loaded) | told | {"lengths": study.as_json(scores)}))
    else:
        from rich.console import Console

        Console().print(study.tabulate(scores).as_rich())


@app.command()
def dataset(
    folder: Annotated[Path, typer.Argument(help="Where to write; videos that are there already are kept.")],
    videos: Annotated[int, typer.Option(help="How many videos to learn from.")] = 100,
    test_videos: Annotated[int | None, typer.Option(help="How many others to test by; a fifth unless given.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the videos.")] = 0,
    duration: Annotated[str, typer.Option(help="MIN:MAX in seconds; durations are log-uniform.")] = "20:60",
) -> None:
    """Write a folder in ActivityNet's shape: videos, instructions, and the files of the benchmarks.

    Example: python -m longvlm.world dataset datasets/generated --videos 100 --test-videos 16
    """
    from longvlm.world.dataset import DatasetPlan, write_dataset

    shortest, longest = _pair(duration, ":", "--duration", "MIN:MAX in seconds, such as 20:60")
    plan = DatasetPlan(videos, max(1, videos // 5) if test_videos is None else test_videos, seed, shortest, longest)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Drawing videos", total=None)
        write_dataset(folder, plan, lambda done, total: progress.update(task, completed=done, total=total))


def _describe_model(model: LongVLM) -> dict[str, str]:
    """What the figures belong to."""
    from longvlm.model.weight_files import hash_weights

    return {"model": model.name, "weights_sha256": hash_weights(model.folder), "precision": model.precision}


def _numbers(text: str, option: str, form: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise LongVLMError(f"{option} is {text!r}; write it as {form}.") from error


def _pair(text: str, separator: str, option: str, form: str) -> tuple[float, float]:
    match = re.fullmatch(rf"(\d+(?:\.\d+)?){separator}(\d+(?:\.\d+)?)", text.strip())
    if match is None:
        raise LongVLMError(f"{option} is {text!r}; write it as {form}.")
    return float(match[1]), float(match[2])


def main() -> None:
    """Run a command and end the process; see `run_to_end` for its exit status."""
    sys.exit(run_to_end(app, "python -m longvlm.world"))


if __name__ == "__main__":
    main()
