"""Clouds, farthest points and nearest neighbours.

Everything that takes ``jax.Array`` is pure and written for one cloud; batch it with ``jax.vmap`` or
``jax.lax.map``. ``cloud_from_xyz`` and its helpers run on the host in NumPy.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from muscjax.errors import InputError
from muscjax.selection import smallest
from muscjax.types import Cloud, Surface

_ORIGIN_RADIUS_SQ = 1e-3  # of the CUDA operator that the released code calls


def bucket_size(count: int, *, minimum: int = 256) -> int:
    """The padded size of a cloud: four steps per octave (4096, 5120, 6144, 7168, 8192, ...).

    A run whose clouds differ in size compiles one program per bucket. Padding costs at most 25 %.

    >>> [bucket_size(n) for n in (0, 257, 7100, 8193)]
    [256, 320, 7168, 10240]
    """
    if count <= minimum:
        return minimum
    step = max(1, (1 << ((count - 1).bit_length() - 1)) // 4)
    return -(-count // step) * step


def resample_index(source: int, target: int) -> np.ndarray:
    """Source index of each target position, nearest rule floor(i · source / target): (target,) int64."""
    return np.arange(target) * source // target


def resample_nearest(grid: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """(h, w, ...) to (H, W, ...) by the rule of ``resample_index``; values are copied, never mixed."""
    rows, columns = resample_index(grid.shape[0], hw[0]), resample_index(grid.shape[1], hw[1])
    return grid[rows[:, None], columns[None, :]]


def foreground_of(xyz_m: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """(H, W) bool: all three raw coordinates differ from 0 (METHOD section 0), and the mask where given."""
    present = (xyz_m != 0).all(axis=-1)
    return present if mask is None else present & mask.astype(bool)


def normalise(points: np.ndarray) -> np.ndarray:
    """(P, 3) to centroid 0 and farthest point at distance 1, float32; identical points all go to 0."""
    if len(points) == 0:
        return np.zeros((0, 3), np.float32)
    offsets = points.astype(np.float64) - points.astype(np.float64).mean(axis=0)
    radius = np.sqrt((offsets**2).sum(axis=1).max())
    # Below the rounding of the coordinates themselves the radius is noise, not a scale.
    if radius <= np.finfo(np.float32).eps * np.abs(points).max():
        return np.zeros(points.shape, np.float32)
    return (offsets / radius).astype(np.float32)


def cloud_from_xyz(
    xyz_m: np.ndarray,
    *,
    foreground: np.ndarray | None = None,
    size: int | None = None,
    sensor_xyz_m: np.ndarray | None = None,
    sensor_foreground: np.ndarray | None = None,
    sensor_size: int | None = None,
) -> Cloud:
    """The cloud of one organised scan, in raster order, padded (host side, NumPy leaves).

    Args:
      xyz_m: (H, W, 3) float, metres, camera frame, at working size; missing points are 0.
      foreground: (H, W) bool, the object; None: every present point.
      size: rows of the padded cloud; None: ``bucket_size`` of the foreground.
      sensor_xyz_m: (h, w, 3), the grid that ``xyz_m`` is the nearest resampling of. When given, the cloud
        carries a ``Surface``.
      sensor_foreground: (h, w) bool, likewise.
      sensor_size: rows of the padded surface; None: ``bucket_size``.

    Returns:
      A ``Cloud``; without foreground it has no valid point.

    Raises:
      InputError: a shape that does not fit, a coordinate that is not finite, a size that is too small, or a
        working point that the sensor's foreground lacks.
    """
    points_m, pixel = _present_points("xyz_m", xyz_m, foreground)
    count = len(points_m)
    size = bucket_size(count) if size is None else size
    if count > size:
        raise InputError(f"size: found {size}, expected at least the {count} foreground points")
    surface = None
    if sensor_xyz_m is not None:
        hw = xyz_m.shape[0], xyz_m.shape[1]
        surface = _surface(sensor_xyz_m, sensor_foreground, sensor_size, pixel=pixel, hw=hw, size=size)
    return Cloud(
        points_m=_pad(points_m, size),
        points=_pad(normalise(points_m), size),
        valid=_first(count, size),
        pixel=_pad(pixel, size),
        surface=surface,
    )


def _surface(
    xyz_m: np.ndarray,
    foreground: np.ndarray | None,
    padded: int | None,
    *,
    pixel: np.ndarray,
    hw: tuple[int, int],
    size: int,
) -> Surface:
    """The sensor grid's foreground, and the row in it of each working point (``pixel`` of an ``hw`` grid)."""
    points_m, sensor_pixel = _present_points("sensor_xyz_m", xyz_m, foreground)
    count = len(points_m)
    padded = bucket_size(count) if padded is None else padded
    if count > padded:
        raise InputError(f"sensor_size: found {padded}, expected at least the {count} foreground points")
    height, width = xyz_m.shape[:2]
    rows, columns = np.divmod(pixel, hw[1])
    source = resample_index(height, hw[0])[rows] * width + resample_index(width, hw[1])[columns]
    row = np.searchsorted(sensor_pixel, source).astype(np.int32)
    lost = np.count_nonzero(sensor_pixel[np.minimum(row, count - 1)] != source) if count else len(source)
    if lost:
        raise InputError(f"sensor_xyz_m: found no foreground at {lost} of the {len(source)} working points")
    return Surface(
        points_m=_pad(points_m, padded),
        valid=_first(count, padded),
        pixel=_pad(sensor_pixel, padded),
        row=_pad(row, size),
    )


def _present_points(name: str, xyz_m: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Foreground points (P, 3) float32 and their flat pixels (P,) int32, in raster order."""
    if xyz_m.ndim != 3 or xyz_m.shape[2] != 3:
        raise InputError(f"{name}: found shape {xyz_m.shape}, expected (H, W, 3)")
    if mask is not None and mask.shape != xyz_m.shape[:2]:
        raise InputError(f"{name}: found a foreground of shape {mask.shape}, expected {xyz_m.shape[:2]}")
    pixel = np.flatnonzero(foreground_of(xyz_m, mask))
    points = xyz_m.reshape(-1, 3)[pixel].astype(np.float32)
    bad = np.count_nonzero(~np.isfinite(points).all(axis=1))
    if bad:
        raise InputError(f"{name}: found {bad} foreground points that are not finite, expected finite metres")
    return points, pixel.astype(np.int32)


def _first(count: int, size: int) -> Any:  # Any: host arrays stand where types say jax.Array
    return np.arange(size) < count


def _pad(rows: np.ndarray, size: int) -> Any:
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


def farthest_points(
    points: jax.Array, valid: jax.Array, count: int, *, skip_origin: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Farthest point sampling: each pick is farthest from those before it (section III-A).

    Starts at the first valid row; the first index wins among ties.

    Args:
      points: (P, 3) float32.
      valid: (P,) bool.
      count: G, static.
      skip_origin: never select a point with |p|² ≤ 1e-3 after the first, as the CUDA operator behind the
        released code does; off in the paper.

    Returns:
      index (G,) int32, and distinct (G,) bool: False where no further point at a positive distance exists;
      such slots repeat the first index.
    """
    chex.assert_shape(points, (None, 3))
    points, valid = jnp.asarray(points), jnp.asarray(valid)
    first = jnp.argmax(valid).astype(jnp.int32)
    allowed = valid
    if skip_origin:
        allowed = valid & (jnp.sum(points * points, axis=1) > jnp.float32(_ORIGIN_RADIUS_SQ))
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    row = jnp.arange(points.shape[0], dtype=jnp.int32)

    def step(carry, _):
        nearest_sq, last = carry
        dx, dy, dz = x - x[last], y - y[last], z - z[last]
        nearest_sq = jnp.minimum(nearest_sq, dx * dx + dy * dy + dz * dz)
        # Two plain reductions vectorise; argmax does not (twelve times slower on a CPU).
        farthest_sq = jnp.max(nearest_sq)
        pick = jnp.min(jnp.where(nearest_sq == farthest_sq, row, row.shape[0]))
        pick = jnp.where(farthest_sq > 0, pick, first)
        return (nearest_sq, pick), (pick, farthest_sq > 0)

    start = jnp.where(allowed, jnp.float32(jnp.inf), jnp.float32(-1.0))
    _, (picks, further) = lax.scan(step, (start, first), None, length=count - 1)
    index = jnp.concatenate([first[None], picks])
    distinct = jnp.concatenate([jnp.any(valid)[None], further])
    return index, distinct


def nearest(
    queries: jax.Array,
    points: jax.Array,
    valid: jax.Array,
    k: int,
    *,
    radius: jax.Array | float | None = None,
    query_valid: jax.Array | None = None,
    chunk: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """The k nearest valid points of each query: exact, by direct squared differences.

    Ascending; the lowest index first among ties, so a query that is itself a point finds itself first
    (unless a duplicate precedes it). Direct differences, because the expanded square loses the order of
    near neighbours. Large clouds are searched leaf by leaf (see ``_search``) until no leaf that is left can
    hold a nearer point; nothing is assumed about a camera or a grid.

    Args:
      queries: (Q, 3) float32.
      points: (P, 3) float32.
      valid: (P,) bool.
      k: static; may exceed P.
      radius: points farther than this are left out (hybrid search); a scalar in the unit of the points.
      query_valid: (Q,) bool; no time is spent on the other queries, whose answer is empty.
      chunk: queries that are searched together, static. It bounds the memory, not the result.

    Returns:
      indices (Q, k) int32 and Euclidean distances (Q, k) float32. Where fewer than k points exist, the
      remaining slots repeat the nearest index at distance inf (index 0 where there is none).
    """
    chex.assert_shape([queries, points], (None, 3))
    queries, points, valid = jnp.asarray(queries), jnp.asarray(points), jnp.asarray(valid)
    count = queries.shape[0]
    query_valid = jnp.ones((count,), bool) if query_valid is None else jnp.asarray(query_valid)
    limit = jnp.float32(jnp.inf) if radius is None else jnp.square(jnp.asarray(radius, jnp.float32))
    # Few queries lie far apart, each with its own leaves; many lie close together and share them.
    tile = 1 if 4 * count <= points.shape[0] else _LEAF

    low = jnp.min(jnp.where(valid[:, None], points, jnp.inf), axis=0)
    high = jnp.max(jnp.where(valid[:, None], points, -jnp.inf), axis=0)
    leaves = _leaves(points, valid, low, high)
    order = jnp.argsort(jnp.where(query_valid, hilbert_index(queries, low, high), _BEYOND))
    order = order if tile > 1 else jnp.arange(count)
    size = -(-min(count, chunk) // tile) * tile
    padding = (0, -count % size)
    blocks = jnp.pad(queries[order], (padding, (0, 0))).reshape(-1, size // tile, tile, 3)
    present = jnp.pad(query_valid[order], padding).reshape(-1, size // tile, tile)

    squared, index = lax.map(lambda block: _search(*block, leaves, k, limit), (blocks, present))
    place = jnp.zeros((count,), jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32))
    squared, index = (a.reshape(-1, k)[place] for a in (squared, index))
    index = jnp.where(jnp.isfinite(squared), index, index[:, :1])
    return index, jnp.sqrt(squared)


_LEAF = 32  # points; smaller leaves prune more and cost more bookkeeping
_ROUND = 32  # leaves that a tile of queries looks at together
_BEYOND = 1 << 30  # sorts after every Hilbert index


@chex.dataclass(frozen=True)
class _Leaves:
    """Points in runs along a space-filling curve, each run with its bounding box."""

    x: jax.Array  # (L, 32) float32, and so y and z; inf where there is no point
    y: jax.Array
    z: jax.Array
    ids: jax.Array  # (L, 32) int32, rows of the cloud
    low: jax.Array  # (L, 3) float32; inf for an empty leaf
    high: jax.Array  # (L, 3) float32; -inf for an empty leaf


def _leaves(points: jax.Array, valid: jax.Array, low: jax.Array, high: jax.Array) -> _Leaves:
    order = jnp.argsort(jnp.where(valid, hilbert_index(points, low, high), _BEYOND))
    padding = (0, -points.shape[0] % _LEAF)
    there = jnp.pad(valid[order], padding).reshape(-1, _LEAF, 1)
    xyz = jnp.pad(points[order], (padding, (0, 0))).reshape(-1, _LEAF, 3)
    xyz = jnp.where(there, xyz, jnp.inf)
    return _Leaves(
        x=xyz[..., 0],
        y=xyz[..., 1],
        z=xyz[..., 2],
        ids=jnp.pad(order.astype(jnp.int32), padding).reshape(-1, _LEAF),
        low=jnp.min(xyz, axis=1),
        high=jnp.max(jnp.where(there, xyz, -jnp.inf), axis=1),
    )


def _search(
    queries: jax.Array, present: jax.Array, leaves: _Leaves, k: int, limit: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """k smallest squared distances and ids, (T·t, k), of T tiles of t queries (T, t, 3).

    Each round a tile looks at its nearest leaves that are left. It ends when, for every query, the nearest
    leaf that is left is farther than the k-th neighbour found: that proves the answer.
    """
    tiles, per_tile, _ = queries.shape
    count = leaves.low.shape[0]
    take = min(_ROUND, count)
    low = jnp.min(jnp.where(present[..., None], queries, jnp.inf), axis=1)[:, None]
    high = jnp.max(jnp.where(present[..., None], queries, -jnp.inf), axis=1)[:, None]
    gap = jnp.maximum(jnp.maximum(leaves.low[None] - high, low - leaves.high[None]), 0)
    # The box's distance is rounded otherwise than a point's; the margin is eight roundings.
    bound = jnp.sum(gap * gap, axis=-1) * jnp.float32(1 - 1e-6)
    numbers = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None, :], bound.shape)
    x, y, z = (queries[..., a, None] for a in range(3))

    def unfinished(state):
        bound, squared, _ = state
        worst = jnp.where(present, jnp.minimum(squared[:, k - 1].reshape(present.shape), limit), -1.0)
        left = jnp.min(bound, axis=1)
        return jnp.any(jnp.isfinite(left) & (left <= jnp.max(worst, axis=1)))

    def look(state):
        bound, squared, index = state
        nearest_bound, chosen = smallest(bound, numbers, take)
        last = nearest_bound[:, -1:], chosen[:, -1:]
        done = (bound < last[0]) | ((bound == last[0]) & (numbers <= last[1]))
        empty = ~jnp.isfinite(nearest_bound)[:, None, :, None]
        dx, dy, dz = (leaves[a][chosen].reshape(tiles, 1, -1) - q for a, q in (("x", x), ("y", y), ("z", z)))
        found = (dx * dx + dy * dy + dz * dz).reshape(tiles, per_tile, take, _LEAF)
        found = jnp.where(empty | (found > limit), jnp.inf, found).reshape(tiles * per_tile, -1)
        ids = jnp.broadcast_to(leaves.ids[chosen][:, None], (tiles, per_tile, take, _LEAF))
        candidates = jnp.concatenate([squared, found], axis=1)
        ids = jnp.concatenate([index, ids.reshape(tiles * per_tile, -1)], axis=1)
        squared, index = smallest(candidates, ids, k)
        return jnp.where(done, jnp.inf, bound), squared, index

    rows = tiles * per_tile
    start = bound, jnp.full((rows, k), jnp.inf, jnp.float32), jnp.zeros((rows, k), jnp.int32)
    _, squared, index = lax.while_loop(unfinished, look, start)
    return squared, index


def hilbert_index(points: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """(P, 3) to (P,) int32: place along a Hilbert curve of 1024³ cells over the cube at ``low``.

    Consecutive places are neighbours in space. J. Skilling, "Programming the Hilbert curve" (2004).
    """
    side = jnp.maximum(jnp.max(high - low), jnp.finfo(jnp.float32).tiny)
    cell = jnp.clip((points - low[None]) / side * 1024, 0, 1023).astype(jnp.int32)
    axes = [cell[:, a] for a in range(3)]
    for bit in reversed(range(1, 10)):
        lower = (1 << bit) - 1
        for a in range(3):
            set_ = (axes[a] >> bit) & 1 == 1
            swap = (axes[0] ^ axes[a]) & lower
            axes[0], other = (
                jnp.where(set_, axes[0] ^ lower, axes[0] ^ swap),
                jnp.where(set_, axes[a], axes[a] ^ swap),
            )
            axes[a] = other if a else axes[0]
    axes[1] = axes[1] ^ axes[0]
    axes[2] = axes[2] ^ axes[1]
    turn = jnp.zeros_like(axes[0])
    for bit in reversed(range(1, 10)):
        turn = jnp.where((axes[2] >> bit) & 1 == 1, turn ^ ((1 << bit) - 1), turn)
    index = jnp.zeros_like(turn)
    for bit in reversed(range(10)):
        for a in range(3):
            index = (index << 1) | (((axes[a] ^ turn) >> bit) & 1)
    return index
