"""The camera that pairs an unorganised cloud with an image: projection (Eq. 10) and the organised map.

Apart from ``types`` and ``geometry`` for processes that have no use for JAX; ``geometry.project`` is the
projection as a JAX function.
"""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType
from typing import Any

import numpy as np

NOT_ZERO = 1e-9  # metres; stands for an exact 0 of a measured point, as 0 in an XYZ map says "no depth"


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera; hashable, so that a projection can be compiled for it.

    x points right, y down, z forward; the centre of the first pixel is at (0, 0). ``kappa`` is the lens
    distortion of the division model, in units of the image plane at distance 1: an undistorted radius r is
    seen at 2 r / (1 + √(1 - 4 kappa r²)); 0 is no distortion.
    """

    fx: float  # pixels
    fy: float
    cx: float  # column of the optical axis
    cy: float
    width: int
    height: int
    kappa: float = 0.0
    # (4, 4) rows, from the cloud's frame to the camera's, in the cloud's units; None: they are the same
    extrinsic: tuple[tuple[float, ...], ...] | None = None

    @property
    def hw(self) -> tuple[int, int]:
        return self.height, self.width


def scaled(camera: Camera, hw: tuple[int, int]) -> Camera:
    """The same view on a grid of ``hw`` samples: sample i lies at pixel i · pixels / samples."""
    down, right = hw[0] / camera.height, hw[1] / camera.width
    return dataclasses.replace(
        camera,
        fx=camera.fx * right,
        cx=camera.cx * right,
        fy=camera.fy * down,
        cy=camera.cy * down,
        width=hw[1],
        height=hw[0],
    )


def in_camera(points: Any, camera: Camera, xp: ModuleType = np) -> Any:
    """Points (P, 3) in the camera's frame; ``xp`` is the array module, NumPy or jax.numpy."""
    if camera.extrinsic is None:
        return points
    matrix = xp.asarray(camera.extrinsic, points.dtype)
    # sums of products, so that no device rounds the factors as it does in a matrix product
    return (points[:, None, :] * matrix[None, :3, :3]).sum(axis=2) + matrix[None, :3, 3]


def pixel_of(points: Any, camera: Camera, xp: ModuleType = np) -> tuple[Any, Any]:
    """Eq. 10 for points in the camera's frame: flat pixel (P,) int32 and whether it is seen (P,) bool.

    The pixel is 0 where the point is behind the camera, outside of the image, or not finite.
    """
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    ahead = xp.isfinite(points).all(axis=1) & (z > 0)
    away = xp.where(ahead, z, xp.ones_like(z))
    x, y = xp.where(ahead, x, xp.zeros_like(x)) / away, xp.where(ahead, y, xp.zeros_like(y)) / away
    if camera.kappa:
        inside = 1.0 - 4.0 * camera.kappa * (x * x + y * y)
        ahead = ahead & (inside >= 0)
        lens = 2.0 / (1.0 + xp.sqrt(xp.maximum(inside, xp.zeros_like(inside))))
        x, y = x * lens, y * lens
    column, row = xp.floor(x * camera.fx + camera.cx + 0.5), xp.floor(y * camera.fy + camera.cy + 0.5)
    seen = ahead & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    row, column = (xp.where(seen, part, xp.zeros_like(part)).astype(xp.int32) for part in (row, column))
    return row * camera.width + column, seen


def scatter_nearest(points: np.ndarray, pixel: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) float32 from points (P, 3) at flat pixels (P,): the smallest z of a pixel stays.

    The first of equal ones wins. Pixels without a point are 0; a coordinate that is exactly 0 becomes
    ``NOT_ZERO``.
    """
    behind = np.argsort(points[:, 2], kind="stable")[::-1]
    grid = np.zeros((hw[0] * hw[1], 3), np.float32)
    grid[pixel[behind]] = not_zero(points.astype(np.float32))[behind]  # the last one written stays
    return grid.reshape(*hw, 3)


def not_zero(points: np.ndarray) -> np.ndarray:
    """(..., 3) measured points whose exact zeros are moved by a nanometre, so that they count as present."""
    return np.where(points == 0, points.dtype.type(NOT_ZERO), points)


def organise(points: np.ndarray, camera: Camera) -> np.ndarray:
    """The organised map of an unorganised cloud: (P, 3) to (h, w, 3) float32 in the camera's frame.

    h × w is the camera's image, or a coarser grid of the same view where the cloud is too sparse for it: the
    finest one, in steps of √2, on which half of the neighbours of an occupied sample are occupied too. A
    sparser one would lose most points as soon as it is resampled. All zeros where no point is seen.
    """
    points = in_camera(points.astype(np.float64), camera)
    hw = camera.hw
    step = 0
    while True:
        pixel, seen = pixel_of(points, scaled(camera, hw))
        coarser = coarsened(camera.hw, step + 1)
        if density(pixel[seen], hw) >= 0.5 or min(coarser) < 16:
            return scatter_nearest(points[seen], pixel[seen], hw)
        step, hw = step + 1, coarser


def organise_from_above(points: np.ndarray) -> np.ndarray:
    """The organised map of a cloud without a camera: (P, 3) to (s, s, 3) float32, seen along +z.

    x runs right and y down on a square grid around the cloud, about as fine as the points are dense. The
    cloud is moved in front of a camera at the origin (twice its extent away), as normals are turned towards
    that; nothing else is changed.
    """
    points = points.astype(np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    extent = max(float((high - low)[:2].max()), 1e-12)
    centre = np.append((low + high)[:2] / 2, low[2] - 2 * extent)
    points = points - centre
    side = max(32, 32 * math.ceil(2 * math.sqrt(len(points)) / 32))
    finest, step = side, 0
    while True:
        place = np.floor((points[:, :2] / extent + 0.5) * side).astype(np.int64).clip(0, side - 1)
        pixel = place[:, 1] * side + place[:, 0]
        coarser = coarsened((finest, finest), step + 1)[0]
        if density(pixel, (side, side)) >= 0.5 or coarser < 16:
            return scatter_nearest(points, pixel, (side, side))
        step, side = step + 1, coarser


def coarsened(hw: tuple[int, int], step: int) -> tuple[int, int]:
    """``hw`` after so many steps of √2, at least 1 × 1."""
    return max(1, round(hw[0] / 2 ** (step / 2))), max(1, round(hw[1] / 2 ** (step / 2)))


def density(pixel: np.ndarray, hw: tuple[int, int]) -> float:
    """Share of the right and lower neighbours of occupied pixels that are occupied; 1 without any pixel."""
    occupied = np.zeros(hw, bool)
    occupied.reshape(-1)[pixel] = True
    across, down = occupied[:, :-1], occupied[:-1]
    pairs = int(across.sum()) + int(down.sum())
    both = int((across & occupied[:, 1:]).sum()) + int((down & occupied[1:]).sum())
    return both / pairs if pairs else 1.0
