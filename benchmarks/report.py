"""The results as JSON, and as tables between the markers of README.md and docs/performance.md."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import ROOT
from benchmarks.rows import Row
from longvlm.report.tables import put_table

RESULTS = ROOT / "benchmarks" / "results"


def describe_machine(device: str) -> dict[str, Any]:
    processor = next(
        (line.split(":")[1].strip() for line in _read(Path("/proc/cpuinfo")).splitlines() if "model name" in line),
        platform.processor(),
    )
    described = {"processor": processor, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if device != "cpu":
        described["accelerator"] = torch.cuda.get_device_name(device)
    return described


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def keep(group: str, rows: Sequence[Row], device: str) -> None:
    """Write a group's rows beside the other groups' of the same device."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{torch.device(device).type}.json"
    results = json.loads(_read(path) or "{}")
    results[group] = {
        "date": date.today().isoformat(),
        "machine": describe_machine(device),
        "rows": [{**asdict(row), "holds": row.holds} for row in rows],
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


def table(device: str) -> list[str]:
    """All rows that were ever kept for this kind of device, as lines of markdown."""
    lines = ["| what | against | reached | target | n |", "|---|---|---:|---:|---:|"]
    results = json.loads(_read(RESULTS / f"{torch.device(device).type}.json") or "{}")
    for group in results.values():
        for kept in group["rows"]:
            row = Row(**{name: value for name, value in kept.items() if name != "holds"})
            mark = {True: "✓ ", False: "✗ ", None: ""}[row.holds]
            medians = " / ".join(_show(name, values) for name, values in row.measured.items())
            reached = f"{mark}{row.reached:.3g} {row.unit}" + ("" if row.unit == "s" else f" ({medians})")
            bound = "at most" if row.is_limit else "at least"
            asked = "—" if row.asked is None else f"{bound} {row.asked:g} {row.unit}"
            runs = max(map(len, row.measured.values()))
            lines.append(f"| {row.what} | {row.against} | {reached} | {asked} | {runs} |")
    return lines


def _show(name: str, values: Sequence[float]) -> str:
    median = statistics.median(values)
    return f"{median / 2**30:.2f} GiB" if name.endswith("(bytes)") else f"{median:.3g} s"


def write_tables() -> None:
    """Into the documents, which tell of processors alone."""
    for document in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        put_table(document, "benchmarks", "\n".join(table("cpu")))
