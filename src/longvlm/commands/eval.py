"""`longvlm eval`: a benchmark, from annotations and videos to a table with intervals."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from longvlm.commands import console
from longvlm.commands.ask import require_settings
from longvlm.commands.ending import LEFT_SOMETHING_OUT
from longvlm.commands.loading import load_model
from longvlm.commands.options import AnswerOptions, JudgeOptions, ModelOptions, VideoOptions
from longvlm.errors import LongVLMError

if TYPE_CHECKING:
    from longvlm.evaluation.benchmark import Benchmark
    from longvlm.evaluation.rows import Row
    from longvlm.evaluation.run import Failure, JudgeChoice, Outcome
    from longvlm.pipeline import LongVLM

FAILURES_SHOWN = 5
TASKS = ("video-chatgpt", "activitynet-qa", "msvd-qa", "msrvtt-qa", "tgif-qa", "multiple-choice")


def evaluate(
    task: str,
    annotations: list[str],
    videos: Path | None,
    output: Path,
    batch_size: int,
    judge_options: JudgeOptions,
    video_options: VideoOptions,
    model_options: ModelOptions,
    answer_options: AnswerOptions,
) -> None:
    if task not in TASKS:
        raise LongVLMError(f"There is no task {task!r}; choose one of {', '.join(TASKS)}.")
    _require_options(task, annotations, judge_options, video_options)
    with console.Progress("Reading the annotations") as progress:
        if not model_options.verbose:
            console.silence_libraries()
        from longvlm.evaluation.benchmarks import BENCHMARKS
        from longvlm.evaluation.predict import Asking
        from longvlm.evaluation.run import hash_weights, run_benchmark
        from longvlm.model.checkpoints import resolve_model
        from longvlm.model.projector import ReferenceProjector
        from longvlm.world.lengths import require_matplotlib

        require_matplotlib()
        require_settings(answer_options)
        benchmark = BENCHMARKS[task]
        rows = _read(benchmark, annotations)
        judge = _choose_judge(benchmark, rows, judge_options)
        model, weights = _open_model(rows, videos, model_options), ""
        if model is not None:
            laid_over = [ReferenceProjector.open(model_options.projector).path] if model_options.projector else []
            weights = hash_weights(resolve_model(model_options.model), laid_over, progress.update)
        outcome = run_benchmark(
            benchmark,
            rows,
            output,
            model=model,
            weights=weights,
            videos=videos,
            asking=Asking(_encoding(video_options), dataclasses.asdict(answer_options), batch_size),
            judge=judge,
            on_progress=progress.update,
        )
    _report(outcome, output)


def _require_options(task: str, annotations: list[str], judge: JudgeOptions, video: VideoOptions) -> None:
    if not annotations:
        raise LongVLMError(f"{task} needs questions: name the files with --annotations.")
    if judge.judge_model is None and (judge.judge_url or judge.prompts):
        raise LongVLMError("--judge-url and --prompts are for a judge: name it with --judge-model.")
    if judge.judge_model is not None and task == "multiple-choice":
        raise LongVLMError("multiple-choice compares letters and needs no judge; leave out --judge-model.")
    if judge.prompts is not None and not judge.prompts.is_dir():
        raise LongVLMError(f"--prompts {judge.prompts} is not a folder; give one with prompts such as qa.txt.")
    if video.frame_rate is not None:
        raise LongVLMError("--frame-rate is for folders of images, and benchmarks have videos; leave it out.")


def _read(benchmark: Benchmark, annotations: list[str]) -> list[Row]:
    """The questions; what the reader warns of is told."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rows = benchmark.read(annotations)
    for one in said:
        console.warn(str(one.message))
    return rows


def _choose_judge(benchmark: Benchmark, rows: list[Row], options: JudgeOptions) -> JudgeChoice | None:
    if options.judge_model is None:
        return None
    from longvlm.evaluation.judge import require_client
    from longvlm.evaluation.judging import load_prompts
    from longvlm.evaluation.run import JudgeChoice

    require_client()
    parts = {row.part for row in rows}
    prompts = load_prompts([axis for axis in benchmark.axes if axis.part in parts], options.prompts)
    return JudgeChoice(options.judge_model, options.judge_url, prompts, options.judge_concurrency)


def _open_model(rows: list[Row], videos: Path | None, options: ModelOptions) -> LongVLM | None:
    """The model, unless all rows have been answered by another."""
    given = sum(row.predictions is not None for row in rows)
    if given:
        console.note(f"{given} of {len(rows)} rows bring predictions along, which are taken as they are.")
    if given == len(rows):
        return None
    if videos is None:
        raise LongVLMError("There are questions without predictions; name the folder of their videos with --videos.")
    if not videos.is_dir():
        raise LongVLMError(f"--videos {videos} is not a folder; give the one that holds the videos.")
    return load_model(options)


def _encoding(options: VideoOptions) -> dict[str, object]:
    """The arguments of `LongVLM.encode` for these options, without those that only folders of images have."""
    settings = dataclasses.asdict(options)
    del settings["frame_rate"]
    return settings


def _report(outcome: Outcome, output: Path) -> None:
    from rich.console import Console

    screen = Console()
    for table in outcome.results.as_tables():
        screen.print(table)
    for note in outcome.results.notes:
        console.note(note)
    console.note(f"wrote results.json, results.md and results.png into {output}.")
    if outcome.failures:
        _tell_failures(outcome.failures)
        console.warn(
            f"{outcome.results.num_unanswered} of {outcome.results.num_rows} rows could not be asked; "
            f"{output / 'failures.jsonl'} says which and why. Once that is mended, the same command asks only those."
        )
    if outcome.stopped is not None:
        raise outcome.stopped
    if outcome.num_unreached:
        console.warn(f"the judge failed on {outcome.num_unreached} requests; run the same command again to ask them.")
    if outcome.failures or outcome.num_unreached:
        raise typer.Exit(LEFT_SOMETHING_OUT)


def _tell_failures(failures: Sequence[Failure]) -> None:
    for failure in failures[:FAILURES_SHOWN]:
        console.tell_failure(failure.video, failure.reason)
    more = len(failures) - FAILURES_SHOWN
    if more > 0:
        print(f"… and {more} more", file=sys.stderr)
