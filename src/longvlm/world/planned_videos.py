"""The videos of an evaluation: planned by a seed, drawn as files, encoded; and kept as indexes, if that is wanted."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import re
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from longvlm.errors import LongVLMError
from longvlm.parent_process import end_with_parent
from longvlm.world.reencode import REENCODINGS, Reencoding, reencode
from longvlm.world.render import render_frame
from longvlm.world.scene import MIN_DURATION_SECONDS, make_scene
from longvlm.world.video import H264_OPTIONS, write_video

if TYPE_CHECKING:
    from longvlm.pipeline import LongVLM
    from longvlm.video_index import VideoIndex

EVALUATION_SEEDS = 10**9  # scenes are evaluated with seeds from here on; training stays below
SIZES = ((320, 240), (384, 216), (256, 256), (240, 320), (216, 384))
FRAMES_PER_SECOND = (10, 12, 15, 20, 24, 25)
ENCODED_FPS = 1.0


@dataclass(frozen=True)
class VideoPlan:
    """One video of an evaluation, before it is drawn."""

    seed: int
    duration_seconds: float
    width: int
    height: int
    fps: int
    reencoding: Reencoding | None = None  # in which the file is passed on; the same is asked about that one, too


def plan_videos(count: int, *, seed: int, min_seconds: float, max_seconds: float) -> list[VideoPlan]:
    """The videos of an evaluation: log-uniform durations, mixed sizes, 10 to 25 frames per second."""
    if count < 1:
        raise LongVLMError(f"The number of videos is {count}; it must be at least 1.")
    if not MIN_DURATION_SECONDS <= min_seconds <= max_seconds < float("inf"):
        raise LongVLMError(
            f"Durations from {min_seconds:g} to {max_seconds:g} s are not possible; "
            f"give MIN:MAX in seconds with {MIN_DURATION_SECONDS:g} <= MIN <= MAX."
        )
    rng = random.Random(f"longvlm evaluation {seed}")
    plans = []
    for i in range(count):
        duration = round(min_seconds * (max_seconds / min_seconds) ** rng.random(), 2)
        (width, height), fps = rng.choice(SIZES), rng.choice(FRAMES_PER_SECOND)
        plans.append(VideoPlan(EVALUATION_SEEDS + 10_000 * seed + i, duration, width, height, fps))
    return plans


def reencode_in_turns(plans: Sequence[VideoPlan]) -> list[VideoPlan]:
    """The same videos, passed on in each of REENCODINGS by turns."""
    return [replace(plan, reencoding=how) for plan, how in zip(plans, cycle(REENCODINGS), strict=False)]


def encode_planned(model: LongVLM, plans: Sequence[VideoPlan], kept: Path | None) -> Iterator[list[VideoIndex]]:
    """The plans' videos, each followed by the one that was passed on if there is any; `kept`: see `evaluate`."""
    known = [[] if kept is None else _index_paths(plan, kept) for plan in plans]
    found = [bool(paths) and all(path.is_file() for path in paths) for paths in known]
    with closing(_rendered([plan for plan, is_there in zip(plans, found, strict=True) if not is_there])) as rendered:
        for paths, is_there in zip(known, found, strict=True):
            if is_there:
                yield [_load_kept(path, model) for path in paths]
                continue
            indexes = [model.encode(file, fps=ENCODED_FPS) for file in next(rendered)]
            for path, index in zip(paths, indexes, strict=False):  # no paths where nothing is kept
                index.save(path)
            yield indexes


def _load_kept(path: Path, model: LongVLM) -> VideoIndex:
    from longvlm.video_index import VideoIndex

    index = VideoIndex.load(path)
    try:
        index.require_same_encoding(model.encoder.name, model.encoder.fingerprint, model.compression)
    except LongVLMError as error:
        raise LongVLMError(f"{path} can't be used: {error} Or choose another folder for the indexes.") from error
    found, wanted = (str(one).removeprefix("torch.") for one in (index.local_features.dtype, model.encoder.tower.dtype))
    if found != wanted:
        raise LongVLMError(
            f"{path} was encoded in {found}, and the model computes in {wanted}; choose --dtype {found}, or another "
            "folder for the indexes."
        )
    return index


def _index_paths(plan: VideoPlan, folder: Path) -> list[Path]:
    """Where the index of a plan's video is kept, and of the one that is passed on if there is any. The names tell what
    was drawn, and how it was passed on, so that another version of the world has its own.
    """
    scene = make_scene(plan.seed, plan.duration_seconds)
    sample = render_frame(
        scene, scene.events[0].start_seconds + 1, 32, 32
    )  # small, but all that draws has a part in it
    name = f"{plan.seed}-{plan.duration_seconds}s-{plan.width}x{plan.height}-{plan.fps}fps"
    name += f"-{_digest(repr((scene, H264_OPTIONS)).encode() + sample.tobytes())}"
    passed_on = []
    if (how := plan.reencoding) is not None:
        passed_on = [re.sub(r"[^\w.]+", "-", f"{name} {how.name} {_digest(repr(how).encode())}")]
    return [folder / f"{stem}.longvlm" for stem in (name, *passed_on)]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _rendered(plans: Sequence[VideoPlan]) -> Generator[list[Path], None, None]:
    """The plans' files, video by video, drawn a few ahead by other processes and deleted after use."""
    workers = min(os.cpu_count() or 1, len(plans))
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in an unknown state
    with (
        tempfile.TemporaryDirectory(prefix="longvlm-world-") as folder,
        ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool,
    ):
        pending: deque[Future[list[Path]]] = deque()
        waiting = iter(enumerate(plans))
        while True:
            while len(pending) <= workers and (following := next(waiting, None)):
                number, plan = following
                pending.append(pool.submit(render_plan, plan, Path(folder) / f"{number:05}.mp4"))
            if not pending:
                return
            paths = pending.popleft().result()
            yield paths
            for path in paths:
                path.unlink()


def render_plan(plan: VideoPlan, path: Path) -> list[Path]:
    """Write one planned video, and after it the one that is passed on if there is any; a function of its own, so that
    another process can run it."""
    scene = make_scene(plan.seed, plan.duration_seconds)
    write_video(scene, path, width=plan.width, height=plan.height, fps=plan.fps, threads=1, show_progress=False)
    if plan.reencoding is None:
        return [path]
    passed_on = path.with_suffix(".mkv")
    reencode(path, passed_on, plan.reencoding)
    return [path, passed_on]
