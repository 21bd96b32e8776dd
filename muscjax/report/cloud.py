"""A scan's cloud as the page embeds it, some 35 kB for 12,000 points.

Positions are whole steps of one length for all axes, turned so that the axes are the picture's own: right,
down and away. Colours are not stored: each point names its pixel of the embedded map, which has the heat, and
the picture lies under it.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from muscjax.frame import Frame

MAX_POINTS = 12_000
_STEPS = 1 << 13  # along the longest side: 12 µm on a part of 10 cm, less than a pixel at every useful zoom
# Shares of the plastic number: sums of their multiples spread evenly however few of them are kept.
_SPREAD = np.array([0.7548776662466927, 0.5698402909980532])


def places(pixel: np.ndarray, frame: Frame) -> np.ndarray:
    """Where pixels of the working grid lie in the scan's own picture.

    pixel: (P,) flat, as in ``muscjax.types.Cloud``. Returns (P, 2) float32, x and y as shares of the
    picture's width and height; pixels of the padding lie outside of 0...1.
    """
    height, width = frame.working_hw
    top, bottom, left, right = frame.pad
    source_h, source_w = frame.source_hw
    y0, x0, crop_h, crop_w = frame.crop or (0, 0, source_h + top + bottom, source_w + left + right)
    pixel = np.asarray(pixel)
    y = (pixel // width + 0.5) / height * crop_h + y0 - top
    x = (pixel % width + 0.5) / width * crop_w + x0 - left
    return np.stack([x / source_w, y / source_h], axis=-1).astype(np.float32)


def pack(points: np.ndarray, where: np.ndarray, *, hw: tuple[int, int], count: int = MAX_POINTS) -> str:
    """JSON for the page's script, or an empty text where no point lies in the picture.

    points: (P, 3) metres. where: (P, 2) from `places`. hw: of the embedded map, at most 65,536 pixels. Of
    the points that share a pixel the first is kept, and of these at most ``count``, spread evenly.
    """
    height, width = hw
    inside = ((where >= 0) & (where < 1)).all(axis=1)
    points, where = np.asarray(points, np.float64)[inside], np.asarray(where, np.float64)[inside]
    if not len(points):
        return ""
    cells = np.minimum((where * (width, height)).astype(int), (width - 1, height - 1))
    pixel, first = np.unique(cells[:, 1] * width + cells[:, 0], return_index=True)
    points, where, cells = points[first], where[first], cells[first]
    if len(pixel) > count:
        kept = np.sort(np.argsort(cells @ _SPREAD % 1.0, kind="stable")[:count])
        points, where, pixel = points[kept], where[kept], pixel[kept]
    turned = points @ picture_axes(points, where * (width, height)).T
    low = turned.min(axis=0)
    step = float((turned.max(axis=0) - low).max()) / (_STEPS - 1) or 1.0
    columns = [*np.round((turned - low) / step).T, pixel]
    # Neighbours differ by little: differences, low and high bytes apart, deflate better than positions.
    moves = [np.diff(column.astype(np.uint16), prepend=np.uint16(0)) for column in columns]
    planes = [part.astype(np.uint8) for move in moves for part in (move & 255, move >> 8)]
    packed = zlib.compress(np.stack(planes).tobytes(), 9)
    stored = {"n": len(pixel), "step": step, "data": base64.b64encode(packed).decode("ascii")}
    return json.dumps(stored, separators=(",", ":"), allow_nan=False)


def picture_axes(points: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(3, 3) orthonormal rows: the directions in space in which the picture goes right, down and away.

    points: (P, 3). pixels: (P, 2), x and y. Right and down are the steepest ascents of x and y over the
    points; away is where the points are from the camera at the origin, where it can be there at all.
    """
    offset = points - points.mean(axis=0)
    slopes = np.linalg.lstsq(offset, pixels - pixels.mean(axis=0), rcond=1e-6)[0]
    right = _unit(slopes[:, 0])
    down = None if right is None else _unit(slopes[:, 1] - right * (right @ slopes[:, 1]))
    if right is None or down is None:
        return np.eye(3)  # points on a line, or a single one
    away = np.cross(right, down)
    distance = float(away @ points.mean(axis=0))
    if distance < -float(np.linalg.norm(offset, axis=1).max()):
        away = -away  # a sensor whose axes are left-handed
    return np.stack([right, down, away])


def _unit(vector: np.ndarray) -> np.ndarray | None:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else None
