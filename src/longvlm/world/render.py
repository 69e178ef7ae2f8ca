"""Draws a scene: one frame as a function of the scene and the time alone, whatever was drawn before.

Frames are worked on as (H, 3·W) rows of interleaved RGB, since numpy is slow on a last axis of three.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image

from longvlm.errors import LongVLMError
from longvlm.world.scene import Background, Event, Patch, Scene
from longvlm.world.shapes import TABLE_REACH, TABLE_SIDE, distance_table

PAN_MARGIN = 0.2  # how far the camera swings, in fractions of the picture's sides
RIM = 0.13  # width of an object's dark rim, in fractions of half its size
RIM_BRIGHTNESS = 0.35
NO_EVENT = -1
NOISE_SHIFT = 61  # places along each axis that the window of noise can take


def render_frame(scene: Scene, time_seconds: float, width: int, height: int) -> np.ndarray:
    """The picture at `time_seconds`, (H, W, 3) uint8 RGB."""
    return _render(scene, time_seconds, width, height, None, None)


def render_labelled(
    scene: Scene, time_seconds: float, width: int, height: int, *, display_aspect: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The picture, and the index in `scene.events` of the object seen at every pixel, or -1: (H, W) int16.

    `display_aspect` is the width over the height that the picture is made for (its own, unless told): with
    16 / 9 a square frame shows a wide picture squashed, as an encoder that squashes its input would see it.
    """
    labels = np.full((height, width), NO_EVENT, dtype=np.int16)
    return _render(scene, time_seconds, width, height, display_aspect, labels), labels


def _render(
    scene: Scene,
    time_seconds: float,
    width: int,
    height: int,
    display_aspect: float | None,
    labels: np.ndarray | None,
) -> np.ndarray:
    if width < 1 or height < 1:
        raise LongVLMError(f"The frame size is {width}x{height}; both sides must be at least 1 pixel.")
    pixel_aspect = 1.0 if display_aspect is None else display_aspect * height / width
    background = scene.background_at(time_seconds)
    shake_x = scene.shake * math.sin(23.0 * time_seconds + background.phase)
    shake_y = scene.shake * math.cos(19.0 * time_seconds + background.phase)
    canvas = _draw_background(background, time_seconds, width, height, pixel_aspect)
    for patch in background.patches:
        if patch.start_seconds <= time_seconds < patch.end_seconds:
            _draw_patch(canvas, patch, time_seconds)
    for index, event in enumerate(scene.events):
        if event.is_on(time_seconds):
            _draw_event(canvas, event, index, time_seconds, pixel_aspect, (shake_x, shake_y), labels)
    _add_light(canvas, background, time_seconds)
    _add_noise(canvas, scene, time_seconds)
    np.clip(canvas, 0, 255, out=canvas)
    return canvas.astype(np.uint8).reshape(height, width, 3)


def _draw_background(
    background: Background, time_seconds: float, width: int, height: int, pixel_aspect: float
) -> np.ndarray:
    """The camera's view of the texture, (H, 3·W) float32."""
    texture = _texture(background, width, height, pixel_aspect)
    swing_x, swing_y = (
        0.5 + 0.5 * math.sin(2 * math.pi * time_seconds / seconds + background.phase)
        for seconds in background.pan_seconds
    )
    left = round(swing_x * (texture.shape[1] // 3 - width))
    top = round(swing_y * (texture.shape[0] - height))
    return texture[top : top + height, 3 * left : 3 * (left + width)].astype(np.float32)


@lru_cache(maxsize=8)
def _texture(background: Background, width: int, height: int, pixel_aspect: float) -> np.ndarray:
    """The background's texture, wider and higher than the picture by the camera's swing, (H', 3·W') uint8."""
    wide, high = math.ceil(width * (1 + 2 * PAN_MARGIN)), math.ceil(height * (1 + 2 * PAN_MARGIN))
    short = min(width * pixel_aspect, height)
    columns = background.cells * wide * pixel_aspect / short  # of the texture's cells
    rows = background.cells * high / short
    rng = np.random.RandomState(background.seed)
    cloud = 0.5 * _smooth_noise(rng, wide, high, columns, rows)
    cloud += 0.3 * _smooth_noise(rng, wide, high, 2.3 * columns, 2.3 * rows)
    cloud += 0.2 * _smooth_noise(rng, wide, high, 5.1 * columns, 5.1 * rows)
    x = np.linspace(0, 2 * np.pi * columns, wide, dtype=np.float32)
    y = np.linspace(0, 2 * np.pi * rows, high, dtype=np.float32)[:, None]
    turn = rng.uniform(0, np.pi)
    if background.texture == "clouds":
        field = 1.6 * cloud
    elif background.texture == "stripes":
        field = 0.7 * np.sin(x * math.cos(turn) + y * math.sin(turn) + 2 * cloud) + 0.8 * cloud
    elif background.texture == "checks":
        field = 0.7 * np.clip(3 * np.sin(0.7 * x) * np.sin(0.7 * y), -1, 1) + 0.9 * cloud
    else:
        field = 0.5 * cloud + _smooth_noise(rng, wide, high, 2 * columns, 14 * rows)
    palette = np.linspace(background.dark_rgb, background.light_rgb, 256).astype(np.uint8)
    return palette[np.clip(127.5 + 127.5 * field, 0, 255).astype(np.uint8)].reshape(high, 3 * wide)


def _smooth_noise(rng: np.random.RandomState, wide: int, high: int, columns: float, rows: float) -> np.ndarray:
    """Random values of about -1 to 1 on a grid of rows × columns, smoothly enlarged to (high, wide)."""
    grid = rng.uniform(-1, 1, (max(2, round(rows)), max(2, round(columns)))).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((wide, high), Image.Resampling.BICUBIC))


def _draw_patch(canvas: np.ndarray, patch: Patch, time_seconds: float) -> None:
    height, width = canvas.shape[0], canvas.shape[1] // 3
    done = (time_seconds - patch.start_seconds) / (patch.end_seconds - patch.start_seconds)
    fade = min(1.0, 5 * done, 5 * (1 - done))
    left, along_x = _soft_edges(width, patch.start_x + done * (patch.end_x - patch.start_x), patch.half_width)
    top, along_y = _soft_edges(height, patch.start_y + done * (patch.end_y - patch.start_y), patch.half_height)
    cover = np.outer(fade * patch.opacity * along_y, np.repeat(along_x, 3))
    view = canvas[top : top + len(along_y), 3 * left : 3 * (left + len(along_x))]
    view += cover * (np.tile(np.array(patch.rgb, dtype=np.float32), len(along_x)) - view)


def _soft_edges(pixels: int, centre: float, half: float) -> tuple[int, np.ndarray]:
    """A flat bump along one axis, in fractions of it: the first pixel it reaches, its height from there."""
    first = min(max(0, math.floor((centre - 1.5 * half) * pixels)), pixels)
    last = max(min(pixels, math.ceil((centre + 1.5 * half) * pixels)), first)
    offset = ((np.arange(first, last, dtype=np.float32) + 0.5) / pixels - centre) / half
    return first, np.exp(-(offset**4))


def _draw_event(
    canvas: np.ndarray,
    event: Event,
    index: int,
    time_seconds: float,
    pixel_aspect: float,
    shake: tuple[float, float],
    labels: np.ndarray | None,
) -> None:
    pose = event.pose(time_seconds)
    if not pose.visible:
        return
    height, width = canvas.shape[0], canvas.shape[1] // 3
    short = min(width * pixel_aspect, height)
    radius = 0.5 * pose.size * short  # in heights of a pixel
    x, y = pose.x * width + shake[0] * short / pixel_aspect, pose.y * height + shake[1] * short
    reach = 1.25 * radius + 1
    left, right = (
        max(0, math.floor(x - reach / pixel_aspect)),
        min(width, math.ceil(x + reach / pixel_aspect)),
    )
    top, bottom = max(0, math.floor(y - reach)), min(height, math.ceil(y + reach))
    if left >= right or top >= bottom:
        return
    # From a pixel of the box to the table: centre, undo the turn, undo the size.
    cos, sin = math.cos(pose.angle_radians), math.sin(pose.angle_radians)
    texels = TABLE_SIDE / (2 * TABLE_REACH) / radius
    a, b, d, e = texels * cos * pixel_aspect, texels * sin, -texels * sin * pixel_aspect, texels * cos
    middle = TABLE_SIDE / 2
    matrix = (a, b, middle + a * (left - x) + b * (top - y), d, e, middle + d * (left - x) + e * (top - y))
    table = distance_table(event.shape).transform(
        (right - left, bottom - top), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    inwards = np.asarray(table) * -radius
    cover = np.clip(inwards + 0.5, 0, 1)
    shade = np.clip(inwards - RIM * radius + 0.5, 0, 1) * (1 - RIM_BRIGHTNESS) + RIM_BRIGHTNESS
    view = canvas[top:bottom, 3 * left : 3 * right]
    view *= np.repeat(1 - cover, 3, axis=1)
    view += np.repeat(cover * shade, 3, axis=1) * np.tile(np.array(event.rgb, dtype=np.float32), right - left)
    if labels is not None:
        labels[top:bottom, left:right][cover >= 0.5] = index


def _add_light(canvas: np.ndarray, background: Background, time_seconds: float) -> None:
    """Lights every value: a wave along each axis that drifts, a tint, and flashes."""
    height, width = canvas.shape[0], canvas.shape[1] // 3
    drift = 2 * math.pi * time_seconds / background.light_seconds + background.phase
    waves_x, waves_y = background.light_waves
    along_x = np.cos(np.linspace(drift, drift + 2 * np.pi * waves_x, width, dtype=np.float32))
    along_y = np.sin(np.linspace(drift, drift + 2 * np.pi * waves_y, height, dtype=np.float32))
    gain = 1.0
    for flash in background.flashes:
        if flash.start_seconds <= time_seconds < flash.end_seconds:
            gain *= flash.gain
    tint = np.tile(np.array(background.tint, dtype=np.float32) * gain, width)
    canvas *= np.repeat(1 + background.light_strength * along_x, 3) * tint
    canvas *= (1 + background.light_strength * along_y)[:, None]


def _add_noise(canvas: np.ndarray, scene: Scene, time_seconds: float) -> None:
    """Adds the sensor's noise: a window of one fixed tile, at a place that scene and time decide."""
    rows, columns = canvas.shape
    tile = _noise_tile(rows, columns, scene.noise_levels)
    spot = (round(time_seconds * 1000) * 2654435761 + scene.seed * 40503) & 0xFFFFFFFF
    top, left = (spot >> 8) % NOISE_SHIFT, (spot >> 16) % NOISE_SHIFT
    canvas += tile[top : top + rows, left : left + columns]


@lru_cache(maxsize=4)
def _noise_tile(rows: int, columns: int, levels: float) -> np.ndarray:
    rng = np.random.RandomState(20240404)
    tile = rng.standard_normal((rows + NOISE_SHIFT, columns + NOISE_SHIFT)).astype(np.float32)
    return tile * np.float32(levels)
