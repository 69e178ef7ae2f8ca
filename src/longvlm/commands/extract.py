"""`longvlm extract`: the features of many videos, one file a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from longvlm.commands import console
from longvlm.commands.batch_progress import BatchProgress
from longvlm.commands.ending import LEFT_SOMETHING_OUT
from longvlm.commands.loading import load_model, loading_libraries, plan_sampling
from longvlm.commands.options import EncoderOptions, VideoOptions
from longvlm.index.video_folders import VideoList, find_videos
from longvlm.stages.video_access import display_source

if TYPE_CHECKING:
    from longvlm.index.extraction import FeatureFolders
    from longvlm.index.extraction_report import Failure, Progress, Report
    from longvlm.index.extractor import Extractor


def extract(
    source: Path,
    output: Path | None,
    video_folder: Path | None,
    reference_folders: tuple[Path, Path] | None,
    num_decoders: int,
    batch_segments: int | None,
    video_options: VideoOptions,
    model_options: EncoderOptions,
) -> None:
    """Extract, tell what came of it, and end with status 1 where a video failed."""
    found = find_videos(source, video_folder)
    for repeated in found.repeated:
        console.note(f"{console.printable(display_source(repeated))} is listed more than once; it is extracted once.")
    with BatchProgress("Loading the model, and looking at what is done") as progress:
        with loading_libraries(model_options.verbose):
            from longvlm.index.extraction import FeatureFolders
            from longvlm.index.extraction import extract as extract_all

        folders = FeatureFolders(output, *(reference_folders or ()))
        extractor = open_extractor(model_options, video_options, all_layers=reference_folders is not None)

        def show(state: Progress) -> None:
            progress.update(state.videos_done, state.videos_total, state.describe())

        report = extract_all(
            found.videos,
            extractor,
            folders,
            known_failures=_clashes(found),
            num_decoders=num_decoders,
            batch_segments=batch_segments,
            frame_rate=video_options.frame_rate,
            allow_references=video_options.allow_references,
            on_progress=show,
        )
    _tell(report, folders)
    if report.failures:
        raise typer.Exit(LEFT_SOMETHING_OUT)


def open_extractor(model_options: EncoderOptions, video_options: VideoOptions, *, all_layers: bool) -> Extractor:
    """The encoder that the options name: a model's, or a vision tower alone, read as in the paper."""
    from_a_model = (model_options.model, model_options.base, model_options.projector)
    if model_options.vision_tower is not None and from_a_model == (None, None, None):
        with loading_libraries(model_options.verbose):
            from longvlm.index.extractor import extractor_of_tower, plan_paper_sampling

        sampling = plan_paper_sampling(
            video_options.num_frames,
            video_options.fps,
            video_options.max_frames,
            video_options.start,
            video_options.end,
            video_options.sampling,
        )
        device, dtype = model_options.device, model_options.dtype
        return extractor_of_tower(
            model_options.vision_tower, sampling, device=device, dtype=dtype, all_layers=all_layers
        )
    model = load_model(model_options)
    from longvlm.index.extractor import extractor_of_model

    return extractor_of_model(model, plan_sampling(model, video_options), all_layers=all_layers)


def _clashes(found: VideoList) -> list[Failure]:
    from longvlm.index.extraction_report import Failure

    return [
        Failure(
            display_source(video.source),
            f"its features would go to the same file as those of {display_source(earlier.source)}; rename one.",
        )
        for earlier, video in found.clashing
    ]


def _tell(report: Report, folders: FeatureFolders) -> None:
    from longvlm.index.extraction_report import FAILURES_FILE

    for source, seconds in report.lost_seconds.items():
        console.warn(
            f"the end of {console.printable(source)} is damaged: the last {seconds:.1f} s could not be decoded and "
            "are not in its features. Once it is mended, remove these and run the same command again."
        )
    places = " and ".join(map(str, folders.folders))
    skipped = f", {report.num_skipped} were there already" if report.num_skipped else ""
    console.note(f"wrote the features of {report.num_written} videos to {places}{skipped}.")
    if not report.failures:
        return
    for failure in report.failures:
        console.tell_failure(failure.video, failure.reason)
    count = "1 video" if len(report.failures) == 1 else f"{len(report.failures)} videos"
    console.error(f"{count} failed; see {folders.folders[0] / FAILURES_FILE}.")
