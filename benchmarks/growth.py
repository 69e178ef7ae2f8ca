"""How time and memory grow with a video's duration, with frames, segments, tokens and prompts at once, as plots.

Every point of the encoding is a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.checkpoints import make_checkpoint
from benchmarks.measuring import ROOT, run_alone, take_turns
from benchmarks.report import RESULTS, describe_machine
from benchmarks.videos import make_long_video
from longvlm.pipeline import LongVLM

matplotlib.use("Agg")
from matplotlib import pyplot

MINUTES = (5, 15, 60, 120, 240)  # at 100 frames
FRAMES = (50, 200, 800, 3600)  # of two hours
SEGMENTS = (1, 2, 4, 10, 20)  # of the same 20 frames, through CLIP-L
TOKENS = (128, 512, 2048, 8192)  # through the 1B-shaped language model
PAPER_TOKENS = 305
PROMPTS = (1, 2, 4, 8)  # at once, of the paper's tokens
PLOT = ROOT / "docs" / "growth.png"


@dataclass(frozen=True)
class Point:
    """Medians over the repeats: `seconds` and `bytes` at `value` of what the axis counts."""

    axis: str
    value: float
    seconds: float
    bytes: float


def encoding_points(folder: Path, repeats: int) -> Iterator[Point]:
    """The bundled model, whose encoder is small, so that reading the video shows; then CLIP's size, by segments."""
    two_hours, checkpoint = make_long_video(folder, 120), make_checkpoint(folder)
    runs: list[tuple[str, int, Path, int, tuple[str, ...]]]
    runs = [("minutes of video", m, make_long_video(folder, m), 100, ()) for m in MINUTES]
    runs += [("frames", n, two_hours, n, ()) for n in FRAMES]
    clip = ("--checkpoint", str(checkpoint), "--frames-per-segment")
    five_minutes, frames = make_long_video(folder, 5), max(SEGMENTS)
    runs += [("segments, CLIP-L, 20 frames", n, five_minutes, frames, (*clip, str(frames // n))) for n in SEGMENTS]
    for axis, value, video, num_frames, more in track(runs, "Encoding", console=Console(stderr=True)):
        command = ("benchmarks.encode_once", "longvlm", str(video), str(num_frames), *more)
        measured = [run_alone(*command) for _ in range(repeats)]
        yield Point(axis, value, *(statistics.median(run[key] for run in measured) for key in ("seconds", "bytes")))


@torch.inference_mode()
def prefill_points(folder: Path, repeats: int) -> Iterator[Point]:
    """Time of a prefill, and what its KV cache takes."""
    model = LongVLM.from_pretrained(make_checkpoint(folder), device="cpu")
    language_model = model.language_model.model.language_model

    def prefill(prompts: int, tokens: int) -> int:
        embeddings = torch.randn(prompts, tokens, language_model.config.hidden_size, dtype=model.dtype)
        cache = language_model(inputs_embeds=embeddings, use_cache=True).past_key_values
        return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))

    runs = [("tokens of a prompt, 1B-shaped", n, (1, n)) for n in TOKENS]
    runs += [(f"prompts of {PAPER_TOKENS} tokens at once", n, (n, PAPER_TOKENS)) for n in PROMPTS]
    kept = [prefill(*shape) for _, _, shape in runs]
    turns = {f"{axis}: {value}": partial(prefill, *shape) for axis, value, shape in runs}
    seconds = take_turns(turns, repeats, warm_up=False)
    for (axis, value, _), times, cache_bytes in zip(runs, seconds.values(), kept, strict=True):
        yield Point(axis, value, statistics.median(times), cache_bytes)


def draw(points: list[Point], path: Path) -> None:
    axes_names = list(dict.fromkeys(point.axis for point in points))
    figure, axes = pyplot.subplots(2, len(axes_names), figsize=(4 * len(axes_names), 6), layout="constrained")
    for column, name in enumerate(axes_names):
        of_axis = [point for point in points if point.axis == name]
        values = [point.value for point in of_axis]
        memory = "KV cache, MiB" if "prompt" in name else "peak memory, MiB"
        for row, (heights, label) in enumerate(
            (([p.seconds for p in of_axis], "seconds"), ([p.bytes / 2**20 for p in of_axis], memory))
        ):
            panel = axes[row, column]
            panel.plot(values, heights, "o-", color="#2a6f97")
            panel.set(xlabel=name, ylabel=label, xlim=(0, None), ylim=(0, 1.1 * max(heights)))
            panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"), help="videos and checkpoints (10 GB)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of every point")
    arguments = parser.parse_args()
    folder, repeats = arguments.folder.absolute(), arguments.repeats
    points = [*encoding_points(folder, repeats), *prefill_points(folder, repeats)]
    described = {"machine": describe_machine("cpu"), "repeats": repeats, "points": [asdict(p) for p in points]}
    (RESULTS / "growth.json").write_text(json.dumps(described, indent=1) + "\n")
    draw(points, PLOT)


if __name__ == "__main__":
    main()
