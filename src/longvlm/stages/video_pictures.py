"""Videos that need no decoder: folders and lists of images, and arrays in memory, at a stated frame rate."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from longvlm.errors import LongVLMError
from longvlm.stages.video_access import kind_of_path, naming_errors_of, printable
from longvlm.stages.video_fingerprint import fingerprint_files
from longvlm.types import VideoInfo

_Prepared = TypeVar("_Prepared")

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"))
# What Pillow may take such a file for; left to itself it would try formats that start other programs, as EPS does.
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")


class PictureSource(ABC):
    """Pictures at equal distances in time, each a keyframe. Subclasses say where the pictures come from."""

    lost_seconds = 0.0
    pixel_aspect = Fraction(1)

    def __init__(self, name: str, num_frames: int, fingerprint: str, fps: float) -> None:
        if not 0 < fps < float("inf"):
            raise LongVLMError(f"The frame rate of {name} is {fps}; it must be a positive number of frames a second.")
        self.times_seconds = np.arange(num_frames) / fps
        self.keyframe_positions = np.arange(num_frames)
        height, width = self._picture(0).shape[:2]
        self.info = VideoInfo(
            name=name,
            width=width,
            height=height,
            duration_seconds=num_frames / fps,
            num_frames=num_frames,
            average_fps=fps,
            fingerprint=fingerprint,
        )

    @abstractmethod
    def _picture(self, position: int) -> np.ndarray:
        """The picture at this position, (H, W, 3) uint8 RGB."""

    def read(
        self, positions: Sequence[int], prepare: Callable[[np.ndarray], _Prepared]
    ) -> Iterator[tuple[float, _Prepared]]:
        """Yield (time in seconds, what `prepare` makes of the RGB picture (H, W, 3) uint8) for each position."""
        for position in positions:
            yield float(self.times_seconds[position]), prepare(self._picture(position))

    def close(self) -> None:  # noqa: B027
        """Nothing is held open, unless a subclass says so."""


class ImageSource(PictureSource):
    """Image files, turned upright as their EXIF orientation says."""

    def __init__(self, name: str, paths: Sequence[Path], fps: float) -> None:
        for path in paths:
            if kind_of_path(path) != "file":
                raise LongVLMError(f"No such image: {printable(path)}. Check the path.")
        self._paths = paths
        super().__init__(name, len(paths), fingerprint_files(paths), fps)

    @classmethod
    def from_folder(cls, folder: Path, fps: float) -> ImageSource:
        """All images directly in a folder, in natural order: frame2.png comes before frame10.png."""
        with naming_errors_of(folder):
            paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        if not paths:
            raise LongVLMError(
                f"The folder {printable(folder)} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); "
                "give a folder of images, or a video file."
            )
        return cls(printable(folder.resolve().name), sorted(paths, key=_natural_order), fps)

    def _picture(self, position: int) -> np.ndarray:
        path = self._paths[position]
        try:
            with Image.open(path, formats=_IMAGE_FORMATS) as image:
                # Further pictures of a TIFF are pages, and those that cameras add to a JPEG (MPO) previews.
                if getattr(image, "is_animated", False) and image.format not in ("TIFF", "MPO"):
                    raise LongVLMError(f"The image {printable(path)} is animated; convert it to mp4.")
                return _to_rgb(ImageOps.exif_transpose(image))
        # Pillow's readers raise OSError for what is no image or cut short, the others for damage within one.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = printable(error)
            raise LongVLMError(
                f"The image {printable(path)} can't be read ({reason}); replace or remove it."
            ) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8. Pillow clips greys of 16 bits, so they are scaled here. What is transparent stands on white, as
    in a viewer.
    """
    if image.mode == "F":
        raise ValueError("its values are fractions, of unknown range")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its values have more than 16 bits")
        image = Image.fromarray((values // 257).astype(np.uint8))
    if image.has_transparency_data:
        on_white = Image.new("RGBA", image.size, "white")
        on_white.alpha_composite(image.convert("RGBA"))
        image = on_white
    return np.array(image.convert("RGB"))


class ArraySource(PictureSource):
    """Frames in memory: a numpy array (T, H, W, 3) uint8, RGB."""

    def __init__(self, frames: np.ndarray, fps: float) -> None:
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
            raise LongVLMError(
                f"An array of shape {frames.shape} and type {frames.dtype} is not a video; "
                "give RGB frames of shape (T, H, W, 3) and type uint8."
            )
        self._frames = frames
        digest = hashlib.sha256(repr(frames.shape).encode())
        for frame in frames:
            digest.update(np.ascontiguousarray(frame).data)
        super().__init__("array", len(frames), digest.hexdigest(), fps)

    def _picture(self, position: int) -> np.ndarray:
        return np.ascontiguousarray(self._frames[position])


def _natural_order(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that counts the numbers in a name as numbers."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts], path.name
