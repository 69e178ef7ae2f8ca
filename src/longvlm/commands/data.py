"""`longvlm data`: the training data's folders, lists and instructions."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import typer

from longvlm.commands import console
from longvlm.commands.batch_progress import BatchProgress
from longvlm.commands.ending import LEFT_SOMETHING_OUT
from longvlm.errors import LongVLMError
from longvlm.index.video_folders import list_ids, list_videos
from longvlm.training.activitynet import SplitCheck, check_dataset
from longvlm.training.instructions import convert_instructions
from longvlm.whole_files import require_writable, write_whole

NAMES_SHOWN = 10
_SURROGATE = re.compile("[\ud800-\udfff]")  # a byte of a file's name that is no UTF-8

app = typer.Typer(help="Check, list and convert training data.")


@app.callback()
def data() -> None:
    """Check, list and convert training data."""


@app.command()
def check(
    root: Annotated[
        Path,
        typer.Argument(metavar="ROOT", help="The folder that holds datasets/anet, or that folder.", show_default=False),
    ],
    names_only: Annotated[
        bool, typer.Option("--names-only", help="Compare names; don't open the videos (takes no time).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead.")] = False,
) -> None:
    """Compare a folder with ActivityNet's layout and lists.

    Reports per split which videos are present, missing, unreadable or there twice. Ends with status 1 where
    a video or a list is missing or a video can't be read.

    \b
      longvlm data check .
      longvlm data check /data/anet --names-only --json
    """
    with BatchProgress("Looking for videos") as progress:
        if not names_only:
            console.silence_libraries()
        num_threads = min(8, os.cpu_count() or 1)
        checks = check_dataset(root, names_only=names_only, num_threads=num_threads, on_progress=progress.count)
    if as_json:
        print(json.dumps(_describe(root, checks)))
    else:
        _print_table(checks, names_only)
    if not all(check.is_complete for check in checks):
        raise typer.Exit(LEFT_SOMETHING_OUT)


def _describe(root: Path, checks: list[SplitCheck]) -> dict[str, Any]:
    splits = [
        {
            **dataclasses.asdict(check),
            "folder": str(check.folder),
            "list_file": None if check.list_file is None else str(check.list_file),
            "complete": check.is_complete,
        }
        for check in checks
    ]
    whole = {"root": str(root), "complete": all(check.is_complete for check in checks), "splits": splits}
    return _printable(whole)


def _printable(value: Any) -> Any:
    """The same with names that can be encoded."""
    if isinstance(value, dict):
        return {_printable(name): _printable(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_printable(entry) for entry in value]
    return _SURROGATE.sub("�", value) if isinstance(value, str) else value


def _print_table(checks: list[SplitCheck], names_only: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("Split")
    for heading in ("Listed", "Present", "Missing", "Unreadable", "Duplicate", "Repeated", "Unlisted"):
        table.add_column(heading, justify="right")
    for check in checks:
        counts = [
            check.num_listed,
            check.num_listed_present,
            len(check.missing),
            "–" if names_only else len(check.unreadable),
            sum(len(names) - 1 for names in check.duplicates),
            len(check.listed_twice),
            len(check.unlisted),
        ]
        table.add_row(check.split, *map(str, counts))
    screen = Console(highlight=False, markup=False)
    screen.print(table)
    for check in checks:
        for line in _details(check):
            print(console.printable(line))


def _details(check: SplitCheck) -> list[str]:
    """What to know of a split beyond the numbers, a line each."""
    lines = []
    if not check.folder_exists:
        lines.append(f"no folder {check.folder}")
    if check.list_file is None:
        lines.append(f"no list {check.list_name} in {check.folder.parents[check.split.count('/')]}, or above it")
    duplicates = [" = ".join(names) for names in check.duplicates]
    unreadable = [f"{name} ({reason})" for name, reason in check.unreadable.items()]
    for kind, names in (
        ("missing", check.missing),
        ("unreadable", unreadable),
        ("duplicate", duplicates),
        ("listed twice", check.listed_twice),
        ("not listed", check.unlisted if check.list_file else []),
    ):
        lines += [f"{kind}: {name}" for name in names[:NAMES_SHOWN]]
        if len(names) > NAMES_SHOWN:
            lines.append(f"{kind}: {len(names) - NAMES_SHOWN} more (--json has them all)")
    return [f"{check.split}: {line}" for line in lines]


@app.command("list")
def list_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of videos.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write. Default: to stdout.")
    ] = None,
) -> None:
    """Write a list of the videos in a folder.

    One file name a line, sorted; `longvlm extract` takes such a list.

    \b
      longvlm data list datasets/anet/v1-2/val -o video_list_v1_2_val.txt
    """
    if output is not None:
        require_writable(output)
    names = [path.name for path in list_videos(folder)]
    if not names:
        raise LongVLMError(f"There is no video file right in {folder}; give the folder that holds them.")
    for name in names:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise LongVLMError(f"The file name {name!r} can't stand in a list: rename it, without blanks at its ends.")
        if _SURROGATE.search(name):
            raise LongVLMError(
                f"The file name {console.printable(name)} is no UTF-8 and can't stand in a list: rename it."
            )
    content = "".join(f"{name}\n" for name in names).encode()
    if output is None:
        typer.echo(content, nl=False)
        return
    write_whole(output, content)
    console.note(f"wrote {output}: {len(names)} videos.")


@app.command()
def convert(
    instructions: Annotated[
        Path,
        typer.Argument(metavar="INSTRUCTIONS.json", help="Video-ChatGPT's format, or LLaVA's.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="TRAIN.json", help="Where to write.", show_default=False)
    ],
    drop_missing: Annotated[
        list[Path] | None,
        typer.Option(
            "--drop-missing",
            metavar="DIR",
            help="Leave out rows whose video or features are not in DIR or below it. With several, in each of them.",
            show_default=False,
        ),
    ] = None,
    pickle_names: Annotated[
        bool, typer.Option("--pickle-names", help="Name videos ID.pkl, as the reference's loader wants.")
    ] = False,
) -> None:
    """Convert instructions to the training format.

    Every row is checked. In even rows the video comes after the question, in odd rows before it.

    \b
      longvlm data convert VideoInstruct100K.json -o train.json
      longvlm data convert VideoInstruct100K.json -o train.json --drop-missing features
    """
    require_writable(output)
    available = reduce(set.intersection, map(list_ids, drop_missing)) if drop_missing else None
    converted = convert_instructions(instructions, available=available, pickle_names=pickle_names)
    if not converted.rows and converted.num_dropped:
        where = " and in ".join(map(str, drop_missing or []))
        raise LongVLMError(f"No row of {instructions} has its video in {where}.")
    write_whole(output, json.dumps(converted.rows, ensure_ascii=False, indent=1).encode("utf-8", "replace"))
    dropped = f", {converted.num_dropped} were left out since their videos are missing" if available is not None else ""
    console.note(f"wrote {output}: {len(converted.rows)} rows{dropped}.")
