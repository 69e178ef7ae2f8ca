"""`longvlm features`: feature files of the reference's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longvlm.commands import console
from longvlm.commands.batch_progress import BatchProgress
from longvlm.commands.extract import open_extractor
from longvlm.commands.options import EncoderOptions, VideoOptions, spread_options
from longvlm.errors import LongVLMError

if TYPE_CHECKING:
    from longvlm.index.reference_features import ImportSettings

app = typer.Typer(help="Import the reference's feature files.")


@app.callback()
def features() -> None:
    """Import the reference's feature files; `longvlm extract` makes new ones."""


@dataclass(frozen=True)
class _ImportOptions(EncoderOptions):
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|HUB_ID",
            help="The LongVLM or LLaVA checkpoint whose encoder made the features. Default: none, unless "
            "--vision-tower is given.",
            show_default=False,
        ),
    ] = None


@app.command("import")
@spread_options
def import_command(
    local: Annotated[
        Path, typer.Option("--local", metavar="DIR", help="Pickles of local features.", show_default=False)
    ],
    memory: Annotated[
        Path, typer.Option("--memory", metavar="DIR", help="Pickles of [CLS] features.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write the indexes.", show_default=False)
    ],
    tokens_per_segment: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of a segment in the local features. Default: the model's (paper: 30)."),
    ] = None,
    segments: Annotated[int, typer.Option(min=1, help="Segments of a video. Default: 10.", show_default=False)] = 10,
    videos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The videos, to take the true times of frames from.")
    ] = None,
    *,
    model_options: _ImportOptions,
) -> None:
    """Import the reference's pickles of features.

    Pickles are read without running anything in them; only plain numeric arrays are accepted. They don't say
    which encoder made them: name it with --model, or --vision-tower alone, or no model will read the indexes.

    \b
      longvlm features import --local clip_local --memory clip_mem -o features --vision-tower clip-vit-large-patch14
    """
    with BatchProgress("Reading") as progress:
        from longvlm.index.reference_features import import_reference_features

        settings = _settings(tokens_per_segment, segments, videos, model_options)
        total = 0
        for done, total in import_reference_features(local, memory, output, settings):
            progress.count(done, total)
    unknown = [
        *(["the encoder (--model or --vision-tower names it)"] if settings.encoder is None else []),
        *(["the times of frames (--videos finds them)"] if videos is None else []),
        "which patches each token stands for",
        "how frames were resized and tokens merged",
    ]
    console.note(f"wrote {total} indexes to {output}. What pickles don't say is unknown: {'; '.join(unknown)}.")
    if settings.encoder is None:
        console.note("no model takes these files until they are imported again with --vision-tower (or --model).")


def _settings(
    tokens_per_segment: int | None, num_segments: int, videos: Path | None, options: EncoderOptions
) -> ImportSettings:
    from longvlm.index.reference_features import ImportSettings
    from longvlm.types import Compression

    if options.model is None and (options.base is not None or options.projector is not None):
        raise LongVLMError("--base and --projector belong to a model; name it with --model.")
    encoder, compression = None, Compression()
    if options.model is not None or options.vision_tower is not None:
        extractor = open_extractor(options, VideoOptions(), all_layers=False)
        encoder, compression = extractor.encoder, extractor.compression
    if tokens_per_segment is not None:
        compression = dataclasses.replace(compression, tokens_per_segment=tokens_per_segment, merge_schedule=None)
    return ImportSettings(compression, num_segments, encoder, videos)
