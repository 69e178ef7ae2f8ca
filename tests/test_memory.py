"""Peak memory of encoding: the length of a video costs nothing but the index that is made of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from media import write_long_video
from tiny_checkpoint import save_tiny_checkpoint

MINUTES_5, HOURS_2 = 300, 7200

# What the growth may have beyond the index: freed memory that the allocator keeps, and pages of code touched late.
# It is about 1 MiB; the pixels of all the sampled frames, if they were kept, would be 17 MiB.
SLACK_BYTES = 6 << 20
# The timeline: 8 bytes for the time of each frame in the file, several times over while it is sorted.
TIMELINE_BYTES_PER_FRAME = 64
# The builder's list of segments and the joined tensors are there at once for a moment, besides small objects.
COPIES_OF_THE_INDEX = 4

# One program loads everything, and then a copy of it is forked for each encoding. The kernel counts each copy's peak
# from the fork on; getrusage's could be that of the process that started it.
MEASURE = """
import json, os, sys
from pathlib import Path
import av, torch
from longvlm import LongVLM
torch.set_num_threads(1)
model = LongVLM.from_pretrained(sys.argv[1], device="cpu", dtype="float32", compression={"frames_per_segment": 16})
model.encoder
for video, sampling in json.loads(sys.argv[2]):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        continue
    index = model.encode(video, **sampling)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    tensors = [value for value in vars(index).values() if isinstance(value, torch.Tensor)]
    peak, size = int(status["VmHWM"].split()[0]) * 1024, sum(tensor.nbytes for tensor in tensors)
    print(json.dumps({"peak": peak, "index": size, "frames": index.num_frames}), flush=True)
    os._exit(0)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def encode(checkpoint: Path, works: list[tuple[Path, dict[str, float]]]) -> list[dict[str, int]]:
    """For each (video, sampling): peak resident bytes of a process that encodes it, bytes and frames of the index."""
    command = [sys.executable, "-c", MEASURE, str(checkpoint), json.dumps(works, default=str)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return [json.loads(line) for line in output.splitlines()]


def check_growth(checkpoint: Path, folder: Path, video_fps: int, num_frames: int, sampled_fps: float) -> None:
    short, long = (write_long_video(folder / f"{s}.mp4", s, fps=video_fps) for s in (MINUTES_5, HOURS_2))
    samplings: list[dict[str, float]] = [{"num_frames": num_frames}, {"fps": sampled_fps}]
    works = [(video, sampling) for sampling in samplings for video in (short, long)]
    few, as_few, fewer, many = encode(checkpoint, works)
    assert few["frames"] == as_few["frames"] == num_frames
    assert as_few["peak"] <= 1.1 * few["peak"]
    assert (fewer["frames"], many["frames"]) == (MINUTES_5 * sampled_fps, HOURS_2 * sampled_fps)
    timeline_bytes = TIMELINE_BYTES_PER_FRAME * (HOURS_2 - MINUTES_5) * video_fps
    allowed = COPIES_OF_THE_INDEX * (many["index"] - fewer["index"]) + timeline_bytes + SLACK_BYTES
    assert many["peak"] - fewer["peak"] <= allowed


def test_two_hours_take_the_memory_of_five_minutes_and_of_their_index(checkpoint: Path, tmp_path: Path) -> None:
    check_growth(checkpoint, tmp_path, video_fps=1, num_frames=48, sampled_fps=0.25)


@pytest.mark.slow
def test_the_same_with_many_more_frames(checkpoint: Path, tmp_path: Path) -> None:
    check_growth(checkpoint, tmp_path, video_fps=10, num_frames=96, sampled_fps=1)
