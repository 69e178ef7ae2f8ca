"""Encode one video in one of two ways and print the most memory that this process held, in bytes."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from benchmarks.checkpoints import plain_tower
from benchmarks.comparators import reference_path
from longvlm.pipeline import LongVLM


def main() -> None:
    kind, checkpoint, video, num_frames = sys.argv[1:]
    model = LongVLM.from_pretrained(checkpoint, device="cpu")
    if kind == "longvlm":
        model.encode(video, num_frames=int(num_frames))
    else:
        tower = plain_tower(model, torch.float32)
        del model
        reference_path(tower, Path(video), int(num_frames))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
