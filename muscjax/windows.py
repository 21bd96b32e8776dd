"""Nearest neighbours of an organised cloud: a window of pixels around each point, certified.

A sensor's pixels are already a spatial index: what lies near in space lies near on the grid. So each point
looks at a square of pixels and proves from the cloud itself that nothing outside the square can be nearer.
Where the proof fails (sparse edges, steep walls) ``neighbours.nearest`` answers instead. The result is
exact in either case; a grid that does not follow the points only costs time.
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
from jax import lax

from muscjax.neighbours import nearest
from muscjax.selection import smallest

_BLOCK = 256  # points per step: their windows stay in the cache
_ROUNDING = 1e-6  # of the proof's bounds: eight roundings of float32


def nearest_on_grid(
    points: jax.Array,
    valid: jax.Array,
    pixel: jax.Array,
    k: int,
    *,
    grid_hw: tuple[int, int],
    radius: jax.Array | float | None = None,
    half_width: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k nearest valid points of every point of an organised cloud: what ``neighbours.nearest`` gives.

    Args:
      points: (P, 3) float32.
      valid: (P,) bool.
      pixel: (P,) int32, flat pixel of ``grid_hw``, in [0, H·W).
      k: static; may exceed P.
      grid_hw: height and width of the grid, static.
      radius: points farther than this are left out; a scalar in the unit of the points.
      half_width: pixels that the window reaches to each side, static; None: ⌈√k⌉, 1.8 times the radius of k
        pixels on a plane that faces the camera.

    Returns:
      indices (P, k) int32 and Euclidean distances (P, k) float32, as ``neighbours.nearest``; without any
      neighbour where the point is not valid.
    """
    half_width = math.isqrt(k - 1) + 1 if half_width is None else half_width
    squared, index, proven = search_windows(
        points, valid, pixel, k, grid_hw=grid_hw, radius=radius, half_width=half_width
    )
    rest = valid & ~proven
    other_index, other = nearest(points, points, valid, k, radius=radius, query_valid=rest)
    index = jnp.where(jnp.isfinite(squared), index, index[:, :1])
    index = jnp.where(rest[:, None], other_index, index)
    return index, jnp.where(rest[:, None], other, jnp.sqrt(squared))


def search_windows(
    points: jax.Array,
    valid: jax.Array,
    pixel: jax.Array,
    k: int,
    *,
    grid_hw: tuple[int, int],
    radius: jax.Array | float | None,
    half_width: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k nearest within each point's window, and whether they are provably the nearest of all.

    Returns:
      squared distances (P, k) float32, ascending, inf where there are fewer; indices (P, k) int32;
      proven (P,) bool, False where the point is not valid.
    """
    chex.assert_shape(points, (None, 3))
    height, width = grid_hw
    limit = jnp.float32(jnp.inf) if radius is None else jnp.square(jnp.asarray(radius, jnp.float32))
    row, column = pixel // width, pixel % width
    side = 2 * half_width + 1
    # A frame of absent pixels, so that a window at the border needs no case of its own.
    framed = height + 2 * half_width, width + 2 * half_width
    place = jnp.where(valid, (row + half_width) * framed[1] + column + half_width, math.prod(framed))

    def table(values, absent):
        flat = jnp.full((math.prod(framed),), absent, values.dtype)
        return flat.at[place].set(values, mode="drop").reshape(framed)

    tables = tuple(table(points[:, a], jnp.inf) for a in range(3))
    ids = table(jnp.arange(points.shape[0], dtype=jnp.int32), -1)
    window = lax.GatherDimensionNumbers(offset_dims=(1, 2), collapsed_slice_dims=(), start_index_map=(0, 1))

    def search(block):
        here, corner, present = block

        def around(values):
            cut = lax.gather(values, corner, window, (side, side), mode="clip")
            return cut.reshape(-1, side * side)

        dx, dy, dz = (around(t) - here[:, a, None] for a, t in enumerate(tables))
        squared = dx * dx + dy * dy + dz * dz
        squared = jnp.where(present[:, None] & (squared <= limit), squared, jnp.float32(jnp.inf))
        return smallest(squared, jnp.maximum(around(ids), 0), k)

    count = points.shape[0]
    size = max(1, min(_BLOCK, count))

    def split(a):
        return jnp.pad(a, ((0, -count % size), *((0, 0),) * (a.ndim - 1))).reshape(-1, size, *a.shape[1:])

    found = lax.map(search, jax.tree.map(split, (points, jnp.stack([row, column], axis=1), valid)))
    squared, index = (a.reshape(-1, k)[:count] for a in found)
    reach = jnp.sqrt(jnp.minimum(squared[:, -1], limit))
    outside = distance_outside(points, valid, row, column, grid_hw=grid_hw, half_width=half_width)
    distinct = jnp.sum(ids >= 0) == jnp.sum(valid)  # two points at one pixel hide each other
    return squared, index, valid & distinct & ((reach < outside) | (outside == jnp.inf))


def distance_outside(
    points: jax.Array,
    valid: jax.Array,
    row: jax.Array,
    column: jax.Array,
    *,
    grid_hw: tuple[int, int],
    half_width: int,
) -> jax.Array:
    """A lower bound on the distance from each point to any valid point outside its window: (P,) float32.

    Points beyond a line of pixels have a smallest and a largest slope x/z and y/z. With z > 0 they lie within
    the half-spaces y ≥ s_min·z and y ≤ s_max·z, no nearer than their faces. A pinhole camera makes these
    half-spaces touch the window, whatever the depths; another camera only makes the bound smaller. inf where
    the window holds the whole cloud.
    """
    infinite = jnp.float32(jnp.inf)
    z = jnp.where(points[:, 2] > 0, points[:, 2], jnp.float32(1.0))
    # Both signs, so that only smallest slopes are needed and the camera's axes may point either way.
    own = jnp.stack([points[:, 0], points[:, 1], -points[:, 0], -points[:, 1]])
    slope = jnp.where(valid[None], own / z[None], infinite)
    bound = jnp.full(valid.shape, infinite)
    for line, size in ((row, grid_hw[0]), (column, grid_hw[1])):
        least = jnp.full((4, size), infinite).at[:, line].min(slope)
        ahead = jnp.arange(size)[None, :] - jnp.arange(size)[:, None]
        for beyond in (ahead > half_width, ahead < -half_width):
            s = jnp.min(jnp.where(beyond[None], least[:, None, :], infinite), axis=2)[:, line]
            empty = jnp.isinf(s)
            s = jnp.where(empty, jnp.float32(0.0), s)
            clear = s * z[None] - own - _ROUNDING * (jnp.abs(s * z[None]) + jnp.abs(own))
            clear = clear * jnp.float32(1 - _ROUNDING) / jnp.sqrt(1 + s * s)
            bound = jnp.minimum(bound, jnp.max(jnp.where(empty, infinite, clear), axis=0))
    return jnp.where(jnp.all((points[:, 2] > 0) | ~valid), bound, -infinite)
