"""One evaluation from rows to results, in a folder that can be gone on with.

What is in the folder: settings.json, predictions-PART.jsonl, failures.jsonl, judgements.jsonl, results.{json,md,png}.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvlm.differences import first_difference
from longvlm.errors import LongVLMError, one_line
from longvlm.evaluation.benchmark import Axis, Benchmark, Published, find_video
from longvlm.evaluation.benchmarks.multiple_choice import parse_letter
from longvlm.evaluation.chart import draw_chart
from longvlm.evaluation.jsonl import JsonLines
from longvlm.evaluation.judge import Judge, JudgeRequest
from longvlm.evaluation.judging import JudgePrompt
from longvlm.evaluation.measures import (
    Judgements,
    Measure,
    Predictions,
    measure_judged,
    measure_letters,
    measure_offline,
)
from longvlm.evaluation.predict import (
    Asking,
    Predictor,
    Progress,
    complete_predictions,
    damaged_videos,
    kept_predictions,
    known_predictions,
)
from longvlm.evaluation.results import Results, judge_name
from longvlm.evaluation.rows import Row, content_hash
from longvlm.whole_files import locked, make_folder, write_whole

if TYPE_CHECKING:
    from longvlm.pipeline import LongVLM

_JUDGEMENTS = "judgements.jsonl"
NO_MODEL = "the predictions given"
_PUBLISHED_NOTE = (
    "Published figures were given by another judge (GPT-3.5) with prompts of other words, and LongVLM's are quoted "
    "from papers that cite it. The judge matters: the same predictions have moved from 35.2 % to 43.6 % on "
    "ActivityNet-QA when it changed."
)
_OFFLINE_NOTE = (
    "The offline judge compares words: exact match and token F1 without case, punctuation and articles. It is the "
    "same everywhere and at any time; it knows no synonyms, and it can't tell axes apart that rest on the same answers."
)
_ANSWERS_DEPEND_ON = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")  # of a checkpoint's files
_INTERVAL_NOTE = "Intervals are clustered by video: questions about one video stand or fall together."


@dataclass(frozen=True)
class JudgeChoice:
    """Which judge is asked, and with which prompts, by axis name."""

    model: str
    url: str | None
    prompts: Mapping[str, JudgePrompt]
    concurrency: int = 8


@dataclass(frozen=True)
class Failure:
    """A video, by its name in the annotations, about which rows could not be asked."""

    video: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """The results, and what went wrong on the way.

    `failures` say of a video or a row why it could not be asked, `stopped` why a judge could not be asked to the end.
    """

    results: Results
    failures: Sequence[Failure]
    num_unreached: int
    damaged: Sequence[str]
    stopped: LongVLMError | None


def run_benchmark(
    benchmark: Benchmark,
    rows: Sequence[Row],
    output: Path,
    *,
    model: LongVLM | None,
    weights: str,
    videos: Path | None,
    asking: Asking,
    judge: JudgeChoice | None,
    on_progress: Progress | None = None,
) -> Outcome:
    """Ask whatever has no prediction yet, judge whatever has no judgement yet, and write the results.

    `model` and `videos` may be None where all rows bring predictions along. `weights` tells checkpoints of one
    name apart. Raises LongVLMError where the folder belongs to another evaluation, nothing is found to ask
    about or none of it can be asked, nothing can be written, or the judge can't be reached before the first question;
    what was done is kept.
    """
    settings = _settings(benchmark, model, weights, videos, asking)
    make_folder(output)
    with ExitStack() as stack:
        stack.enter_context(locked(output))
        _claim(output, settings)
        files = {
            part: stack.enter_context(JsonLines(output / f"predictions-{part}.jsonl"))
            for part in dict.fromkeys(row.part for row in rows)
        }
        (output / "failures.jsonl").unlink(missing_ok=True)
        failures = stack.enter_context(JsonLines(output / "failures.jsonl"))
        predictor = None
        if model is not None and videos is not None:
            if not kept_predictions(rows, files):
                _require_any_video(rows, videos, benchmark)
            predictor = Predictor(model, benchmark, videos, asking, failures)
        kept = stack.enter_context(JsonLines(output / _JUDGEMENTS))
        judged = _JudgePart(benchmark, rows, judge, kept)
        known = known_predictions(rows, files)
        waiting = [row for row in rows if row.key not in known]
        judged.require_reachable(known, more_to_come=videos is not None and _has_any_video(waiting, videos, benchmark))
        predictions = complete_predictions(rows, files, predictor, on_progress)
        failed = [Failure(line["video"], line["reason"]) for line in failures.lines]
        if failed and not predictions:
            raise _nothing_asked(rows, failed, failures.path)
        damaged = damaged_videos(rows, files)
        if judge is not None:  # the offline part is there even if the judge fails, or takes days
            _write(output, _results(benchmark, rows, predictions, settings, None, len(damaged)), with_chart=False)
        judged.complete(predictions, on_progress)
        results = _results(benchmark, rows, predictions, settings, judged, len(damaged))
        _write(output, results)
        return Outcome(results, failed, judged.num_unreached, damaged, judged.stopped)


class _JudgePart:
    """The judge's part of an evaluation, which may be none, or end early."""

    def __init__(self, benchmark: Benchmark, rows: Sequence[Row], choice: JudgeChoice | None, kept: JsonLines) -> None:
        self.stopped: LongVLMError | None = None
        self._axes, self._rows = benchmark.axes, rows
        self._requests: dict[tuple[str, str], JudgeRequest] = {}
        self._judge: Judge | None = None
        if choice is None:
            return
        self._judge = Judge(choice.model, choice.url, kept, concurrency=choice.concurrency)
        self._prompts = choice.prompts
        # Scores by other prompts are other scores.
        self._prompts_hash = content_hash({name: [one.system, one.user] for name, one in choice.prompts.items()})[:16]

    @property
    def num_unreached(self) -> int:
        return self._judge.unreached if self._judge else 0

    def require_reachable(self, predictions: Predictions, *, more_to_come: bool) -> None:
        """Raise LongVLMError where the judge can't be reached, before hours of answering questions that it is to judge.

        `predictions` are those there are: where no more come, and all are judged, there is nothing to reach it for.
        """
        if self._judge is None:
            return
        judged = all(self._judge.has_reply(request) for request in self._requests_about(predictions).values())
        if more_to_come or not judged:
            self._judge.require_reachable()

    def complete(self, predictions: Predictions, on_progress: Progress | None) -> None:
        if self._judge is None:
            return
        self._requests = self._requests_about(predictions)
        try:
            self._judge.complete(list(self._requests.values()), on_progress)
        except LongVLMError as reason:
            self.stopped = reason

    def describe(self) -> dict[str, Any] | None:
        if self._judge is None:
            return None
        versions = self._judge.versions(list(self._requests.values()))
        described = {"model": self._judge.model, "url": self._judge.url, "versions": versions}
        return {**described, "prompts": self._prompts_hash}

    def judgements(self) -> Judgements:
        if self._judge is None:
            return {}
        replied = {place: request for place, request in self._requests.items() if self._judge.has_reply(request)}
        return {place: self._judge.find(request) for place, request in replied.items()}

    def notes(self) -> list[str]:
        """What to say of requests without a judgement."""
        judgements, total = self.judgements(), len(self._requests)
        unreadable, unreached = sum(one is None for one in judgements.values()), total - len(judgements)
        notes = []
        if unreadable:
            notes.append(
                f"The judge sent no reply that could be read to {unreadable} of {total} requests (to ask again, remove "
                f'the lines with "score": null from {_JUDGEMENTS}).'
            )
        if unreached:
            notes.append(
                f"The judge sent no reply at all to {unreached} of {total} requests: it was not reached, or refused "
                "them; they are asked again by the same command."
            )
        return [f"{note} They count to no mean." for note in notes]

    def _requests_about(self, predictions: Predictions) -> dict[tuple[str, str], JudgeRequest]:
        """By axis name and row key."""
        return {
            (axis.name, row.key): self._request(axis, row, predictions[row.key])
            for axis in self._axes
            for row in self._rows
            if row.part == axis.part and row.key in predictions
        }

    def _request(self, axis: Axis, row: Row, texts: tuple[str, ...]) -> JudgeRequest:
        messages = self._prompts[axis.name].fill(row, texts)
        return JudgeRequest(row.key, axis.name, messages, with_verdict=axis.kind == "verdict")


def _nothing_asked(rows: Sequence[Row], failed: Sequence[Failure], path: Path) -> LongVLMError:
    first = failed[0]
    return LongVLMError(
        f"None of the {len(rows)} rows could be asked, first of them about {first.video}: {first.reason.rstrip('.')}. "
        f"All reasons are in {path}."
    )


def _settings(
    benchmark: Benchmark, model: LongVLM | None, weights: str, videos: Path | None, asking: Asking
) -> dict[str, Any]:
    """All that predictions depend on but the rows themselves."""
    settings: dict[str, Any] = {"task": benchmark.name, "model": model.name if model else NO_MODEL}
    if model is not None:
        settings |= {"weights": weights, "encoder": model.encoder.fingerprint[:16], "precision": model.precision}
        settings |= {"videos": None if videos is None else str(videos.resolve())}
        settings |= {"compression": json.loads(model.compression.to_json())}
        settings |= {"encode": dict(asking.encode), "answer": dict(asking.answer)}
    return settings


def _claim(output: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder this evaluation's own. Raises LongVLMError where it is another one's.

    One that came to no prediction and no result, since nothing could be asked, is nobody's.
    """
    path = output / "settings.json"
    try:
        is_begun = any(output.glob("predictions-*.jsonl")) or (output / "results.json").exists()
        if not is_begun or not path.exists():
            write_whole(path, (json.dumps(settings, indent=2) + "\n").encode())
            return
        kept = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LongVLMError(f"Can't write into {output}: {error.strerror or error}; choose another -o.") from error
    except ValueError as error:
        raise LongVLMError(f"{path} is not readable; choose another -o, or remove that folder.") from error
    differing = first_difference(kept, json.loads(json.dumps(settings)))
    if differing is not None:
        name, theirs, ours = differing
        raise LongVLMError(
            f"{output} holds an evaluation with {name} {_short(theirs)}, and now it is {_short(ours)}; choose another "
            "-o, or remove that folder."
        )


def _short(value: Any) -> str:
    return json.dumps(value)[:80]


def _require_any_video(rows: Sequence[Row], videos: Path, benchmark: Benchmark) -> None:
    rows = [row for row in rows if row.predictions is None]
    if rows and not _has_any_video(rows, videos, benchmark):
        stem, count = benchmark.video_stems(rows[0].video_name)[0], len({row.video_name for row in rows})
        raise LongVLMError(
            f"None of the {count} videos of the annotations is in {videos}: looked, for example, for "
            f"{stem}{benchmark.video_suffixes[0]}; check --videos."
        )


def _has_any_video(rows: Sequence[Row], videos: Path, benchmark: Benchmark) -> bool:
    return any(find_video(videos, name, benchmark) for name in dict.fromkeys(row.video_name for row in rows))


def _results(
    benchmark: Benchmark,
    rows: Sequence[Row],
    predictions: Predictions,
    settings: Mapping[str, Any],
    judged: _JudgePart | None,
    num_damaged: int,
) -> Results:
    unanswered = sum(row.key not in predictions for row in rows)
    notes = [f"{unanswered} rows have no answer and count to no mean; failures.jsonl says why."] if unanswered else []
    if num_damaged:
        notes.append(f"{num_damaged} videos are damaged: what comes after the damage was not looked at.")
    judge = judged.describe() if judged else None
    measures: list[Measure] = []
    if judged is not None and judge is not None:
        measures = measure_judged(benchmark, rows, predictions, judged.judgements(), judge_name(judge))
        notes += judged.notes()
    explanations = [_INTERVAL_NOTE]
    if benchmark.axes:
        measures += measure_offline(benchmark, rows, predictions)
        explanations.append(_OFFLINE_NOTE)
    else:
        measures += measure_letters(rows, predictions)
        answered = [row for row in rows if row.key in predictions]
        unread = sum(parse_letter(predictions[row.key][0], row.options) is None for row in answered)
        notes += [f"{unread} of {len(answered)} replies name no letter; they count as wrong."] if unread else []
    if any(measure.published for measure in measures):
        explanations.append(_PUBLISHED_NOTE)
    elif benchmark.published:
        explanations.append(_tell_published(benchmark.published))
    return Results(
        task=benchmark.name,
        model=settings["model"],
        num_rows=len(rows),
        num_videos=len({row.video_name for row in rows}),
        num_unanswered=unanswered,
        measures=tuple(measures),
        settings=settings,
        judge=judge,
        notes=tuple(notes),
        explanations=tuple(explanations),
    )


def _tell_published(published: Published) -> str:
    """The published figures where there are none of their kind to stand beside."""
    rows = [f"{model}: " + ", ".join(f"{name} {value:g}" for name, value in row.items()) for model, row in published]
    return (
        f"Published, judged by language models, and so not comparable with the offline judge: {'; '.join(rows)}. "
        "--judge-model gives figures of that kind."
    )


def _write(output: Path, results: Results, *, with_chart: bool = True) -> None:
    """Write the three files, each of them whole or not at all."""
    content = json.dumps(results.as_json(), indent=2, ensure_ascii=False) + "\n"
    try:
        write_whole(output / "results.json", content.encode("utf-8", "replace"))
        write_whole(output / "results.md", results.as_markdown().encode("utf-8", "replace"))
        if not with_chart:
            return
        draw_chart(results, output / "results.png")
    except (OSError, LongVLMError) as error:
        raise LongVLMError(
            f"Can't write the results into {output} ({one_line(error)}). Make room there and run the same command "
            "again; predictions and judgements are kept."
        ) from error


def hash_weights(
    folder: Path, others: Sequence[Path] = (), on_progress: Callable[[float, str], None] | None = None
) -> str:
    """A hash of a checkpoint's weights, configuration, tokenizer and chat template, and of `others` merged into it: it
    tells trained states and their settings apart.
    """
    digest = hashlib.sha256()
    files = sorted(path for path in folder.iterdir() if path.suffix in _ANSWERS_DEPEND_ON and path.is_file())
    for number, path in enumerate([*files, *others]):
        if on_progress is not None:
            on_progress(number / (len(files) + len(others)), f"Reading {path.name}")
        digest.update(path.name.encode())
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        except OSError as error:
            raise LongVLMError(f"Can't read the weights {path}: {error.strerror or error}.") from error
    return digest.hexdigest()[:16]
