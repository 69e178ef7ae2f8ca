"""Fitting a picture of any shape to the encoder's square: three antialiased ways, and the reference's own."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from longvlm.errors import LongVLMError
from longvlm.types import Fit

_LONGEST_SCALED = 16  # times the side that is kept

# The mean colour of CLIP's training images: after normalisation the padding is close to zero.
PAD_COLOUR = (122, 116, 104)


def fit_picture(picture: np.ndarray, image_size: int, fit: Fit, pixel_aspect: Fraction = Fraction(1)) -> torch.Tensor:
    """Fit an RGB picture (H, W, 3) uint8 to (3, R, R) uint8, R = image_size.

    `pixel_aspect` is the width of the picture's pixels over their height: a viewer sees it W·pixel_aspect wide.

    `squash` stretches both sides to R. `crop` scales the shorter side to R and keeps the middle. `pad`
    scales the longer side to R and centres the picture on CLIP's mean colour. All three resample with
    Pillow's bicubic filter, which is antialiased. `squash-nearest` is the reference's resampling: nearest
    neighbour without antialiasing, where output pixel i shows input pixel ⌊i·in/out⌋.
    """
    if fit == "squash-nearest":
        planes = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
        return functional.interpolate(planes, size=(image_size, image_size), mode="nearest")[0].contiguous()
    height, shown_width = picture.shape[0], picture.shape[1] * pixel_aspect
    image = Image.fromarray(picture)
    bicubic = Image.Resampling.BICUBIC
    if fit == "squash":
        fitted = image.resize((image_size, image_size), bicubic)
    elif fit == "crop":
        short = min(height, shown_width)
        scaled_width, scaled_height = image_size * shown_width // short, image_size * height // short
        left, top = (scaled_width - image_size) // 2, (scaled_height - image_size) // 2
        middle = (left, top, left + image_size, top + image_size)
        if max(scaled_width, scaled_height) <= _LONGEST_SCALED * image_size:
            fitted = image.resize((scaled_width, scaled_height), bicubic).crop(middle)
        else:  # what would be cropped off again might take gigabytes
            across, down = image.width / scaled_width, image.height / scaled_height
            box = (middle[0] * across, middle[1] * down, middle[2] * across, middle[3] * down)
            fitted = image.resize((image_size, image_size), bicubic, box=box)
    elif fit == "pad":
        long = max(height, shown_width)
        scaled_size = max(1, round(image_size * shown_width / long)), max(1, round(image_size * height / long))
        fitted = Image.new("RGB", (image_size, image_size), PAD_COLOUR)
        corner = (image_size - scaled_size[0]) // 2, (image_size - scaled_size[1]) // 2
        fitted.paste(image.resize(scaled_size, bicubic), corner)
    else:
        raise LongVLMError(f"Unknown fit {fit!r}; choose squash, crop, pad or squash-nearest.")
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()
