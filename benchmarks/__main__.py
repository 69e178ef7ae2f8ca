"""Measure the rows, keep them in benchmarks/results, and bring the tables of the documents up to date."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.accelerator import accelerator_rows
from benchmarks.report import keep, table, write_tables
from benchmarks.rows import ROWS as SHARED_ROWS
from benchmarks.rows import Bench

ROWS = {**SHARED_ROWS, "accelerator": accelerator_rows}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help=f"of {', '.join(ROWS)}; without any, all of them, the last one with --device cuda alone",
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of each thing that is compared")
    parser.add_argument("--device", default="cpu", help="where models run: cpu or cuda")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"), help="videos, checkpoints (20 GB)")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"unknown row {sorted(unknown)[0]}; choose from {', '.join(ROWS)}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.folder.absolute(), arguments.repeats, arguments.device)
    for name in arguments.rows or (SHARED_ROWS if arguments.device == "cpu" else ROWS):
        keep(name, list(ROWS[name](bench)), arguments.device)
        if arguments.device == "cpu":
            write_tables()
    Console().print(Markdown("\n".join(table(arguments.device))))


if __name__ == "__main__":
    main()
