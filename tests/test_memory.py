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

# What the growth may have beyond the index: freed memory that the allocator keeps, 40 bytes for each frame's time
# in the timeline, pages of code first touched late. The same work measured twice differs by 1 to 2 MiB.
SLACK_BYTES = 8 << 20
# The builder's list of segments and the joined tensors are there at once for a moment, besides small objects.
COPIES_OF_THE_INDEX = 4

# The peak is the kernel's for this program alone; getrusage's can be that of the process that started it.
MEASURE = """
import json, sys
from pathlib import Path
import torch
from longvlm import LongVLM
torch.set_num_threads(1)
model = LongVLM.from_pretrained(sys.argv[1], device="cpu", compression={"frames_per_segment": 16})
index = model.encode(sys.argv[2], **json.loads(sys.argv[3]))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
tensors = [value for value in vars(index).values() if isinstance(value, torch.Tensor)]
print(json.dumps({
    "peak": int(status["VmHWM"].split()[0]) * 1024,
    "index": sum(tensor.nbytes for tensor in tensors),
    "frames": index.num_frames,
}))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def encode(checkpoint: Path, video: Path, **sampling: float) -> dict[str, int]:
    """Peak resident bytes of a process that encodes `video`, bytes of the index, and frames in it."""
    command = [sys.executable, "-c", MEASURE, str(checkpoint), str(video), json.dumps(sampling)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def check_growth(checkpoint: Path, folder: Path, video_fps: int, num_frames: int, sampled_fps: float) -> None:
    short, long = (write_long_video(folder / f"{s}.mp4", s, fps=video_fps) for s in (MINUTES_5, HOURS_2))
    few, as_few = (encode(checkpoint, video, num_frames=num_frames) for video in (short, long))
    assert few["frames"] == as_few["frames"] == num_frames
    assert as_few["peak"] <= 1.1 * few["peak"]
    fewer, many = (encode(checkpoint, video, fps=sampled_fps) for video in (short, long))
    assert (fewer["frames"], many["frames"]) == (MINUTES_5 * sampled_fps, HOURS_2 * sampled_fps)
    print(few, as_few, fewer, many)
    allowed = COPIES_OF_THE_INDEX * (many["index"] - fewer["index"]) + SLACK_BYTES
    assert many["peak"] - fewer["peak"] <= allowed


def test_two_hours_take_the_memory_of_five_minutes_and_of_their_index(checkpoint: Path, tmp_path: Path) -> None:
    check_growth(checkpoint, tmp_path, video_fps=1, num_frames=48, sampled_fps=0.25)


@pytest.mark.slow
def test_the_same_at_a_usual_frame_rate(checkpoint: Path, tmp_path: Path) -> None:
    check_growth(checkpoint, tmp_path, video_fps=25, num_frames=96, sampled_fps=2)
