"""`longvlm study`: the paper's claims, tested with small models on generated videos."""

from __future__ import annotations

import json
import os
from importlib.resources import files
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
    from longvlm import LongVLM
    from longvlm.report.tables import put_table
    from longvlm.study import report
    from longvlm.study.course import Study
    from longvlm.training.checkpointing import naming_what_is_not_written
    from longvlm.whole_files import holding, make_folder

    make_folder(runs)
    make_folder(output)
    with holding(runs), naming_what_is_not_written(runs):
        work = Study(settings, LongVLM.from_pretrained().encoder, runs)
        scores = []
        for row in chosen:
            finished = []
            for seed in range(row.seeds):
                console.note(f"{row.name}, seed {seed}")
                finished.append(work.run(row, seed))
            scores.append(report.score_row(row, finished))
    found = {"rows": report.as_json(scores)}
    with naming_what_is_not_written(output):
        (output / "study.json").write_text(json.dumps(found, indent=1) + "\n")
        plot = output / "study.png"
        report.plot(scores, plot)
        if document is not None:
            image = Path(os.path.relpath(plot, document.parent)).as_posix()
            put_table(document, "study", f"{report.as_markdown(scores)}\n\n![{report.PLOT_TITLE}]({image})")
    print(json.dumps(found) if as_json else report.as_markdown(scores))
