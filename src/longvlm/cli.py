"""The `longvlm` command: a table from command to function. Heavy imports wait until a command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from longvlm import __version__
from longvlm.commands import data, ending, features, weights
from longvlm.commands.options import (
    AnswerOptions,
    EncoderOptions,
    IndexOption,
    JudgeOptions,
    ModelOptions,
    VideoOptions,
    spread_options,
)

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,  # rich help takes twice as long to appear
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_VIDEOS = "A video file, an address (http://, https://, rtsp://), a folder of images"
VideoArgument = Annotated[
    str, typer.Argument(metavar="VIDEO", help=f"{_VIDEOS}, or a .longvlm file.", show_default=False)
]
UnencodedArgument = Annotated[str, typer.Argument(metavar="VIDEO", help=f"{_VIDEOS}.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead.")]


@app.callback(invoke_without_command=True)
def longvlm(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
) -> None:
    """Ask questions about long videos.

    Answers and results go to stdout; notes, warnings and progress go to stderr. Start with `longvlm demo`;
    each command explains itself: `longvlm ask --help`.
    """
    if version:
        print(f"longvlm {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
@spread_options
def ask(
    video: VideoArgument,
    questions: Annotated[
        list[str],
        typer.Argument(metavar="QUESTION...", help="One or more questions, each in quotes.", show_default=False),
    ],
    video_options: VideoOptions,
    model_options: ModelOptions,
    answer_options: AnswerOptions,
    index: IndexOption = None,
    json: JsonOption = False,
) -> None:
    """Ask one or more questions about a video.

    Examples:

    \b
      longvlm ask film.mp4 "What happens first?"
      longvlm ask film.mp4 "Who wins?" --start 10:00 --end 12:30 --fps 2 --max-frames 200
      longvlm ask film.mp4 "Who wins?" --model llava-hf/llava-1.5-7b-hf --json
      longvlm ask film.longvlm "What happens last?"       (an index made by longvlm encode)
    """
    from longvlm.commands.ask import ask

    ask(video, questions, video_options, model_options, answer_options, index, json)


@app.command()
@spread_options
def chat(
    video: VideoArgument,
    video_options: VideoOptions,
    model_options: ModelOptions,
    answer_options: AnswerOptions,
    index: IndexOption = None,
) -> None:
    """Talk about a video, line by line.

    Each line is a question, answered with the conversation so far in mind.
    /new starts over; /quit or Ctrl-D ends. Questions may come from a pipe.

    \b
      longvlm chat film.mp4
      longvlm chat film.longvlm < questions.txt
    """
    from longvlm.commands.chat import chat

    chat(video, video_options, model_options, answer_options, index)


@app.command()
@spread_options
def encode(
    video: UnencodedArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write the index.", show_default=False),
    ],
    video_options: VideoOptions,
    model_options: EncoderOptions,
) -> None:
    """Encode a video once, to ask it many times.

    The index written holds all that the model needs: the video is not opened again.

    \b
      longvlm encode film.mp4 -o film.longvlm
      longvlm ask film.longvlm "What happens first?"
      longvlm ask film.longvlm "What happens here?" --start 1:00 --end 2:00
    """
    from longvlm.commands.encode import encode

    encode(video, output, video_options, model_options)


@app.command()
@spread_options
def extract(
    source: Annotated[
        Path,
        typer.Argument(metavar="VIDEOS", help="A folder, or a text file of names, one a line.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where to write one .longvlm file a video."),
    ] = None,
    video_folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What the names in a list count from. Default: the list's folder."),
    ] = None,
    reference_features: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="LOCAL_DIR MEMORY_DIR",
            help="Also write the reference's two kinds of pickles; without -o, them alone.",
            show_default=False,
        ),
    ] = None,
    decoders: Annotated[int, typer.Option(min=1, help="Videos decoded at a time. Default: 2.", show_default=False)] = 2,
    batch_segments: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Segments encoded at a time, of several videos together. Default: 8, on a processor 1.",
            show_default=False,
        ),
    ] = None,
    *,
    video_options: VideoOptions,
    model_options: EncoderOptions,
) -> None:
    """Extract the features of many videos.

    What is there already is skipped, so the same command goes on after a stop. Videos that fail are listed at the
    end and in DIR/failures.json, with status 1. With --vision-tower and no --model, settings are the paper's.

    \b
      longvlm extract datasets/anet/v1-2/val -o features --model MODEL
      longvlm extract list.txt --video-folder datasets/anet/v1-2/val -o features \\
          --vision-tower openai/clip-vit-large-patch14
    """
    from longvlm.commands.extract import extract

    extract(source, output, video_folder, reference_features, decoders, batch_segments, video_options, model_options)


@app.command()
@spread_options
def inspect(
    video: UnencodedArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write the page. Default: report.html."),
    ] = Path("report.html"),
    *,
    video_options: VideoOptions,
    model_options: EncoderOptions,
) -> None:
    """Show what the model sees, as a page.

    One self-contained HTML file: the frames, their segments and times, and which patches share a token.

    \b
      longvlm inspect film.mp4 -o report.html
    """
    from longvlm.commands.inspect import inspect

    inspect(video, output, video_options, model_options)


@app.command()
@spread_options
def plan(
    video: UnencodedArgument, video_options: VideoOptions, model_options: ModelOptions, json: JsonOption = False
) -> None:
    """Foretell tokens, memory and time.

    Nothing is encoded and no weights are read: the cost is worked out from the model's configuration and this
    machine's speed. A hub model that is not in the cache yet is downloaded first, whole.

    \b
      longvlm plan film.mp4 --model llava-hf/llava-1.5-7b-hf --fps 1
    """
    from longvlm.commands.plan import plan

    plan(video, video_options, model_options, json)


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file, or a bundled recipe: paper.yaml, paper-lora.yaml, full.yaml, tiny.yaml.",
            show_default=False,
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, with dots into it.", show_default=False),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only see whether recipe, base and packages fit; read no data, train nothing."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Let the libraries speak, too.")] = False,
) -> None:
    """Train a model by a recipe.

    Started again after a stop, it goes on from the last checkpoint. The trained model is OUTPUT/model.

    \b
      longvlm train tiny.yaml
      longvlm train paper.yaml output=runs/paper schedule.epochs=1 data.0.features=features/train
      torchrun --nproc-per-node 4 -m longvlm train paper.yaml model.base=LLAVA_7B data.0.features=features/train
    """
    from longvlm.commands.train import train

    train(recipe, changes or [], check, verbose)


@app.command()
def study(
    rows: Annotated[
        list[str] | None, typer.Option("--row", help="Only this row; may be given several times.", show_default=False)
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Another recipe than the bundled one.", dir_okay=False, exists=True)
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where encoded blocks and finished rows lie.")] = Path("runs/study"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Where study.json and study.png go.")] = Path(),
    document: Annotated[
        Path | None, typer.Option(help="A document whose table and plot, between marks, are replaced.", dir_okay=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Test the paper's claims: small models trained alike on differently made visual tokens.

    Hours on 2 cores. Started again after a stop, it goes on; rows that were finished are kept.

    \b
      longvlm study --row "local and global" --row "pooling"
      longvlm study -o docs/results --document docs/study.md
    """
    from longvlm.commands.study import study

    study(recipe, rows or [], runs, output, document, json)


@app.command()
@spread_options
def demo(
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Draw another video, which the model has never seen; any number.", show_default=False),
    ] = None,
    *,
    model_options: ModelOptions,
) -> None:
    """Ask six questions of a bundled video.

    The video is three minutes long and made, so the truth is known; it is printed beside the answers.

    \b
      longvlm demo
      longvlm demo --seed 7
    """
    from longvlm.commands.demo import demo

    demo(seed, model_options)


app.add_typer(data.app, name="data")
app.add_typer(features.app, name="features")
app.add_typer(weights.app, name="weights")


@app.command("eval")
@spread_options
def evaluate(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="video-chatgpt, activitynet-qa, msvd-qa, msrvtt-qa, tgif-qa or multiple-choice.",
            show_default=False,
        ),
    ],
    more_annotations: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="More annotation files.", show_default=False)
    ] = None,
    annotations: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE...", help="Questions and answers, as JSON; one or more files.", show_default=False),
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of the videos, or of their .longvlm files.", show_default=False),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Where everything goes. Default: results.", show_default=False
        ),
    ] = Path("results"),
    batch_size: Annotated[
        int, typer.Option(min=1, help="How many rows are answered at a time. Default: 8.", show_default=False)
    ] = 8,
    *,
    judge_options: JudgeOptions,
    video_options: VideoOptions,
    model_options: ModelOptions,
    answer_options: AnswerOptions,
) -> None:
    """Score a model on a benchmark.

    Predictions and judgements are kept as they come: the same command goes on where it stopped. Rows that have
    a "pred" already are judged as they are. For video-chatgpt, give the generic, temporal and consistency files.

    \b
      longvlm eval activitynet-qa --videos DIR --annotations test_q.json test_a.json -o DIR
      longvlm eval video-chatgpt --videos DIR --annotations generic.json temporal.json consistency.json -o DIR \\
          --judge-model gpt-4o-mini                       (key from the environment: OPENAI_API_KEY)
      longvlm eval multiple-choice --videos DIR --annotations videomme.json -o DIR
    """
    from longvlm.commands.eval import evaluate

    evaluate(
        task,
        [*(annotations or []), *(more_annotations or [])],
        videos,
        output,
        batch_size,
        judge_options,
        video_options,
        model_options,
        answer_options,
    )


def main() -> None:
    """Run the command line and end the process; see `ending.run_to_end` for its exit status."""
    sys.exit(ending.run_to_end(app, "longvlm"))
