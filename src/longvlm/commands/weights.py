"""`longvlm weights`: pretrained weights, put together from what is published, and rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longvlm.commands import console

app = typer.Typer(help="Put pretrained weights together, and rewrite them.", no_args_is_help=False)

# The second spelling of each is that of the reference's script.
BaseOption = Annotated[
    str,
    typer.Option("--base", "--base-model-path", metavar="FOLDER|HUB_ID", help="The base (LLaMA).", show_default=False),
]
ShardSizeOption = Annotated[
    str, typer.Option(metavar="SIZE", help="Largest weight file, as 5GB (default), 500MB.", show_default=False)
]
CheckpointArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A folder or hub id.", show_default=False)]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write the result.", show_default=False)
]
TowerOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|HUB_ID",
        help="Take the vision encoder from here. Default: from where the checkpoint says.",
        show_default=False,
    ),
]
ProjectorOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Lay this mm_projector.bin of the reference over the checkpoint.", show_default=False
    ),
]


@app.callback()
def weights() -> None:
    """Put pretrained weights together, and rewrite them.

    Weights are read tensor by tensor, so a model of any size takes the memory of one weight file. What is written
    is a new folder, whole or not there at all.
    """


@app.command()
def apply_delta(
    base: BaseOption,
    target: Annotated[
        Path,
        typer.Option(
            "--target", "--target-model-path", metavar="FOLDER", help="Where to write the sum.", show_default=False
        ),
    ],
    delta: Annotated[
        str,
        typer.Option("--delta", "--delta-path", metavar="FOLDER|HUB_ID", help="The delta.", show_default=False),
    ],
    max_shard_size: ShardSizeOption = "5GB",
) -> None:
    """Add a delta to its base.

    The result has the delta's layout, config and tokenizer. A base whose tensors or words don't fit is refused before
    anything is written; Llama 2 fits a delta of the first LLaMA: heed the warning.

    \b
      longvlm weights apply-delta --base LLAMA_7B --target LLAVA_7B --delta LLAVA_DELTA_7B
    """
    with console.Progress("Comparing the base with the delta") as progress:
        console.silence_libraries()
        from longvlm.model.deltas import apply_delta

        apply_delta(
            base,
            delta,
            target,
            max_shard_size=max_shard_size,
            on_progress=progress.update,
            on_warning=console.warn,
        )
    _tell(target)


@app.command()
def make_delta(
    base: BaseOption,
    target: Annotated[
        str,
        typer.Option(
            "--target", "--target-model-path", metavar="FOLDER|HUB_ID", help="The whole model.", show_default=False
        ),
    ],
    delta: Annotated[
        Path,
        typer.Option("--delta", "--delta-path", metavar="FOLDER", help="Where to write it.", show_default=False),
    ],
    dtype: Annotated[
        str, typer.Option(help="float16 (default), bfloat16 or float32: what all is rounded to.", show_default=False)
    ] = "float16",
    max_shard_size: ShardSizeOption = "5GB",
) -> None:
    """Subtract a base from a model made from it.

    The delta can be shared where the base can't; apply-delta gives back the model, rounded to --dtype.

    \b
      longvlm weights make-delta --base LLAMA_7B --target MY_MODEL --delta MY_DELTA
    """
    with console.Progress("Comparing the base with the target") as progress:
        console.silence_libraries()
        from longvlm.model.deltas import make_delta

        make_delta(
            base,
            target,
            delta,
            dtype=dtype,
            max_shard_size=max_shard_size,
            on_progress=progress.update,
            on_warning=console.warn,
        )
    _tell(delta)


@app.command()
def import_llava(
    model: CheckpointArgument,
    output: OutputOption,
    vision_tower: TowerOption = None,
    projector: ProjectorOption = None,
    max_shard_size: ShardSizeOption = "5GB",
) -> None:
    """Write a LLaVA checkpoint as a LongVLM one.

    Takes transformers' layout or the original one. The folder written has all parts, the vision encoder included.

    \b
      longvlm weights import-llava LLAVA_7B -o longvlm-7b --vision-tower clip-vit-large-patch14
      longvlm ask film.mp4 "What happens first?" --model longvlm-7b
    """
    with console.Progress("Reading the vision tower") as progress:
        console.silence_libraries()
        from longvlm.model.conversion import import_llava

        import_llava(
            model,
            output,
            vision_tower=vision_tower,
            projector=projector,
            max_shard_size=max_shard_size,
            on_progress=progress.update,
        )
    _tell(output)


@app.command()
def consolidate(
    model: CheckpointArgument,
    output: OutputOption,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|HUB_ID",
            help="Where the base of what was trained lies, if not where it lay then.",
            show_default=False,
        ),
    ] = None,
    vision_tower: TowerOption = None,
    projector: ProjectorOption = None,
    max_shard_size: ShardSizeOption = "5GB",
) -> None:
    """Rewrite a checkpoint as safetensors, whole.

    Weights, names and layout stay the same. What `longvlm train` saved of a part (projector, new tokens, LoRA) is
    merged with its base into one LongVLM checkpoint; with --projector, an mm_projector.bin of the reference is merged
    with MODEL, its base.

    \b
      longvlm weights consolidate LLAVA_7B -o llava-7b --max-shard-size 2GB
      longvlm weights consolidate runs/paper/model -o trained-7b --base LLAVA_7B
      longvlm weights consolidate LLAVA_7B -o trained-7b --projector mm_projector.bin
    """
    with console.Progress("Reading the checkpoint") as progress:
        console.silence_libraries()
        from longvlm.model.conversion import consolidate

        consolidate(
            model,
            output,
            base=base,
            vision_tower=vision_tower,
            projector=projector,
            max_shard_size=max_shard_size,
            on_progress=progress.update,
        )
    _tell(output)


def _tell(folder: Path) -> None:
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    files = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
    console.note(f"wrote {folder}: {sum(sizes) / 1e9:.2f} GB of weights in {files}.")
