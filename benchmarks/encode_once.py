"""Encode one video in one of two ways and print, as JSON, the seconds and the most memory that this process held."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.comparators import plain_tower, reference_path
from longvlm.commands.ask import measure_peak_memory
from longvlm.heap import keep_one_heap
from longvlm.pipeline import LongVLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["longvlm", "reference"])
    parser.add_argument("video", type=Path)
    parser.add_argument("num_frames", type=int)
    parser.add_argument("--checkpoint", type=Path, help="without one, the bundled model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames-per-segment", type=int, help="frames that are merged together")
    arguments = parser.parse_args()
    changes = {} if arguments.frames_per_segment is None else {"frames_per_segment": arguments.frames_per_segment}
    model = LongVLM.from_pretrained(arguments.checkpoint, device=arguments.device, compression=changes or None)
    if arguments.kind == "longvlm":
        keep_one_heap()  # as the commands do
        _ = model.encoder  # reads the weights
        run: Callable[[], object] = partial(model.encode, arguments.video, num_frames=arguments.num_frames)
    else:
        run = partial(
            reference_path, plain_tower(model, torch.float32).to(model.device), arguments.video, arguments.num_frames
        )
        del model
    began = time.perf_counter()
    run()
    print(json.dumps({"seconds": time.perf_counter() - began, "bytes": measure_peak_memory()}))


if __name__ == "__main__":
    main()
