"""From patch scores to anomaly maps: upsampling, interpolation over the surface, blur, undoing a frame.

One function takes one map; batch with ``jax.vmap`` or ``jax.lax.map``. The map of a sample is the sum of its
upsampled 2D grid and its blurred 3D grid (METHOD section 6).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from muscjax import geometry
from muscjax.config import MapConfig
from muscjax.errors import InputError
from muscjax.types import Array, Frame

_HIGHEST = jax.lax.Precision.HIGHEST
IDW_EPSILON = 1e-8  # added to the squared distance

# Pillow's GaussianBlur(4) is three boxes of radius 3.4375: seven whole pixels, a share of one at each end.
_BOX_RADIUS = 3
_BOX_WIDTH = 7.875
_BOX_PASSES = 3
_FIXED_BITS = 24
_FIXED_WHOLE = int((1 << _FIXED_BITS) / _BOX_WIDTH)
_FIXED_SHARE = ((1 << _FIXED_BITS) - (2 * _BOX_RADIUS + 1) * _FIXED_WHOLE) // 2

_REACH = 4.0  # of a cell in ``gaussian_weights``, standard deviations
_FEW = 3  # neighbours up to which insertion beats selection; its fused program grows with their square
_GROUP = 8  # centres whose minimum stands for them in the first search
_BLOCK = 16  # group minima held at a time


def patch_of_pixel(pixel: Array, image_hw: tuple[int, int], grid_hw: tuple[int, int]) -> Array:
    """Flat patch of each flat pixel, ⌊row·h/H⌋·w + ⌊col·w/W⌋: (...,) int32 to (...,) int32."""
    (height, width), (h, w) = image_hw, grid_hw
    pixel = jnp.asarray(pixel)
    row, column = pixel // width, pixel % width
    return (row * h // height) * w + column * w // width


def corner_weights(size: int, n: int) -> np.ndarray:
    """(size, n) float32, the share of each of ``n`` cells in each of ``size`` pixels."""
    position = np.arange(size) * ((n - 1) / max(size - 1, 1))
    return np.maximum(1 - np.abs(position[:, None] - np.arange(n)[None]), 0).astype(np.float32)


def gaussian_weights(size: int, n: int, *, spread: float) -> np.ndarray:
    """(size, n) float32, a Gaussian around the middle of each of ``n`` cells that tile ``size`` pixels.

    A patch sees all of its area, and with overlapping patches its neighbours' as well: its score belongs to a
    bell around its middle rather than to a point. Each pixel's weights add up to 1, so a constant grid stays
    constant to the edge, and a map is no higher than its highest cell.

    spread: standard deviation, cells; beyond four of them and half a cell a cell counts nothing.
    """
    weights = _bells(size, n, spread, 0.5)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _bells(size: int, n: int, spread: float, beyond: float) -> np.ndarray:
    """(size, n) float64, Gaussians of height 1; 0 beyond four deviations and ``beyond`` cells.

    Pixels outside of the outermost middles count as lying on them.
    """
    middle = (np.arange(size) + 0.5) * (n / size) - 0.5
    away = (np.clip(middle, 0, n - 1)[:, None] - np.arange(n)[None]) / spread
    return np.where(np.abs(away) <= _REACH + beyond / spread, np.exp(-0.5 * away**2), 0)


def _brick_bells(hw: tuple[int, int], grid_hw: tuple[int, int], spread: float) -> Any:
    """Of a quincunx' even and odd rows of cells: (H, h / 2) and (W, w) bells, float64.

    The middles of all patches lie on a grid with twice as many columns, and every second of its places is
    taken: the nearest one of a pixel may be a row further than on a full grid.
    """
    rows, columns = (
        _bells(size, n, spread, 1.5) for size, n in zip(hw, (grid_hw[0], 2 * grid_hw[1]), strict=True)
    )
    return [(rows[:, odd::2], columns[:, odd::2]) for odd in (0, 1)]


@jax.named_scope("maps.upsample_bricks")
def upsample_bricks(grid: Array, hw: tuple[int, int], *, spread: float) -> Array:
    """A Gaussian around the middle of each patch of ``overlap.quincunx``: (h, w) float32 to (H, W).

    Even rows of the grid lie half a cell to the left of odd ones. Each pixel's weights add up to 1.

    spread: standard deviation, rows of the grid.
    """
    chex.assert_rank(grid, 2)
    halves = _brick_bells(hw, (grid.shape[0], grid.shape[1]), spread)
    total = sum(np.outer(rows.sum(axis=1), columns.sum(axis=1)) for rows, columns in halves)
    spread_out = [
        _apply_axes(jnp.asarray(grid)[odd::2], rows.astype(np.float32), columns.astype(np.float32))
        for odd, (rows, columns) in enumerate(halves)
    ]
    return (spread_out[0] + spread_out[1]) / jnp.asarray(total, jnp.float32)


@jax.named_scope("maps.upsample_grid")
def upsample_grid(grid: Array, hw: tuple[int, int], *, weights: Callable = corner_weights) -> Array:
    """Bilinear with aligned corners: (h, w) float32 to (H, W).

    The outermost cells lie on the outermost pixels. An axis with one cell is constant; an axis of one pixel
    takes the first cell.

    weights: of an axis' pixels and cells, (size, n) to (size, n) float32; ``corner_weights``, or what
    ``axis_weights`` gives for another ``MapConfig``.
    """
    chex.assert_rank(grid, 2)
    rows, columns = (weights(size, n) for size, n in zip(hw, grid.shape, strict=True))
    return _apply_axes(jnp.asarray(grid), rows, columns)


def upsample(grid: Array, hw: tuple[int, int], config: MapConfig) -> Array:
    """(h, w) float32 to (H, W) by the configuration's ``cells``."""
    if config.cells == "bricks":
        return upsample_bricks(grid, hw, spread=config.spread)
    return upsample_grid(grid, hw, weights=axis_weights(config))


def cell_shares(
    config: MapConfig, hw: tuple[int, int], grid_hw: tuple[int, int], at: tuple[int, int]
) -> np.ndarray:
    """(h·w,) float32: the share of each cell in the pixel ``at`` (row, column) of ``upsample``."""
    if config.cells != "bricks":
        rows, columns = (
            axis_weights(config)(size, n)[place] for size, n, place in zip(hw, grid_hw, at, strict=True)
        )
        return np.outer(rows, columns).ravel()
    shares = np.zeros(grid_hw)
    for odd, (rows, columns) in enumerate(_brick_bells(hw, grid_hw, config.spread)):
        shares[odd::2] = np.outer(rows[at[0]], columns[at[1]])
    return (shares / shares.sum()).astype(np.float32).ravel()


def axis_weights(config: MapConfig) -> Callable[[int, int], np.ndarray]:
    """What ``upsample_grid`` takes for this configuration's ``cells``."""
    if config.cells == "corners":
        return corner_weights
    return functools.partial(gaussian_weights, spread=config.spread)


def _apply_axes(grid: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """rows (H, h) · grid (h, w) · columnsᵀ (w, W)."""
    taller = jnp.matmul(jnp.asarray(rows), grid, precision=_HIGHEST)
    return jnp.matmul(taller, jnp.asarray(columns.T), precision=_HIGHEST)


@jax.named_scope("maps.interpolate_points")
def interpolate_points(
    scores: Array, centers: Array, centers_valid: Array, points: Array, valid: Array, *, neighbours: int = 3
) -> Array:
    """Inverse-distance weighting of the nearest centres' scores, weight 1 / (d² + 1e-8).

    The search is exact, by direct differences; ties go to the lowest index.

    Args:
        scores: (G,) float32.
        centers: (G, 3) float32, normalised coordinates.
        centers_valid: (G,) bool.
        points: (P, 3) float32.
        valid: (P,) bool.
        neighbours: k. Fewer valid centres: those there are.

    Returns:
        (P,) float32, 0 where the point is not valid or no centre is.
    """
    chex.assert_shape([centers, points], (None, 3))
    scores, centers, points = jnp.asarray(scores), jnp.asarray(centers), jnp.asarray(points)
    usable = jnp.asarray(centers_valid)
    # A centre at infinity is never among the nearest.
    centers = jnp.where(usable[:, None], centers, jnp.float32(jnp.inf))
    scores = jnp.where(usable, scores, 0)
    if neighbours <= _FEW:
        squared, score = _few_nearest(scores, centers, points, neighbours)
    else:
        index, distance = geometry.nearest(points, centers, usable, neighbours)
        squared, score = (distance * distance).T, scores[index].T
    share = 1 / (squared + jnp.float32(IDW_EPSILON))
    total = jnp.sum(share, axis=0)
    found = jnp.asarray(valid) & (total > 0)
    return jnp.where(found, jnp.sum(share * score, axis=0) / jnp.where(found, total, 1), 0)


def _few_nearest(scores: Array, centers: Array, points: Array, count: int) -> tuple[Array, Array]:
    """Squared distances and scores of the nearest centres: (count, P) each; inf where missing.

    Sorts nothing: the k nearest centres lie in the k groups of eight with the smallest minima, so a walk over
    the centres finds these groups, and a second one over their members the neighbours. Groups are runs of
    consecutive centres, so that ties keep their order. Memory is O(P), whatever G is.
    """
    pad = -centers.shape[0] % (_GROUP * _BLOCK)
    centers = jnp.pad(centers, ((0, pad), (0, 0)), constant_values=jnp.inf)
    members = centers.reshape(-1, _GROUP, 3)
    query = (points[:, 0], points[:, 1], points[:, 2])
    group, exists = _nearest_groups(query, members, count)
    member_scores = jnp.pad(scores, (0, pad)).reshape(-1, _GROUP, 1)
    table = jnp.concatenate([members, member_scores], axis=-1).reshape(-1, _GROUP * 4).T
    return _nearest_members(query, table, group, exists)


def _squared(query: tuple[Array, ...], center: tuple[Array, ...]) -> Array:
    dx, dy, dz = (q - c for q, c in zip(query, center, strict=True))
    return dx * dx + dy * dy + dz * dz


def _insert(kept: list[Array], carried: list[Array], value: Array, item: Array) -> None:
    """Puts ``value`` in its place of the ascending ``kept``, and ``item`` in the same place of ``carried``.

    Strictly smaller values only, so the first of equal ones stays first.
    """
    below = [value < other for other in kept]
    for place in reversed(range(len(kept))):
        for row, new in ((kept, value), (carried, item)):
            row[place] = jnp.where(below[place], new, row[place])
            if place:
                # Selected with the values from before this insertion: places are filled from the last one.
                row[place] = jnp.where(below[place - 1], row[place - 1], row[place])


def _nearest_groups(query: tuple[Array, ...], members: Array, count: int) -> tuple[Array, Array]:
    """The groups with the smallest minima, by ascending group number: (count, P) int32, and which exist."""
    blocks = jnp.transpose(members.reshape(-1, _BLOCK, _GROUP, 3), (0, 2, 3, 1))[..., None]
    rows = tuple(q[None] for q in query)

    def step(state, block):
        kept, groups = list(state[0]), list(state[1])
        corners, first = block
        minimum = _squared(rows, tuple(corners[0]))
        for corner in corners[1:]:
            other = _squared(rows, tuple(corner))
            # Not jnp.minimum: carrying NaN through costs as much again on a CPU.
            minimum = jnp.where(other < minimum, other, minimum)
        # Without the barrier every one of the outputs computes the distances for itself.
        minimum = jax.lax.optimization_barrier(minimum)
        for row in range(_BLOCK):
            _insert(kept, groups, minimum[row], first + row)
        return (tuple(kept), tuple(groups)), None

    size = query[0].shape
    start = (
        (jnp.full(size, jnp.inf, jnp.float32),) * count,
        (jnp.full(size, members.shape[0], jnp.int32),) * count,  # past the end: no group
    )
    first = jnp.arange(blocks.shape[0], dtype=jnp.int32) * _BLOCK
    (_, groups), _ = jax.lax.scan(step, start, (blocks, first))
    group = jnp.sort(jnp.stack(groups), axis=0)
    return group, group < members.shape[0]


def _nearest_members(
    query: tuple[Array, ...], table: Array, group: Array, exists: Array
) -> tuple[Array, Array]:
    """Squared distances, inf where missing, and scores of the nearest members: (count, P) each.

    ``table`` (4 · members of a group, groups) holds x, y, z and score of each member.
    """
    size = query[0].shape
    kept = [jnp.full(size, jnp.inf, jnp.float32)] * len(group)
    carried = [jnp.zeros(size, jnp.float32)] * len(group)
    for number, there in zip(group, exists, strict=True):
        member = table[:, jnp.where(there, number, 0)]
        for k in range(0, len(table), 4):
            distance = _squared(query, tuple(member[k : k + 3]))
            _insert(kept, carried, jnp.where(there, distance, jnp.inf), member[k + 3])
        kept, carried = map(list, jax.lax.optimization_barrier((kept, carried)))
    return jnp.stack(kept), jnp.stack(carried)


def scatter_to_grid(values: Array, pixel: Array, valid: Array, hw: tuple[int, int]) -> Array:
    """Values of points to their pixels, (P,) to (H, W); 0 elsewhere, the highest where points share one."""
    size = hw[0] * hw[1]
    target = jnp.where(jnp.asarray(valid), jnp.asarray(pixel), size)
    lowest = jnp.full((size,), -jnp.inf, jnp.float32)
    grid = lowest.at[target].max(jnp.asarray(values), mode="drop")
    return jnp.where(grid == -jnp.inf, 0, grid).reshape(hw)


@jax.named_scope("maps.blur")
def blur(map: Array, *, form: Literal["uint8", "float", "none"] = "uint8") -> Array:
    """Pillow's GaussianBlur(4): three box passes along rows, then three along columns, edges replicated.

    ``uint8`` (``released``): the map is scaled to its maximum and truncated to 8 bit, and every pass rounds
    to 8 bit, exactly as Pillow does. ``float`` (``paper``): the same boxes without rounding. The two differ
    by less than 4 / 255 of the maximum (1 by truncation, ½ by each pass), on smooth maps by less than 1.5.

    Args:
        map: (H, W) float32 of any size, not negative; in the form ``uint8`` a negative value counts as 0.

    Returns:
        (H, W) float32; an all-zero map stays zero.
    """
    chex.assert_rank(map, 2)
    map = jnp.asarray(map)
    if form == "none":
        return map
    if form == "float":
        share = (1 - (2 * _BOX_RADIUS + 1) / _BOX_WIDTH) / 2
        return _passes(map, lambda whole, ends: whole * (1 / _BOX_WIDTH) + ends * share)
    if form != "uint8":
        raise InputError(f"maps.blur: found {form!r}, expected one of uint8, float, none")
    highest = jnp.max(map)
    scale = jnp.where(highest > 0, highest, 1)
    levels = jnp.clip(map / scale * 255, 0, 255).astype(jnp.uint32)
    return blur_uint8(levels).astype(jnp.float32) / 255 * scale


def blur_uint8(levels: Array) -> Array:
    """The integer function inside ``blur``: (H, W) uint32 in 0..255 to the same."""
    whole_weight, share, half = (jnp.uint32(v) for v in (_FIXED_WHOLE, _FIXED_SHARE, 1 << (_FIXED_BITS - 1)))

    # Nothing wraps: the nine weights sum to at most 2^24, so a pass holds at most 255·2^24 + 2^23 < 2^32;
    # shifted, that is at most 255 again.
    def combine(whole: Array, ends: Array) -> Array:
        return (whole * whole_weight + ends * share + half) >> jnp.uint32(_FIXED_BITS)

    return _passes(jnp.asarray(levels), combine)


def _passes(map: Array, combine: Callable[[Array, Array], Array]) -> Array:
    """Box passes along rows, then columns: ``combine`` of the sums of whole pixels and of the two ends."""
    for axis in (1, 0):
        one_pass = functools.partial(_box_pass, axis=axis, combine=combine)
        map = jax.lax.fori_loop(0, _BOX_PASSES, lambda _, m, one_pass=one_pass: one_pass(m), map)
    return map


def _box_pass(map: Array, *, axis: int, combine: Callable[[Array, Array], Array]) -> Array:
    reach, size = _BOX_RADIUS + 1, map.shape[axis]
    width = [(0, 0), (0, 0)]
    width[axis] = (reach, reach)
    padded = jnp.pad(map, width, mode="edge")
    taps = [jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(2 * reach + 1)]
    return combine(sum(taps[2:-1], taps[1]), taps[0] + taps[-1])


@jax.named_scope("maps.to_source")
def to_source(map: Array, frame: Frame) -> Array:
    """A map in the geometry of the source scan, undoing resize, crop and padding: (H, W) to (h, w).

    Bilinear between pixel centres, as the scan was resized; antialiased where it shrinks. Source pixels
    outside the crop are 0.

    Args:
        map: (H, W) float32, ``frame.working_hw``.
        frame: static.

    Raises:
        InputError: the map's shape is not ``working_hw``, or the crop leaves the padded source.
    """
    map = jnp.asarray(map)
    if map.shape != frame.working_hw:
        raise InputError(f"map: found shape {map.shape}, expected working_hw {frame.working_hw}")
    top, bottom, left, right = frame.pad
    height, width = frame.source_hw
    padded_hw = (top + height + bottom, left + width + right)
    y, x, h, w = frame.crop or (0, 0, *padded_hw)
    if min(y, x) < 0 or min(h, w) < 1 or y + h > padded_hw[0] or x + w > padded_hw[1]:
        raise InputError(f"frame.crop: found {frame.crop}, expected a part of the padded source {padded_hw}")
    corner = jnp.asarray((y, x), jnp.int32)
    whole = _placed(map, corner, hw=(h, w), canvas_hw=padded_hw)
    return whole[top : top + height, left : left + width]


@functools.partial(jax.jit, static_argnames=("hw", "canvas_hw"))
def _placed(map: Array, corner: Array, *, hw: tuple[int, int], canvas_hw: tuple[int, int]) -> Array:
    """The map at size ``hw`` on an empty canvas; one program wherever the windows of a set lie."""
    cut = jax.image.resize(map, hw, "linear", precision=_HIGHEST)
    return jax.lax.dynamic_update_slice(jnp.zeros(canvas_hw, cut.dtype), cut, corner)
