"""The inspect page: what the model sees of a video, as one self-contained HTML file.

It shows the sampled frames by segment and draws on them which patches were merged into which token.
"""

from __future__ import annotations

import base64
import importlib.resources
import io
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from longvlm.errors import LongVLMError
from longvlm.stages.tokens import count_visual_tokens
from longvlm.stages.video import open_video
from longvlm.video_index import VideoIndex

PICTURE_SIDE = 256  # pixels; finer than most encoders see, since the page is for people
PICTURE_QUALITY = 72
MOST_FRAMES_SHOWN = 400  # about 6 MB of page


def write_page(
    video: str | Path, index: VideoIndex, model_name: str, path: Path, *, allow_references: bool = False
) -> None:
    """Write the page about `index`; `video` is read once more, for its pictures.

    Raises LongVLMError where the video can't be read or no longer is the one that was encoded.
    """
    shown = choose_segments(index.num_segments, index.compression.frames_per_segment)
    pictures = read_pictures(video, index, shown, allow_references=allow_references)
    path.write_text(render_page(index, pictures, model_name), encoding="utf-8")


def choose_segments(num_segments: int, frames_per_segment: int) -> list[int]:
    """The segments shown in full: all of them, or as many evenly spread ones as a page can bear."""
    most = max(1, MOST_FRAMES_SHOWN // frames_per_segment)
    if num_segments <= most:
        return list(range(num_segments))
    return [i * num_segments // most for i in range(most)]


def read_pictures(
    video: str | Path, index: VideoIndex, shown: list[int], *, allow_references: bool
) -> dict[int, list[str]]:
    """The distinct frames of the shown segments as JPEG data URIs, fitted as the encoder saw them."""
    wanted = set(shown)
    pictures = {}
    with open_video(video, allow_references=allow_references) as reader:
        if reader.info.duration_seconds is None:
            raise LongVLMError(
                f"{video} is a live stream, which can't be read twice; record a part of it and inspect that."
            )
        if reader.info.fingerprint != index.video.fingerprint:
            raise LongVLMError(f"{video} has changed since it was encoded; encode it again.")
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
    """The first place of every frame that is not a repetition (a short last segment is filled up with those)."""
    return [
        place for place, time in enumerate(times_seconds) if place == 0 or time != times_seconds[place - 1]
    ]


def encode_picture(pixels: torch.Tensor) -> str:
    """(3, R, R) uint8 to a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(
        buffer, "JPEG", quality=PICTURE_QUALITY, optimize=True
    )
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def render_page(index: VideoIndex, pictures: Mapping[int, list[str]], model_name: str) -> str:
    """The page's HTML; `pictures` holds the data URIs of the segments that are shown in full."""
    template = (
        importlib.resources.files("longvlm.report").joinpath("inspect.html").read_text(encoding="utf-8")
    )
    parts = [
        _header(index, model_name),
        _timeline(index, shown=set(pictures)),
        _controls(index),
        *(_segment(index, number, pictures[number]) for number in sorted(pictures)),
    ]
    return template.replace("{{title}}", escape(f"What the model sees of {index.video.name}")).replace(
        "{{body}}", "\n".join(parts)
    )


def format_clock(seconds: float) -> str:
    """0:07.35, 12:05.00, 1:02:03.50: to a hundredth, since neighbouring frames may share a tenth of a second."""
    hundredths = round(seconds * 100)
    hours, minutes, rest = hundredths // 360_000, hundredths // 6000 % 60, hundredths % 6000 / 100
    return f"{hours}:{minutes:02}:{rest:05.2f}" if hours else f"{minutes}:{rest:05.2f}"


def grid_side(patches_per_frame: int) -> int:
    """The side of the square that a frame's patches form; one more ([CLS] kept) or less (first dropped) may be given."""
    return round(math.sqrt(patches_per_frame))


def _end_seconds(index: VideoIndex) -> float:
    return index.video.duration_seconds or float(index.segment_spans_seconds[-1, 1])


def _header(index: VideoIndex, model_name: str) -> str:
    video, settings = index.video, index.compression
    local, whole = index.num_segments * settings.tokens_per_segment, index.segment_globals.shape[1]
    patches = index.assignment.shape[1]
    facts = [
        ("Duration", format_clock(_end_seconds(index)), f"{video.width} × {video.height} pixels"),
        (
            "Frames looked at",
            f"{index.num_frames}",
            "" if not video.num_frames else f"of {video.num_frames:,}",
        ),
        ("Segments", f"{index.num_segments}", f"of {settings.frames_per_segment} frames each"),
        ("Patches per segment", f"{patches:,}", f"merged into {settings.tokens_per_segment} tokens"),
        (
            "Tokens the model reads",
            f"{count_visual_tokens(index.num_segments, settings):,}",
            f"{whole} global + {local:,} local",
        ),
    ]
    cards = "".join(
        f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in facts
    )
    lost = (
        f'<p class="warning">The last {index.lost_seconds:.1f} s of the file are damaged and were left out.</p>'
        if index.lost_seconds
        else ""
    )
    return f"""<h1>{escape(video.name)}</h1>
<p class="quiet">What the model <b>{escape(model_name)}</b> sees of this video</p>
<dl class="facts">{cards}</dl>{lost}
<p>The model doesn’t watch every frame. It looks at <b>{index.num_frames} frames</b>, in order, in <b>segments</b> of
{settings.frames_per_segment}. The encoder cuts each frame into small <b>patches</b>; in each segment, patches that look alike
are merged until <b>{settings.tokens_per_segment} tokens</b> are left. Below, patches that ended up in the same token have the
same colour.</p>
{_settings(index, model_name)}"""


def _settings(index: VideoIndex, model_name: str) -> str:
    sampling, compression = index.sampling, index.compression
    frames = f"{sampling.num_frames} evenly spread" if sampling.fps is None else f"{sampling.fps:g} a second"
    if sampling.max_frames is not None:
        frames += f", at most {sampling.max_frames}"
    end = "the end" if sampling.end_seconds is None else format_clock(sampling.end_seconds)
    rows = {
        "Model": model_name,
        "Encoder": f"{index.encoder_name} ({index.encoder_fingerprint[:12]})",
        "Frames": f"{frames}, from {format_clock(sampling.start_seconds)} to {end}, {sampling.mode}",
        "Fitting": f"{compression.fit}: how a frame is made square for the encoder",
        "Merging": "halving"
        if compression.merge_schedule is None
        else f"by {', '.join(map(str, compression.merge_schedule))}",
        "Order of tokens": "by time" if compression.merge_order == "temporal" else "as merged",
        "Global tokens": f"{index.segment_globals.shape[1]}, one per encoder layer, averaged over the whole video",
        "Video fingerprint": index.video.fingerprint[:16],
    }
    table = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows.items()
    )
    return f"<details><summary>Settings</summary><table>{table}</table></details>"


def _timeline(index: VideoIndex, *, shown: set[int]) -> str:
    end = _end_seconds(index)
    # the page is to stay light even for thousands of segments: fewer labels, then fewer ticks
    label_every = math.ceil(index.num_segments / 25)
    blocks = []
    for number, (start, stop) in enumerate(index.segment_spans_seconds.tolist()):
        place = f'style="left:{100 * start / end:.3f}%;width:{100 * (stop - start) / end:.3f}%"'
        label = f"{number + 1}" if number % label_every == 0 else ""
        hint = f"Segment {number + 1}, {format_clock(start)} to {format_clock(stop)}"
        target = f'href="#segment-{number + 1}"' if number in shown else 'class="unshown"'
        blocks.append(f'<a {target} {place} title="{hint}">{label}</a>')
    ticks = [
        f'<i style="left:{100 * time / end:.3f}%"></i>'
        for time in index.frame_times[:: math.ceil(index.num_frames / 1000)]
    ]
    marks = "".join(f"<span>{format_clock(end * quarter / 4)}</span>" for quarter in range(5))
    note = (
        f'<p class="small">This page shows {len(shown)} of {index.num_segments} segments in full, evenly spread. '
        "To see all of a part, inspect it with --start and --end.</p>"
        if len(shown) < index.num_segments
        else ""
    )
    return f"""<div class="timeline">{"".join(blocks)}{"".join(ticks)}</div>
<div class="axis">{marks}</div>
<p class="small quiet">Numbered blocks are segments, small strokes the frames that were looked at.</p>{note}"""


def _controls(index: VideoIndex) -> str:
    return """<div class="controls">
<label>Colours <input id="tint" type="range" min="0" max="100" value="55" aria-label="Strength of the colours on the frames"></label>
<span class="small quiet">Point at a patch or at the bar above the frames to see all that its token stands for; click to keep it.</span>
</div>"""


def _segment(index: VideoIndex, number: int, pictures: list[str]) -> str:
    start, stop = index.segment_spans_seconds[number].tolist()
    times = index.frame_times_seconds[number].tolist()
    assignment, sizes = index.assignment[number], index.sizes[number]
    patches_per_frame = len(assignment) // len(times)
    side = grid_side(patches_per_frame)
    video, fit = index.video, index.compression.fit
    # squashed frames are stretched back; cropped and padded ones are square and true as they are
    aspect = video.width / video.height if fit.startswith("squash") else 1.0
    cell_width = math.ceil(320 / side)  # whole pixels, so that no seams show between patches
    canvas_size = f'width="{side * cell_width}" height="{side * max(1, round(cell_width / aspect))}"'
    figures = []
    for place, picture in zip(distinct_places(times), pictures, strict=True):
        clock = format_clock(times[place])
        figures.append(
            f'<figure><div class="picture" style="aspect-ratio:{aspect:.4f}"><img alt="Frame at {clock}" src="{picture}">'
            f'<canvas {canvas_size} data-frame="{place}"></canvas></div><figcaption>{clock}</figcaption></figure>'
        )
    repeated = (
        ""
        if len(pictures) == len(times)
        else f" · {len(pictures)} frames, repeated to fill {len(times)} places"
    )
    packed = base64.b64encode(assignment.numpy().astype(np.dtype("<u2")).tobytes()).decode()
    return f"""<section class="segment" id="segment-{number + 1}" data-patches="{patches_per_frame}" data-side="{side}"
 data-sizes="{" ".join(map(str, sizes.tolist()))}" data-assignment="{packed}">
<header><h2>Segment {number + 1}</h2><span class="quiet">{format_clock(start)} – {format_clock(stop)}{repeated}</span></header>
<p class="says small quiet">{len(assignment):,} patches became {len(sizes)} tokens, of {int(sizes.min()):,} to {int(sizes.max()):,} patches;
a wider part of the bar stands for more of them.</p>
<div class="bar"></div>
<div class="frames">{"".join(figures)}</div>
</section>"""
