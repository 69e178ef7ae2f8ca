"""The inspect page: what the model sees of a video, as one self-contained HTML file.

It shows the sampled frames by segment and draws on them which patches were merged into which token.
"""

from __future__ import annotations

import base64
import importlib.resources
import io
import math
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import torch
from PIL import Image

from longvlm.errors import LongVLMError
from longvlm.stages.tokens import count_visual_tokens, format_timestamp
from longvlm.stages.video import open_video
from longvlm.video_index import VideoIndex
from longvlm.whole_files import write_whole

PICTURE_SIDE = 256  # pixels; finer than most encoders see, since the page is for people
PICTURE_QUALITY = 72
CANVAS_WIDTH = 320  # pixels, at least
MOST_FRAMES_SHOWN = 400  # about 6 MB of page


def write_page(
    video: str | Path,
    index: VideoIndex,
    model_name: str,
    path: Path,
    *,
    frame_rate: float | None = None,
    allow_references: bool = False,
) -> None:
    """Write the page about `index`; `video` is read once more, for its pictures.

    Raises LongVLMError where the video can't be read or no longer is the one that was encoded.
    """
    shown = choose_segments(index.num_segments, index.compression.frames_per_segment)
    pictures = read_pictures(video, index, shown, frame_rate=frame_rate, allow_references=allow_references)
    # A file's name may hold bytes that are no text; a page must not.
    write_whole(path, render_page(index, pictures, model_name).encode("utf-8", "replace"))


def choose_segments(num_segments: int, frames_per_segment: int) -> list[int]:
    """The segments shown in full: all of them, or as many evenly spread ones as a page can bear."""
    most = max(1, MOST_FRAMES_SHOWN // frames_per_segment)
    if num_segments <= most:
        return list(range(num_segments))
    return [i * num_segments // most for i in range(most)]


def require_readable_twice(video: str | Path, frame_rate: float | None, *, allow_references: bool) -> None:
    """Raise LongVLMError for a live stream, before it is encoded."""
    with open_video(video, fps=frame_rate, allow_references=allow_references) as reader:
        if reader.info.duration_seconds is None:
            raise LongVLMError(
                f"{reader.info.name} is a live stream, which can't be read twice; record a part of it and inspect that."
            )


def read_pictures(
    video: str | Path, index: VideoIndex, shown: list[int], *, frame_rate: float | None, allow_references: bool
) -> dict[int, list[str]]:
    """The distinct frames of the shown segments as JPEG data URIs, fitted as the encoder saw them."""
    wanted = set(shown)
    pictures = {}
    with open_video(video, fps=frame_rate, allow_references=allow_references) as reader:
        if reader.info.fingerprint != index.video.fingerprint:
            raise LongVLMError(f"{reader.info.name} has changed since it was encoded; encode it again.")
        segments = reader.segments(
            index.sampling,
            frames_per_segment=index.compression.frames_per_segment,
            image_size=PICTURE_SIDE,
            fit=index.compression.fit,
        )
        for number, frames in enumerate(segments):
            if number in wanted:
                pictures[number] = [
                    encode_picture(frames.pixels[place]) for place in distinct_places(frames.times_seconds)
                ]
    return pictures


def distinct_places(times_seconds: tuple[float, ...] | list[float]) -> list[int]:
    """The first place of every frame that isn't a repetition, such as those that fill the last segment."""
    return [place for place, time in enumerate(times_seconds) if place == 0 or time != times_seconds[place - 1]]


def encode_picture(pixels: torch.Tensor) -> str:
    """(3, R, R) uint8 to a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=PICTURE_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def render_page(index: VideoIndex, pictures: Mapping[int, list[str]], model_name: str) -> str:
    """The page's HTML; `pictures` holds the data URIs of the segments that are shown in full."""
    page = importlib.resources.files("longvlm.report").joinpath("inspect.html").read_text(encoding="utf-8")
    parts = {
        "title": escape(f"What the model sees of {index.video.name}"),
        "header": _header(index, model_name),
        "timeline": _timeline(index, shown=set(pictures)),
        "segments": "\n".join(_segment(index, number, pictures[number]) for number in sorted(pictures)),
    }
    # one pass, so that nothing inserted is taken for a placeholder
    return re.sub(r"\{\{(\w+)\}\}", lambda placeholder: parts[placeholder[1]], page)


def format_clock(seconds: float) -> str:
    """0:07.35 or 1:02:03.50: to a hundredth, since neighbouring frames may share a tenth of a second."""
    hundredths = round(seconds * 100)
    hours, minutes, rest = hundredths // 360_000, hundredths // 6000 % 60, hundredths % 6000 / 100
    return f"{hours}:{minutes:02}:{rest:05.2f}" if hours else f"{minutes}:{rest:05.2f}"


def grid_side(patches_per_frame: int) -> int:
    """The side of the square of a frame's patches, of which there may be one more ([CLS] kept) or fewer."""
    return round(math.sqrt(patches_per_frame))


def _end_seconds(index: VideoIndex) -> float:
    return index.video.duration_seconds or float(index.segment_spans_seconds[-1, 1])


def _header(index: VideoIndex, model_name: str) -> str:
    video, settings = index.video, index.compression
    local, whole = index.num_segments * settings.tokens_per_segment, settings.global_layers
    frames_known = f"of {video.num_frames:,}" if video.num_frames else ""
    facts = (
        ("Duration", format_clock(_end_seconds(index)), f"{video.width} × {video.height} pixels"),
        ("Frames looked at", f"{index.num_frames:,}", frames_known),
        ("Segments", f"{index.num_segments:,}", f"of {settings.frames_per_segment} frames each"),
        (
            "Patches per segment",
            f"{index.assignment.shape[1]:,}",
            f"merged into {settings.tokens_per_segment:,} tokens",
        ),
        (
            "Tokens the model reads",
            f"{count_visual_tokens(index.num_segments, settings):,}",
            f"{whole} global + {local:,} local",
        ),
    )
    cards = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>" for name, value, more in facts)
    lost = ""
    if index.lost_seconds > 0:
        lost = f"The last {index.lost_seconds:.1f} s of the file are damaged and were left out."
    return f"""<h1>{escape(video.name)}</h1>
<p class="quiet">What the model <b>{escape(model_name)}</b> sees of this video</p>
<dl class="facts">{cards}</dl>
<p class="warning">{lost}</p>
<p>The model doesn’t watch every frame. It looks at <b>{index.num_frames:,} frames</b>, in order,
in <b>segments</b> of {settings.frames_per_segment}. The encoder cuts each frame into small <b>patches</b>;
in each segment, patches that look alike are merged until <b>{settings.tokens_per_segment:,} tokens</b>
are left. Below, patches that ended up in the same token have the same colour.</p>
<details><summary>Settings</summary><table>{_settings(index, model_name)}</table></details>"""


def _settings(index: VideoIndex, model_name: str) -> str:
    sampling, compression = index.sampling, index.compression
    frames = f"{sampling.num_frames} evenly spread" if sampling.fps is None else f"{sampling.fps:g} a second"
    if sampling.max_frames is not None:
        frames += f", at most {sampling.max_frames}"
    end = "the end" if sampling.end_seconds is None else format_clock(sampling.end_seconds)
    schedule = compression.merge_schedule
    rows = {
        "Model": model_name,
        "Encoder": f"{index.encoder_name} ({index.encoder_fingerprint[:12]})",
        "Frames": f"{frames}, from {format_clock(sampling.start_seconds)} to {end}, {sampling.mode}",
        "Fitting": f"{compression.fit}: how a frame is made square for the encoder",
        "Merging": "halving, step by step" if schedule is None else f"by {', '.join(map(str, schedule))}",
        "Order of tokens": "by time" if compression.merge_order == "temporal" else "as merged",
        "Global tokens": f"{compression.global_layers}: one per encoder layer, averaged over the video",
        "Video fingerprint": index.video.fingerprint[:16],
    }
    return "".join(f"<tr><td>{name}</td><td>{escape(value)}</td></tr>" for name, value in rows.items())


def _timeline(index: VideoIndex, *, shown: set[int]) -> str:
    """Blocks for segments, ticks for frames; of very many, only some get a label or a tick."""
    end = _end_seconds(index)
    label_every, tick_every = math.ceil(index.num_segments / 25), math.ceil(len(index.frame_times) / 1000)
    blocks = []
    for number, (start, stop) in enumerate(index.segment_spans_seconds.tolist()):
        place = f"left:{100 * start / end:.3f}%;width:{100 * (stop - start) / end:.3f}%"
        hint = f"Segment {number + 1}, {format_clock(start)} to {format_clock(stop)}"
        target = f'href="#segment-{number + 1}"' if number in shown else 'class="unshown"'
        label = number + 1 if number % label_every == 0 else ""
        blocks.append(f'<a {target} style="{place}" title="{hint}">{label}</a>')
    ticks = [f'<i style="left:{100 * seconds / end:.3f}%"></i>' for seconds in index.frame_times[::tick_every]]
    clock = format_clock if end < 60 else format_timestamp
    marks = [f"<span>{clock(end * quarter / 4)}</span>" for quarter in range(5)]
    some = ""
    if len(shown) < index.num_segments:
        some = (
            f"This page shows {len(shown)} of {index.num_segments:,} segments in full, evenly spread. "
            "To see all of a part, inspect it with --start and --end."
        )
    return f"""<div class="timeline">{"".join(blocks)}{"".join(ticks)}</div>
<div class="axis">{"".join(marks)}</div>
<p class="small quiet">Numbered blocks are segments, small strokes the frames looked at. {some}</p>"""


def _segment(index: VideoIndex, number: int, pictures: list[str]) -> str:
    start, stop = index.segment_spans_seconds[number].tolist()
    times = index.frame_times_seconds[number].tolist()
    assignment, sizes = index.assignment[number], index.sizes[number]
    patches = len(assignment) // len(times)
    repeated = ""
    if len(pictures) < len(times):
        repeated = f" · {len(pictures)} different frames, repeated to fill {len(times)} places"
    packed = base64.b64encode(assignment.numpy().astype("<u2").tobytes()).decode()
    smallest, largest = int(sizes.min()), int(sizes.max())
    return f"""<section class="segment" id="segment-{number + 1}" data-patches="{patches}"
 data-side="{grid_side(patches)}" data-sizes="{" ".join(map(str, sizes.tolist()))}"
 data-assignment="{packed}">
<header><h2>Segment {number + 1}</h2>
<span class="quiet">{format_clock(start)} – {format_clock(stop)}{repeated}</span></header>
<p class="says small quiet">{len(assignment):,} patches became {len(sizes):,} tokens,
of {smallest:,} to {largest:,} patches; a wider part of the bar stands for more of them.</p>
<div class="bar"></div>
<div class="frames">{"".join(_figures(index, times, pictures, grid_side(patches)))}</div>
</section>"""


def _figures(index: VideoIndex, times: list[float], pictures: list[str], side: int) -> Iterator[str]:
    video = index.video
    # squashed frames are stretched back; cropped and padded ones are square, and true as they are
    aspect = video.width / video.height if index.compression.fit.startswith("squash") else 1.0
    cell_width = math.ceil(CANVAS_WIDTH / side)  # whole pixels, so that no seams show between patches
    size = f'width="{side * cell_width}" height="{side * max(1, round(cell_width / aspect))}"'
    for place, picture in zip(distinct_places(times), pictures, strict=True):
        clock = format_clock(times[place])
        yield (
            f'<figure><div class="picture" style="aspect-ratio:{aspect:.4f}">'
            f'<img alt="Frame at {clock}" src="{picture}"><canvas {size} data-frame="{place}"></canvas></div>'
            f"<figcaption>{clock}</figcaption></figure>"
        )
