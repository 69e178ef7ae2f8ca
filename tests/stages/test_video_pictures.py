"""Videos that need no decoder: folders and lists of images, and arrays."""

import struct
import zlib

import numpy as np
import pytest
import torch
from media import barcode, read_barcode
from PIL import Image

from longvlm.errors import LongVLMError
from longvlm.stages.video import Sampling, open_video

ALL = Sampling(num_frames=None, fps=1000)


def numbers(source, sampling=ALL, **options):
    with open_video(source, **options) as video:
        segments = list(video.segments(sampling, frames_per_segment=4, image_size=48, fit="squash"))
        planned = video.planned_times(sampling)
    frames = [(time, read_barcode(p)) for s in segments for time, p in zip(s.times_seconds, s.pixels, strict=True)]
    assert sorted({time for time, _ in frames}) == planned
    return list(dict.fromkeys(frames))


def test_a_folder_is_read_in_natural_order_at_one_frame_a_second(tmp_path):
    for number, suffix in [(0, "png"), (1, "jpg"), (2, "webp"), (3, "bmp"), (10, "PNG"), (11, "tiff")]:
        Image.fromarray(barcode(number)).save(tmp_path / f"frame{number}.{suffix}")
    (tmp_path / "notes.txt").write_text("no image")
    assert numbers(tmp_path) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 10), (5, 11)]
    assert numbers(tmp_path, fps=4)[:3] == [(0, 0), (0.25, 1), (0.5, 2)]


def test_a_list_of_images_keeps_its_order_and_a_single_image_is_a_video(tmp_path):
    paths = []
    for number in (5, 3, 9):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(barcode(number)).save(paths[-1])
    assert numbers(paths) == [(0, 5), (1, 3), (2, 9)]
    assert numbers([str(path) for path in paths]) == [(0, 5), (1, 3), (2, 9)]
    assert numbers(paths[1]) == [(0, 3)]


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_an_animation_is_not_taken_for_its_first_picture(tmp_path, suffix):
    first, *others = (Image.fromarray(barcode(number)) for number in range(5))
    first.save(tmp_path / f"moving.{suffix}", save_all=True, append_images=others)
    with pytest.raises(LongVLMError, match=f"moving.{suffix} is animated; convert it to mp4"):
        open_video(tmp_path / f"moving.{suffix}")


def test_a_photo_with_previews_is_its_main_picture(tmp_path):
    main, preview = (Image.fromarray(barcode(number)) for number in (3, 4))
    main.save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=[preview])
    assert numbers(tmp_path / "photo.jpg") == [(0, 3)]


def test_sixteen_bits_of_grey_are_scaled_to_eight(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    with open_video(tmp_path / "ramp.png") as video:
        (segment,) = video.segments(ALL, frames_per_segment=1, image_size=64, fit="squash")
    np.testing.assert_array_equal(segment.pixels[0, :, 0].numpy(), (ramp[0] // 257)[None].repeat(3, 0))


def test_other_greys_are_scaled_or_refused(tmp_path):
    (tmp_path / "grey.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([257, 65535], dtype=">u2").tobytes())
    with open_video(tmp_path / "grey.pgm") as video:
        (segment,) = video.segments(ALL, frames_per_segment=1, image_size=2, fit="squash-nearest")
    assert segment.pixels[0, 0, 0].tolist() == [1, 255]
    Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)).save(tmp_path / "fractions.tif")
    Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)).save(tmp_path / "deep.tif")
    for name, words in (
        ("fractions.tif", "its values are fractions"),
        ("deep.tif", "its values have more than 16 bits"),
    ):
        with pytest.raises(LongVLMError, match=rf"The image .*{name} can't be read \({words}"):
            open_video(tmp_path / name)


def test_sixteen_bits_of_grey_are_scaled_where_one_is_transparent(tmp_path):
    Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16)).save(tmp_path / "grey.png", transparency=5)
    with open_video(tmp_path / "grey.png") as video:
        (segment,) = video.segments(ALL, frames_per_segment=1, image_size=4, fit="squash")
    assert segment.pixels.unique().tolist() == [128]


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_what_is_transparent_stands_on_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 6))
    image.convert(mode).save(tmp_path / "drawing.png")
    with open_video(tmp_path / "drawing.png") as video:
        (segment,) = video.segments(Sampling(num_frames=1), frames_per_segment=1, image_size=8, fit="squash-nearest")
    assert segment.pixels[0, :, :, :4].max() == 0 and segment.pixels[0, :, :, 4:].min() == 255


def test_exif_orientation_is_applied(tmp_path):
    upright = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    image = Image.fromarray(np.rot90(upright).copy())
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90° clockwise to view
    image.save(tmp_path / "turned.png", exif=exif)
    with open_video(tmp_path / "turned.png") as video:
        assert (video.info.width, video.info.height) == (8, 4)
        frames = next(video.segments(ALL, frames_per_segment=1, image_size=8, fit="squash-nearest"))
    torch.testing.assert_close(frames.pixels[0, :, ::2], torch.from_numpy(upright).permute(2, 0, 1).contiguous())


def test_an_array_is_read_at_the_stated_rate():
    array = np.stack([barcode(number) for number in range(10)])
    assert numbers(array, fps=2) == [(number / 2, number) for number in range(10)]
    with open_video(array, fps=2) as video:
        info = video.info
    assert (info.width, info.height, info.num_frames, info.duration_seconds) == (96, 64, 10, 5.0)
    with open_video(array[:9], fps=2) as video:
        assert video.info.fingerprint != info.fingerprint
    with open_video(array.copy(), fps=2) as video:
        assert video.info == info


@pytest.mark.parametrize(
    "array", [np.zeros((2, 4, 4)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(array):
    with pytest.raises(LongVLMError, match=r"give RGB frames of shape \(T, H, W, 3\)"):
        open_video(array)


def test_only_image_formats_are_tried_whatever_the_name_says(tmp_path):
    path = tmp_path / "vector.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(path) as image:
        assert image.format == "EPS"  # what Pillow takes it for when left to itself
    with pytest.raises(LongVLMError, match=r"vector\.png can't be read \(cannot identify image file"):
        open_video(path)


def test_a_decompression_bomb_and_broken_pictures_are_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    (tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(LongVLMError, match=r"bomb\.png can't be read .*decompression bomb"):
        open_video(tmp_path / "bomb.png")
    Image.fromarray(barcode(1)).save(tmp_path / "sound.png")
    data = (tmp_path / "sound.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(LongVLMError, match=r"cut\.png can't be read"):
        open_video(tmp_path / "cut.png")


def test_missing_empty_and_broken_pictures_are_named(tmp_path):
    with pytest.raises(LongVLMError, match=f"{tmp_path} holds no images"):
        open_video(tmp_path)
    with pytest.raises(LongVLMError, match="list of images is empty"):
        open_video([])
    with pytest.raises(LongVLMError, match=r"No such image: .*gone\.png"):
        open_video([tmp_path / "gone.png"])
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(LongVLMError, match=r"broken.png can't be read"):
        open_video(tmp_path)
    with pytest.raises(LongVLMError, match="frame rate of array is 0"):
        open_video(np.zeros((1, 2, 2, 3), np.uint8), fps=0)
