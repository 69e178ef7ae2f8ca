"""`longvlm study`: the paper's claims, tested with small models on generated videos."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from importlib.resources import files
from itertools import starmap
from pathlib import Path

from longvlm.commands import console
from longvlm.errors import LongVLMError
from longvlm.heap import keep_one_heap


def study(recipe: Path | None, rows: list[str], runs: Path, output: Path, document: Path | None, as_json: bool) -> None:
    if rows and document is not None:
        raise LongVLMError("--document gets the table of all rows, and --row asks for some; leave one of them out.")
    keep_one_heap()
    console.silence_libraries()
    from longvlm.study.rows import choose_rows, load_study
    from longvlm.world.lengths import require_matplotlib

    settings = load_study(recipe or Path(str(files("longvlm.study") / "study.yaml")))
    chosen = choose_rows(settings, rows)
    require_matplotlib()
    from rich.console import Console
    from rich.progress import track

    from longvlm import LongVLM
    from longvlm.report.tables import put_table, require_place
    from longvlm.study import report
    from longvlm.study.course import Run, Study
    from longvlm.study.side_by_side import run_side_by_side
    from longvlm.training.checkpointing import naming_what_is_not_written
    from longvlm.whole_files import locked, make_folder, write_whole

    if document is not None:
        require_place(document, "study")
    make_folder(runs)
    make_folder(output)
    with locked(runs), naming_what_is_not_written(runs):
        for abandoned in runs.glob(".saving-*"):  # by a killed process; none is at work beside this one yet
            shutil.rmtree(abandoned)
        work = Study(settings, LongVLM.from_pretrained().encoder, runs)
        console.note("what all rows start from")
        work.start()
        runs_by_row: dict[str, list[Run]] = {row.name: [] for row in chosen}
        wanted = [(row, seed) for row in chosen for seed in range(row.seeds)]
        finishing: Iterable[Run] = starmap(work.run, wanted)
        if settings.threads > 1:
            bar = Console(stderr=True)
            finishing = track(
                run_side_by_side(settings, runs, wanted), "rows", len(wanted), console=bar, transient=True
            )
        for run in finishing:
            right = sum(answer.is_right for answer in run.answers) / len(run.answers)
            console.note(f"{run.row}, seed {run.seed}: {right:.1%} right")
            runs_by_row[run.row].append(run)
    scores = report.score_rows([(row, runs_by_row[row.name]) for row in chosen])
    found = {"settings": json.loads((runs / "settings.json").read_text()), "rows": report.as_json(scores)}
    with naming_what_is_not_written(output):
        write_whole(output / "study.json", f"{json.dumps(found, indent=1)}\n".encode())
        plot = output / "study.png"
        report.plot(scores, plot)
        if document is not None:
            image = Path(os.path.relpath(plot, document.parent)).as_posix()
            put_table(document, "study", f"{report.as_markdown(scores)}\n\n![{report.PLOT_TITLE}]({image})")
    if as_json:
        print(json.dumps(found))
        return
    for table in report.tabulate(scores):
        Console().print(table.as_rich())
