"""The rows that a training learns from: instructions joined with stored features, or with videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from longvlm.errors import LongVLMError
from longvlm.index.video_folders import find_video_files
from longvlm.pipeline import LongVLM
from longvlm.training.activitynet import open_whole
from longvlm.training.conversations import Sample, count_moved_videos, require_plain_texts
from longvlm.training.curves import Say
from longvlm.training.features import claim_features, encode_videos, find_features, inspect_features
from longvlm.training.instructions import Conversation, read_instructions
from longvlm.training.recipe import DataSource, Recipe
from longvlm.training.run_folder import FEATURES
from longvlm.types import Sampling


def gather_samples(recipe: Recipe, opened: LongVLM, arguments: TrainingArguments, say: Say) -> list[Sample]:
    """The rows of all data sets with their videos, encoded if need be, and checked.

    Raises LongVLMError where a video is missing, damaged or made otherwise than the model wants, and for rows that
    can't be learned from.
    """
    samples: list[Sample] = []
    sampling = opened.plan_sampling(None, None, None, None, None, "exact")  # what the trained model will look at
    # Data sets of one folder of videos share its features, too.
    video_folders = list(dict.fromkeys(source.videos.resolve() for source in recipe.data if source.videos is not None))
    for source in recipe.data:
        rows = read_instructions(source.instructions)
        wanted = {row.video for row in rows if row.video is not None}
        if recipe.learning_rates.encoder is not None:
            videos: dict[str, Any] = _find_pixels(source, wanted, say)
        else:
            number = 0 if source.videos is None else video_folders.index(source.videos.resolve())
            folder = recipe.output / (f"{FEATURES}-{number}" if number else FEATURES)
            paths = _find_stored(source, wanted, folder, opened, sampling, arguments, say)
            encoder = (opened.encoder.name, opened.encoder.fingerprint) if paths else ("", "")
            settings = (*encoder, opened.compression, sampling)
            timed = opened.config.timestamps
            videos = {video: inspect_features(path, *settings, timestamps=timed) for video, path in paths.items()}
        samples += _join(source, rows, videos, say)
    require_plain_texts(samples, opened.processor)
    if num_moved := count_moved_videos(samples, opened.processor):
        say(
            f"{num_moved} of {len(samples)} samples have their video behind the question; the model's chat template "
            "writes it before, where they learn it"
        )
    if not samples:
        raise LongVLMError("There is not a single row to learn from; give instructions with rows.")
    without = next((sample.place for sample in samples if sample.video is None), None)
    if without is not None and recipe.machine.fsdp and recipe.learning_rates.encoder is not None:
        # The processes gather an encoder's shards together, and one that has no frames would not come.
        raise LongVLMError(
            f"{without} has no video, and an encoder that is sharded learns from rows with videos alone; take those "
            "without out, or leave machine.fsdp out."
        )
    return samples


def _find_pixels(source: DataSource, wanted: set[str], say: Say) -> dict[str, Path]:
    """Whole videos by id. Raises LongVLMError for others, unless they are to be dropped."""
    if source.videos is None:
        return {}
    paths = find_video_files(source.videos, wanted)
    say(f"opening {len(paths)} videos of {source.videos}, from which the encoder is to learn")
    opened = {video: open_whole(path) for video, path in paths.items()}
    damages = [damage for damage in opened.values() if isinstance(damage, LongVLMError)]
    if damages:
        told = f"{len(damages)} of {len(paths)} videos can't be learned from, first of them: {damages[0]}"
        if source.missing == "refuse":
            raise LongVLMError(f"{told} Mend or remove them, or set missing: drop for these data.")
        say(told)
    return {video: path for video, path in paths.items() if not isinstance(opened[video], LongVLMError)}


def _find_stored(
    source: DataSource,
    wanted: set[str],
    folder: Path,
    opened: LongVLM,
    sampling: Sampling,
    arguments: TrainingArguments,
    say: Say,
) -> dict[str, Path]:
    """Feature files by id; those of videos are made first, in `folder`."""
    if source.features is not None:
        return find_features(source.features, wanted)
    if source.videos is None:
        return {}
    videos = find_video_files(source.videos, wanted)
    with arguments.main_process_first(local=False):
        if arguments.process_index == 0:
            claim_features(folder, source.videos)
            say(f"encoding {len(videos)} videos of {source.videos} into {folder}, those that are not there yet")
            encode_videos(opened, videos, folder, sampling, may_drop=source.missing == "drop", say=say)
    return find_features(folder, videos)


def _join(source: DataSource, rows: list[Conversation], videos: dict[str, Any], say: Say) -> list[Sample]:
    """Rows with their videos. Raises LongVLMError for missing ones, unless they are to be dropped."""
    missing = [row for row in rows if row.video is not None and row.video not in videos]
    if missing and source.missing == "refuse":
        folder = source.features or source.videos
        where = "no folder of features or videos is given" if folder is None else f"not in {folder}"
        raise LongVLMError(
            f"{len(missing)} of {len(rows)} rows of {source.instructions} have a video that is not there, first of "
            f"them {missing[0].video} ({where}); add it, or set missing: drop for these data."
        )
    if missing:
        say(f"{source.instructions}: {len(missing)} of {len(rows)} rows dropped, since their video is not there")
    return [
        Sample(row, None if row.video is None else videos[row.video], source.weight, f"{source.instructions}, row {n}")
        for n, row in enumerate(rows)
        if row.video is None or row.video in videos
    ]
