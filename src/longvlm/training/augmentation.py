"""What files go through before a model sees them: enlarged pictures, a codec's blocks, a channel's name in a corner."""

from __future__ import annotations

import io
import random
import string
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

_LEAST_SCALE = 0.6
_QUALITIES = (25, 80)
_SHARE_SCALED, _SHARE_COMPRESSED, _SHARE_MARKED = 0.4, 0.4, 0.15
_MARK_HEIGHTS = (0.05, 0.1)  # of the picture


@dataclass(frozen=True)
class Augmentation:
    """`scale` of the sides at which the picture was kept, JPEG `quality`, `mark`: a text, where it stands, its height.

    None: nothing of the kind.
    """

    scale: float | None = None
    quality: int | None = None
    mark: tuple[str, float, float, float] | None = None

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """The changed picture of `pixels` (H, W, 3) uint8, of the same size."""
        picture, size = Image.fromarray(pixels), (pixels.shape[1], pixels.shape[0])
        if self.mark is not None:
            text, x, y, height = self.mark
            place = (x * size[0], y * size[1])
            ImageDraw.Draw(picture).text(place, text, "white", anchor="mm", font_size=max(6, round(height * size[1])))
        if self.scale is not None:
            small = (max(1, round(self.scale * size[0])), max(1, round(self.scale * size[1])))
            picture = picture.resize(small, Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)
        if self.quality is not None:
            file = io.BytesIO()
            picture.save(file, "jpeg", quality=self.quality)
            picture = Image.open(file)
        return np.array(picture)


def draw_augmentation(rng: random.Random) -> Augmentation:
    """Mostly none or one kind of augmentation."""
    scale = rng.uniform(_LEAST_SCALE, 1.0) if rng.random() < _SHARE_SCALED else None
    quality = rng.randint(*_QUALITIES) if rng.random() < _SHARE_COMPRESSED else None
    mark = None
    if rng.random() < _SHARE_MARKED:
        text = "".join(rng.choices(string.ascii_uppercase + " ", k=rng.randint(3, 9)))
        mark = (text, rng.choice((0.2, 0.8)), rng.choice((0.06, 0.94)), rng.uniform(*_MARK_HEIGHTS))
    return Augmentation(scale, quality, mark)
