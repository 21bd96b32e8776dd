"""Camera projection (Eq. 10) with loops in float64, and the map it makes of an unorganised cloud."""

from __future__ import annotations

import math

import numpy as np


def project(point, camera):
    """(row, column) as floats, or None behind the camera."""
    x, y, z = (float(value) for value in point)
    if camera.extrinsic is not None:
        m = camera.extrinsic
        x, y, z = (m[i][0] * x + m[i][1] * y + m[i][2] * z + m[i][3] for i in range(3))
    if not all(map(math.isfinite, (x, y, z))) or z <= 0:
        return None
    x, y = x / z, y / z
    if camera.kappa:
        inside = 1 - 4 * camera.kappa * (x * x + y * y)
        if inside < 0:
            return None
        lens = 2 / (1 + math.sqrt(inside))
        x, y = x * lens, y * lens
    return y * camera.fy + camera.cy, x * camera.fx + camera.cx


def pixel(point, camera):
    """Flat pixel, or None where the point is not seen."""
    at = project(point, camera)
    if at is None:
        return None
    row, column = (math.floor(value + 0.5) for value in at)
    if not (0 <= row < camera.height and 0 <= column < camera.width):
        return None
    return row * camera.width + column


def organise(points, camera):
    """(h, w, 3) float64, of each pixel the nearest point, the first of equals, in the camera's frame."""
    grid = np.zeros((camera.height, camera.width, 3))
    depth = np.full((camera.height, camera.width), np.inf)
    for point in points:
        at = pixel(point, camera)
        if at is None:
            continue
        row, column = divmod(at, camera.width)
        if point[2] < depth[row, column]:
            grid[row, column], depth[row, column] = point, point[2]
    return grid
