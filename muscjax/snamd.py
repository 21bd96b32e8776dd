"""Similarity neighbourhood aggregation with multiple degrees (section III-B, Eq. 5-7).

A token is replaced by a mean of its neighbours, each weighted by how similar it is to the centre, for several
neighbourhood sizes ("degrees") r. ``pool_grid`` does so on a patch grid, ``pool_groups`` on the centres of
point groups. Both return ``(levels, rows, C)``: one level for SNAMD, where the degrees are joined, and one
level per degree with ``combine=separate_degrees``. With ``weight=uniform_weight`` this is average pooling.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from muscjax import place
from muscjax.config import SnamdConfig
from muscjax.types import Array, PointGroups

Weight = Callable[[Array], Array]
Combine = Callable[[list[Array]], Array]

_SMALLEST_NORM = 1e-12  # of torch.nn.functional.normalize


def exp_similarity(distance: Array) -> Array:
    """Eq. 5, exp(-‖f_j - f_c‖₂): any shape of Euclidean distances to the same shape of weights."""
    return jnp.exp(-distance)


def uniform_weight(distance: Array) -> Array:
    """Weight 1 for every neighbour: average pooling."""
    return jnp.ones_like(distance)


def mean_degrees(degrees: list[Array]) -> Array:
    """Degrees, each (rows, C), to one level (1, rows, C): their plain mean (2D, released)."""
    return (sum(degrees[1:], degrees[0]) * (1 / len(degrees)))[None]


def pool_degrees(degrees: list[Array]) -> Array:
    """Degrees, each (rows, C), to one level (1, rows, C): concatenated, then pooled to C (Eq. 7)."""
    joined = jnp.concatenate(degrees, axis=-1)
    return adaptive_average_pool(joined, degrees[0].shape[-1])[None]


def separate_degrees(degrees: list[Array]) -> Array:
    """Degrees, each (rows, C), to one level each (degrees, rows, C), to be scored apart (LNAMD)."""
    return jnp.stack(degrees)


def l2_normalise(x: Array) -> Array:
    """Unit Euclidean norm along the last axis, (..., C) to (..., C); a zero vector stays zero."""
    return x / jnp.maximum(_norm(x), _SMALLEST_NORM)[..., None]


def adaptive_average_pool(x: Array, size: int) -> Array:
    """Averages over ``size`` bins of the last axis: (..., L) to (..., size).

    Bin i covers the positions floor(i·L/size) up to, not including, ceil((i + 1)·L/size), as in PyTorch's
    ``adaptive_avg_pool1d``; bins overlap where ``size`` does not divide L, also where it exceeds L.
    """
    length = x.shape[-1]
    if length % size == 0:
        return jnp.mean(x.reshape(*x.shape[:-1], size, length // size), axis=-1)
    bins = np.arange(size)
    start, stop = bins * length // size, -(-(bins + 1) * length // size)
    total = jnp.zeros((*x.shape[:-1], size), x.dtype)
    for step in range(int((stop - start).max())):
        inside = jnp.asarray(start + step < stop).reshape((1,) * (x.ndim - 1) + (size,))
        total += jnp.where(inside, x[..., np.minimum(start + step, length - 1)], 0)
    share = jnp.asarray(1 / (stop - start), x.dtype)
    return total * share.reshape((1,) * (x.ndim - 1) + (size,))


@jax.named_scope("snamd.pool_grid")
def pool_grid(
    tokens: Array, config: SnamdConfig, *, weight: Weight = exp_similarity, combine: Combine | None = None
) -> Array:
    """Aggregates each token of a patch grid with its r × r window, for every degree r (Eq. 5-7).

    Tokens come as the backbone gives them; the result is L2-normalised per patch. The window is never
    gathered: it is walked as shifts of the grid, and a smaller window's sum is a part of the larger one's.

    ``released``: divided by the sum of the weights, to which cells outside the grid add those of zero
    tokens; degrees averaged. ``paper``: divided by the number of real neighbours (Eq. 6); degrees
    concatenated and pooled to C (Eq. 7).

    Args:
        tokens: (h, w, C) float32.
        config: ``degrees`` odd; ``divide_by``, ``zero_padding``, ``combine_grid`` as said above. With
            ``image`` False the tokens are only L2-normalised.
        weight: Euclidean distance to weight, elementwise; positive at distance 0.
        combine: the degrees' results, each (h·w, C), to (levels, h·w, C); None: as ``combine_grid`` says.

    Returns:
        (levels, h·w, C) float32, unit norm or zero along the last axis.
    """
    chex.assert_rank(tokens, 3)
    tokens = jnp.asarray(tokens)
    h, w, c = tokens.shape
    if not config.image:
        return l2_normalise(tokens).reshape(1, h * w, c)
    combine = combine or {"mean": mean_degrees, "pool": pool_degrees}[config.combine_grid]
    total, weights, cells = _window_sums(tokens, max(config.degrees) // 2, weight, config.zero_padding)
    pooled = []
    for r in config.degrees:
        ring = r // 2
        divisor = weights[ring] if config.divide_by == "weights" else jnp.asarray(cells[ring])
        pooled.append((total[ring] * (1 / divisor)[..., None]).reshape(h * w, c))
    return l2_normalise(combine(pooled))


def _window_sums(
    tokens: Array, radius: int, weight: Weight, zero_padding: bool
) -> tuple[list[Array], list[Array], list[np.ndarray]]:
    """Per window radius 0..radius: weighted sums (h, w, C), sums of weights (h, w), cells counted (h, w)."""
    h, w, _ = tokens.shape
    padded = jnp.pad(tokens, ((radius, radius), (radius, radius), (0, 0)))
    outside = weight(_norm(tokens))  # of a zero token beside each token
    centre = weight(jnp.zeros((h, w), tokens.dtype))
    total, weights, cells = [centre[..., None] * tokens], [centre], [np.ones((h, w), np.float32)]
    for ring in range(1, radius + 1):
        ring_total, ring_weights, ring_cells = total[-1], weights[-1], cells[-1]
        for dy, dx in _half_ring(ring):
            ahead, behind = (
                padded[radius + y : radius + y + h, radius + x : radius + x + w]
                for y, x in ((dy, dx), (-dy, -dx))
            )
            # ‖f_c - f_c+s‖ serves both ends: seen from c + s it is the distance to the token behind.
            weight_ahead = weight(_norm(tokens - ahead))
            weight_behind = _shift(weight_ahead, dy, dx)
            inside_ahead, inside_behind = _inside(h, w, dy, dx), _inside(h, w, -dy, -dx)
            if zero_padding:
                weight_behind = jnp.where(jnp.asarray(inside_behind), weight_behind, outside)
                ring_cells = ring_cells + 2
            else:
                weight_ahead = jnp.where(jnp.asarray(inside_ahead), weight_ahead, 0)
                ring_cells = ring_cells + inside_ahead + inside_behind
            ring_total = ring_total + weight_ahead[..., None] * ahead + weight_behind[..., None] * behind
            ring_weights = ring_weights + weight_ahead + weight_behind
        total.append(ring_total)
        weights.append(ring_weights)
        cells.append(ring_cells.astype(np.float32))
    return total, weights, cells


def _half_ring(ring: int) -> list[tuple[int, int]]:
    """One of each pair of opposite shifts at Chebyshev distance ``ring``."""
    span = range(-ring, ring + 1)
    return [
        (dy, dx) for dy in range(ring + 1) for dx in span if (dy, dx) > (0, 0) and max(dy, abs(dx)) == ring
    ]


def _inside(h: int, w: int, dy: int, dx: int) -> np.ndarray:
    """(h, w) bool: the cell at offset (dy, dx) lies in the grid."""
    y, x = np.arange(h)[:, None] + dy, np.arange(w)[None, :] + dx
    return (y >= 0) & (y < h) & (x >= 0) & (x < w)


def _shift(grid: Array, dy: int, dx: int) -> Array:
    """(h, w) whose cell (y, x) holds ``grid[y - dy, x - dx]``, 0 where that lies outside; dy ≥ 0."""
    h, w = grid.shape
    left, right = max(0, dx), max(0, -dx)
    return jnp.pad(grid, ((dy, 0), (left, right)))[:h, right : right + w]


def _norm(x: Array) -> Array:
    """Euclidean norm of the last axis. A product with ones: XLA's CPU reduction of a minor axis is scalar."""
    ones = jnp.ones(x.shape[-1:], x.dtype)
    return jnp.sqrt(jnp.matmul(x * x, ones, precision=jax.lax.Precision.HIGHEST))


@jax.named_scope("snamd.pool_groups")
def pool_groups(
    tokens: Array,
    groups: PointGroups,
    config: SnamdConfig,
    *,
    curvature_threshold: float | Array,
    weight: Weight = exp_similarity,
    combine: Combine = pool_degrees,
) -> Array:
    """Aggregates each flat group's token with those of the r nearest group centres, for every degree r.

    Tokens are L2-normalised first; nothing is normalised afterwards. A curved group (curvature at or above
    the threshold, compared in float32) keeps its own normalised token. Both presets concatenate the degrees
    and pool them to C (Eq. 7); ``paper`` divides by the number of neighbours, ``released`` by their weights.

    Args:
        tokens: (G, C) float32.
        groups: centres, curvature and validity are read.
        config: ``degrees``, ``divide_by``. With ``points`` False the tokens are only L2-normalised. With
            ``place_distance`` or ``place_facing`` the result has two more channels (``place.of_groups``).
        curvature_threshold: C_thr; may be traced.
        weight: Euclidean distance of normalised tokens to weight, elementwise; positive at distance 0.
        combine: the degrees' results, each (G, C), to (levels, G, C).

    Returns:
        (levels, G, C), or C + 2, float32. Only valid groups are neighbours; where fewer than r exist, those
        that do count. A group that is not valid repeats the first valid one, so that it changes no minimum
        over a sample's groups; without any valid group all is 0.
    """
    chex.assert_rank(tokens, 2)
    unit = l2_normalise(jnp.asarray(tokens))
    valid = jnp.asarray(groups.valid)
    if not config.points:
        return _repeat_first(_placed(unit[None], groups, config), valid)
    own = weight(jnp.zeros(unit.shape[:1], unit.dtype))
    total, weights, count = own[:, None] * unit, own, jnp.ones_like(own)
    found: dict[int, Array] = {}
    count_others = min(max(config.degrees), unit.shape[0]) - 1
    others, exist = place.nearest_others(jnp.asarray(groups.centers), valid, count_others)
    for size in range(1, max(config.degrees) + 1):
        if 2 <= size <= count_others + 1:
            exists = exist[:, size - 2]
            other = unit[others[:, size - 2]]
            similarity = jnp.where(exists, weight(_norm(other - unit)), 0)
            total = total + similarity[:, None] * other
            weights = weights + similarity
            count = count + exists.astype(count.dtype)
        if size in config.degrees:
            divisor = weights if config.divide_by == "weights" else count
            found[size] = total * (1 / divisor)[:, None]
    pooled = combine([found[r] for r in config.degrees])
    curved = jnp.asarray(groups.curvature) >= jnp.asarray(curvature_threshold, jnp.float32)
    pooled = jnp.where(curved[None, :, None], unit[None], pooled)
    return _repeat_first(_placed(pooled, groups, config), valid)


def _placed(features: Array, groups: PointGroups, config: SnamdConfig) -> Array:
    """(levels, G, C), with the place of each group as two more channels where they have a weight."""
    if not (config.place_distance or config.place_facing):
        return features
    where = place.of_groups(
        groups.centers, groups.valid, distance=config.place_distance, facing=config.place_facing
    )
    return jnp.concatenate([features, jnp.broadcast_to(where, (*features.shape[:2], 2))], axis=-1)


def _repeat_first(features: Array, valid: Array) -> Array:
    """(levels, G, C) with the first valid group's row in the place of those that are not valid."""
    first = jnp.where(jnp.any(valid), features[:, jnp.argmax(valid)], 0)
    return jnp.where(valid[None, :, None], features, first[:, None])
