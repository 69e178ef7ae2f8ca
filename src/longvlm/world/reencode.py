"""The same video as others would pass it on: another codec and half the size, another frame rate, a logo burnt in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageDraw

from longvlm.errors import LongVLMError

_LOGO_TEXT = "WORLD TV"
_LOGO_HEIGHT = 0.06  # of the picture's height
_LOGO_OPACITY = 0.8


@dataclass(frozen=True)
class Reencoding:
    """How a video is passed on: the codec and its options, `scale` of the sides, `rate` of the frames a second."""

    name: str
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=dict, hash=False)
    scale: float = 1.0
    rate: float = 1.0
    logo: bool = False


_VP9 = Reencoding(
    "VP9, half the size", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "36", "b": "0"}, scale=0.5
)
# qscale is the program's option, not the encoder's.
_MPEG4 = Reencoding("MPEG-4, half the size", "mpeg4", {"qmin": "6", "qmax": "6"}, scale=0.5)
REENCODINGS = (
    _VP9,
    _MPEG4,
    replace(_VP9, name="VP9, half the size, 0.6 of the frame rate", rate=0.6),
    replace(_MPEG4, name="MPEG-4, half the size, a logo burnt in", logo=True),
)


def reencode(source: Path, target: Path, how: Reencoding) -> None:
    """Write `source` to `target` as `how` says. Raises LongVLMError where that can't be done."""
    try:
        with av.open(str(source)) as reader, av.open(str(target), mode="w") as writer:
            old = reader.streams.video[0]
            old_rate = old.average_rate
            if old_rate is None:
                raise LongVLMError(f"{source} states no frame rate, so it can't be written again at another.")
            rate = Fraction(float(old_rate) * how.rate).limit_denominator(1001)
            new = writer.add_stream(how.codec, rate=rate)
            assert isinstance(new, av.VideoStream)
            new.width, new.height = (max(2, 2 * round(side * how.scale / 2)) for side in (old.width, old.height))
            new.pix_fmt = "yuv420p"
            new.options = dict(how.options)
            logo = _draw_logo(new.width, new.height) if how.logo else None
            resize, to_yuv = VideoReformatter(), VideoReformatter()  # setting one up takes longer than converting
            for index, frame in enumerate(_at_rate(reader.decode(old), 1 / old_rate, rate)):
                form = "yuv420p" if logo is None else "rgb24"
                picture = resize.reformat(frame, new.width, new.height, form, interpolation="BICUBIC")
                if logo is not None:
                    pixels = _burn_in(picture.to_ndarray(), logo)
                    picture = to_yuv.reformat(av.VideoFrame.from_ndarray(pixels, "rgb24"), format="yuv420p")
                picture.pts, picture.time_base = index, 1 / rate
                writer.mux(new.encode(picture))
            writer.mux(new.encode(None))
    except (av.error.FFmpegError, ValueError) as error:
        raise LongVLMError(f"Cannot write {target} with codec {how.codec}: {error}.") from error


def _at_rate(frames: Iterator[av.VideoFrame], seconds_each: Fraction, rate: Fraction) -> Iterator[av.VideoFrame]:
    """At every tick of the new rate, the frame that is on screen then; each stays for `seconds_each`."""
    wanted, shown = 0, None
    for frame in frames:
        while shown is not None and float(wanted / rate) < frame.time - 1e-9:
            yield shown
            wanted += 1
        shown = frame
    if shown is not None and float(wanted / rate) < shown.time + float(seconds_each) - 1e-9:
        yield shown


def _draw_logo(width: int, height: int) -> np.ndarray:
    """A text in the upper right corner, (H, W) from 0 to 1."""
    canvas = Image.new("L", (width, height))
    size = max(7, round(_LOGO_HEIGHT * height))
    ImageDraw.Draw(canvas).text((width - size // 2, size // 2), _LOGO_TEXT, fill=255, anchor="ra", font_size=size)
    return np.asarray(canvas, dtype=np.float32) / 255


def _burn_in(pixels: np.ndarray, logo: np.ndarray) -> np.ndarray:
    cover = _LOGO_OPACITY * logo[..., None]
    return (pixels + cover * (255 - pixels)).astype(np.uint8)
