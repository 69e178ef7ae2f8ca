"""Predictions: every video is encoded once for all its questions, which are asked in batches.

A prediction is written as soon as it is there. A video that can't be read is recorded, and the rest goes on.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvlm.errors import LongVLMError, is_out_of_memory, one_line
from longvlm.evaluation.benchmark import Benchmark, find_video
from longvlm.evaluation.jsonl import JsonLines
from longvlm.evaluation.rows import Row
from longvlm.pipeline import DamageWarning
from longvlm.stages.video import parse_time
from longvlm.video_index import VideoIndex

if TYPE_CHECKING:
    from longvlm.pipeline import LongVLM

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Asking:
    """How videos are encoded and questions answered: keyword arguments of `LongVLM.encode` and `LongVLM.ask`."""

    encode: Mapping[str, Any] = field(default_factory=dict)
    answer: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 8


class Predictor:
    """Answers rows of a benchmark with one model and hands out every prediction.

    What could not be asked, a whole video or one row about it, is a line of `failures`; `lost_seconds` are those of
    videos of which the end was missing, by name.
    """

    def __init__(self, model: LongVLM, benchmark: Benchmark, folder: Path, asking: Asking, failures: JsonLines) -> None:
        self.model = model
        self.benchmark = benchmark
        self.folder = folder
        self.asking = asking
        self.failures = failures
        self.lost_seconds: dict[str, float] = {}

    def predict(self, rows: Sequence[Row]) -> Iterator[tuple[Row, tuple[str, ...]]]:
        """Each row that can be asked with its predictions, batch by batch; a batch may span videos."""
        asked = self._with_videos(rows)
        while batch := list(itertools.islice(asked, self.asking.batch_size)):
            yield from self._answer(batch)

    def _with_videos(self, rows: Sequence[Row]) -> Iterator[tuple[Row, VideoIndex]]:
        by_part: dict[tuple[str, tuple[float, float] | None], list[Row]] = {}
        for row in rows:
            by_part.setdefault((row.video_name, row.clip_seconds), []).append(row)
        for (name, clip_seconds), its_rows in by_part.items():
            try:
                index = self._index(name, clip_seconds)
            except (LongVLMError, OSError, MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                self.failures.append({"video": name, "rows": len(its_rows), "reason": one_line(error)})
                continue
            yield from ((row, index) for row in its_rows)

    def _index(self, name: str, clip_seconds: tuple[float, float] | None) -> VideoIndex:
        wanted = dict(self.asking.encode)
        if clip_seconds is not None and wanted.get("start") is None and wanted.get("end") is None:
            wanted["start"], wanted["end"] = clip_seconds
        path = find_video(self.folder, name, self.benchmark)
        if path is None:
            tried = ", ".join(self.benchmark.video_stems(name))
            raise LongVLMError(
                f"no file {tried} (.longvlm, {', '.join(self.benchmark.video_suffixes)}) in {self.folder}"
            )
        if path.suffix == VideoIndex.SUFFIX:
            index = VideoIndex.load(path)
            index.require_same_encoding(self.model.encoder.name, self.model.encoder.fingerprint, self.model.compression)
            index = _as_asked(index, wanted)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DamageWarning)  # counted here, told at the end
                index = self.model.encode(path, **wanted)
        if index.lost_seconds > 0:
            self.lost_seconds[name] = round(index.lost_seconds, 3)
        return index

    def _answer(self, batch: Sequence[tuple[Row, VideoIndex]]) -> Iterator[tuple[Row, tuple[str, ...]]]:
        questions = [question for row, _ in batch for question in row.questions]
        indexes = [index for row, index in batch for _ in row.questions]
        texts: Iterator[str] | None = None
        try:
            if len(questions) == 1:  # alone, a question is answered without being padded
                texts = iter([self.model.ask(indexes[0], questions[0], **self.asking.answer).text])
            else:
                texts = iter([answer.text for answer in self.model.ask(indexes, questions, **self.asking.answer)])
        except (LongVLMError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = one_line(error)
        if texts is None:  # here the error, and with it what the batch held in memory, is gone
            if len(batch) > 1:  # one of them is to blame; the others are not to suffer
                for one in batch:
                    yield from self._answer([one])
                return
            row = batch[0][0]
            self.failures.append({"video": row.video_name, "rows": 1, "reason": reason, "question": row.questions[0]})
            return
        for row, _ in batch:
            yield row, tuple(itertools.islice(texts, len(row.questions)))


def _as_asked(index: VideoIndex, wanted: Mapping[str, Any]) -> VideoIndex:
    """The part of a stored index that was asked for. It can't follow another sampling, nor must it pass for it."""
    if wanted.get("sampling", "exact") != "exact" and index.sampling.mode != wanted["sampling"]:
        raise LongVLMError(
            f"the stored index holds {index.sampling.mode} frames, and --sampling {wanted['sampling']} is asked "
            "for; encode it again, or leave the option out"
        )
    for setting in ("num_frames", "fps", "max_frames"):
        if wanted.get(setting) is not None and getattr(index.sampling, setting) != wanted[setting]:
            raise LongVLMError(
                f"the stored index was sampled with {setting}={getattr(index.sampling, setting)}, and "
                f"{setting}={wanted[setting]} is asked for; encode it again, or leave the option out"
            )
    start, end = parse_time(wanted.get("start") or 0), wanted.get("end")
    end = None if end is None else parse_time(end)
    if part := _part_that_lacks_some(index, start, end):
        asked = "all of it" if start == 0 and end is None else "more of it"
        raise LongVLMError(
            f"the stored index holds a part of its video ({part}), and {asked} is asked about; encode it again, or "
            "give --start or --end"
        )
    return index if start == 0 and end is None else index.slice(start, end)


def _part_that_lacks_some(index: VideoIndex, start_seconds: float, end_seconds: float | None) -> str:
    """Which part of its video an index holds, if it lacks something between these times; else ""."""
    held, its_end = index.sampling, index.video.duration_seconds or math.inf
    held_end = its_end if held.end_seconds is None else held.end_seconds
    wanted_end = its_end if end_seconds is None else min(end_seconds, its_end)
    if held.start_seconds > start_seconds or held_end < wanted_end:
        return f"{held.start_seconds:g} s to {'its end' if held.end_seconds is None else f'{held_end:g} s'}"
    return "with gaps" if index.has_gaps else ""


def complete_predictions(
    rows: Sequence[Row],
    files: Mapping[str, JsonLines],
    predictor: Predictor | None,
    on_progress: Progress | None = None,
) -> dict[str, tuple[str, ...]]:
    """Predictions by row key: those that rows bring along, those in the files by part, and the rest now.

    `predictor` may be None where no row is left to ask.
    """
    done = known_predictions(rows, files)
    waiting = list({row.key: row for row in rows if row.key not in done}.values())
    if not waiting or predictor is None:
        return done
    for count, (row, texts) in enumerate(predictor.predict(waiting), start=1):
        named = dict(zip(row.prediction_fields, texts, strict=True))
        lost = predictor.lost_seconds.get(row.video_name)
        line = {**row.source, **named, "row_key": row.key}
        files[row.part].append(line if lost is None else {**line, "lost_seconds": lost})
        done[row.key] = texts
        if on_progress is not None:
            on_progress(count / len(waiting), f"Answered {count:,} of {len(waiting):,} questions")
    return done


def known_predictions(rows: Sequence[Row], files: Mapping[str, JsonLines]) -> dict[str, tuple[str, ...]]:
    """Predictions by row key that rows bring along, and those in the files by part."""
    given = {row.key: row.predictions for row in rows if row.predictions is not None}
    return given | kept_predictions(rows, files)


def kept_predictions(rows: Sequence[Row], files: Mapping[str, JsonLines]) -> dict[str, tuple[str, ...]]:
    kept = {line.get("row_key"): line for file in files.values() for line in file.lines}
    found = {}
    for row in rows:
        line = kept.get(row.key)
        if line is not None and all(isinstance(line.get(name), str) for name in row.prediction_fields):
            found[row.key] = tuple(line[name] for name in row.prediction_fields)
    return found


def damaged_videos(rows: Sequence[Row], files: Mapping[str, JsonLines]) -> list[str]:
    """The videos of these rows of which the end was missing when they were looked at."""
    lines = (line for file in files.values() for line in file.lines)
    damaged = {line.get("row_key") for line in lines if line.get("lost_seconds")}
    return sorted({row.video_name for row in rows if row.key in damaged})
