"""Fitting: equal to the Pillow processors of transformers, and to the reference's nearest neighbour."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from longvlm.errors import LongVLMError
from longvlm.stages.video_fitting import PAD_COLOUR, fit_picture

SHAPES = [(90, 160), (161, 90), (224, 224), (37, 300), (480, 641)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixels_of(processor, picture: np.ndarray) -> torch.Tensor:
    return processor(picture, do_normalize=False, do_rescale=False, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("shape", SHAPES)
def test_crop_equals_the_clip_processor(shape):
    picture = noise(*shape)
    expected = pixels_of(CLIPImageProcessorPil(), picture)
    torch.testing.assert_close(fit_picture(picture, 224, "crop").float(), expected.float(), atol=1, rtol=0)


def test_the_middle_of_a_very_long_picture_is_cropped_without_scaling_all_of_it():
    picture = np.repeat(noise(4, 4000), 2, axis=0)
    whole = Image.fromarray(picture).resize((56 * 500, 56), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((13972, 0, 14028, 56)))
    fitted = fit_picture(picture, 56, "crop").permute(1, 2, 0).numpy()
    assert np.abs(fitted.astype(int) - expected).mean() < 3
    longer = np.zeros((1, 60_000, 3), dtype=np.uint8)
    assert fit_picture(longer, 336, "crop").shape == (3, 336, 336)  # else some 80 GB


@pytest.mark.parametrize("shape", SHAPES)
def test_squash_equals_a_processor_with_a_square_size(shape):
    picture = noise(*shape)
    processor = SiglipImageProcessorPil(size={"height": 56, "width": 56}, resample=3)
    expected = pixels_of(processor, picture)
    torch.testing.assert_close(fit_picture(picture, 56, "squash").float(), expected.float(), atol=1, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_squash_nearest_takes_the_pixel_at_the_scaled_corner(shape):
    picture = noise(*shape)
    rows = [i * shape[0] // 56 for i in range(56)]
    columns = [i * shape[1] // 56 for i in range(56)]
    expected = torch.from_numpy(picture[rows][:, columns]).permute(2, 0, 1)
    torch.testing.assert_close(fit_picture(picture, 56, "squash-nearest"), expected)


def test_pad_keeps_the_whole_picture_between_bars_of_the_mean_colour():
    picture = np.full((30, 60, 3), 200, dtype=np.uint8)
    expected = torch.tensor(PAD_COLOUR, dtype=torch.uint8)[:, None, None].repeat(1, 40, 40)
    expected[:, 10:30] = 200
    torch.testing.assert_close(fit_picture(picture, 40, "pad"), expected)
    torch.testing.assert_close(
        fit_picture(picture.swapaxes(0, 1).copy(), 40, "pad"), expected.transpose(1, 2).contiguous()
    )


def test_pixels_that_are_not_square_fit_like_the_stretched_picture():
    down, across = np.mgrid[0:40, 0:20]
    picture = np.stack([6 * down, 12 * across, 3 * down + 6 * across], axis=2).astype(np.uint8)
    stretched = picture.repeat(4, axis=1)
    for fit in ("squash", "crop", "pad"):
        fitted, expected = fit_picture(picture, 40, fit, Fraction(4)), fit_picture(stretched, 40, fit)
        torch.testing.assert_close(fitted.float(), expected.float(), atol=7, rtol=0)
    unequal = fit_picture(picture, 40, "crop").float() - fit_picture(stretched, 40, "crop").float()
    assert unequal.abs().mean() > 20  # the ratio matters


def test_antialiasing_makes_fine_stripes_grey_and_nearest_does_not():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    smooth, aliased = fit_picture(stripes, 8, "squash"), fit_picture(stripes, 8, "squash-nearest")
    assert smooth.float().sub(127.5).abs().max() < 12
    assert aliased.unique().tolist() == [255]


def test_an_unknown_fit_is_an_error():
    with pytest.raises(LongVLMError, match="Unknown fit 'stretch'"):
        fit_picture(noise(8, 8), 8, "stretch")
