"""The outlines of the shapes, as tables of signed distance that the renderer scales, turns and places."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

TABLE_SIDE = 256  # texels
TABLE_REACH = 2.3  # the table covers [-reach, reach] on both axes; a shape fills about [-1, 1]

# In how many positions of a full turn a shape looks the same; 0: in all.
SYMMETRY_FOLDS = {
    "circle": 0,
    "ring": 0,
    "square": 4,
    "cross": 4,
    "star": 5,
    "triangle": 3,
    "diamond": 2,
    "heart": 1,
    "crescent": 1,
    "arrow": 1,
}

Points = list[tuple[float, float]]


@cache
def distance_table(shape: str) -> Image.Image:
    """Signed distance to the outline of a shape of half-size 1, negative inside; y points down."""
    axis = (np.arange(TABLE_SIDE, dtype=np.float32) + 0.5) * (2 * TABLE_REACH / TABLE_SIDE) - TABLE_REACH
    x, y = np.meshgrid(axis, axis)
    if shape == "circle":
        distance = np.hypot(x, y) - 0.95
    elif shape == "ring":
        distance = np.abs(np.hypot(x, y) - 0.75) - 0.25
    elif shape == "crescent":
        distance = np.maximum(np.hypot(x + 0.12, y) - 1.0, 0.82 - np.hypot(x - 0.42, y))
    else:
        distance = _polygon_distance(x, y, _outline(shape))
    return Image.fromarray(distance.astype(np.float32))


def _outline(shape: str) -> Points:
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0.0, -0.95), (1.05, 0.85), (-1.05, 0.85)]
    if shape == "diamond":
        return [(0.0, -1.1), (0.68, 0.0), (0.0, 1.1), (-0.68, 0.0)]
    if shape == "star":
        angles = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.15, 0.46)
        return _points(radii * np.sin(angles), 0.06 - radii * np.cos(angles))
    if shape == "cross":
        a, b = 0.33, 1.0
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    if shape == "arrow":
        return [(-1.1, -0.3), (0.1, -0.3), (0.1, -0.85), (1.1, 0.0), (0.1, 0.85), (0.1, 0.3), (-1.1, 0.3)]
    if shape == "heart":
        turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        across = 16 * np.sin(turn) ** 3
        up = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return _points(across / 15.5, -(up + 2.5) / 15.0)
    raise KeyError(shape)


def _points(x: np.ndarray, y: np.ndarray) -> Points:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _polygon_distance(x: np.ndarray, y: np.ndarray, corners: Points) -> np.ndarray:
    """Signed distance from every point to a polygon: the nearest edge, with the sign of the even-odd rule."""
    squared = np.full(x.shape, np.inf, dtype=np.float32)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        edge_x, edge_y = bx - ax, by - ay
        along = np.clip(((x - ax) * edge_x + (y - ay) * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
        squared = np.minimum(squared, (x - ax - along * edge_x) ** 2 + (y - ay - along * edge_y) ** 2)
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < edge_x * (y - ay) / edge_y + ax)
    return np.sqrt(squared) * np.where(inside, -1, 1)
