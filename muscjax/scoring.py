"""Mutual scoring (section III-C): whole rows of nearest-patch distances, and their interval average (Eq. 9).

The distances themselves (Eq. 8) come from ``distances``, whose names are part of this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from muscjax.distances import (
    TILE_BYTES,
    Plan,
    min_distances,
    mutual_min_distances,
    plan,
    sample_distances,
    tile_distances,
)
from muscjax.ordering import ascending

__all__ = [
    "TILE_BYTES",
    "Plan",
    "interval_average",
    "interval_size",
    "map_distances",
    "map_rows",
    "min_distances",
    "mutual_min_distances",
    "plain_average",
    "plan",
    "sample_distances",
    "score_against",
    "tile_distances",
]


@jax.named_scope("scoring.map_rows")
def map_rows(
    image: Array | None,
    points: Array | None,
    fn: Callable[[Array | None, Array | None, Array, Array], Any],
    *,
    plan: Plan,
    points_valid: Array | None = None,
    image_cells: Array | None = None,
    point_cells: Array | None = None,
    count: int | Array | None = None,
    precision: str = "float32",
    implementation: str = "xla",
    refine: bool = False,
    window: int | None = None,
) -> Any:
    """Hand every sample's whole rows of distances to ``fn``, a block of samples at a time.

    ``fn(image_rows (B, M, N) | None, point_rows (B, G, N) | None, ref_valid (B, N), ids (B,))`` returns a
    pytree with leading axis B; the blocks come back joined with leading axis N. The sample itself and the
    padding are dropped here, once: their entries hold inf and ``ref_valid`` is False there.

    Args:
        image: (N, M, C) float32 or None.
        points: (N, G, C) float32 or None.
        plan: from ``plan``; with the same tile, both kinds give the same distances to the bit.
        points_valid: (N, G) bool or None.
        image_cells, point_cells: (N, M, 2), (N, G, 2) int32 or None: places on the grid, for ``window``.
        count: samples that are not padding; may be traced.
    """
    given = [x for x in (image, points) if x is not None]
    n = given[0].shape[0]
    count = jnp.asarray(n if count is None else count, jnp.int32)
    kernel: dict[str, Any] = {
        "precision": precision, "implementation": implementation, "refine": refine, "tile": plan.tile,
        "window": window,
    }  # fmt: skip
    sides = ((image, None, image_cells), (points, points_valid, point_cells))
    if plan.kind == "symmetric":
        whole_image, whole_points = (
            None if x is None else mutual_min_distances(x, valid=valid, cells=cells, count=count, **kernel)
            for x, valid, cells in sides
        )
        return map_distances(whole_image, whole_points, fn, block=plan.block, count=count)
    size = max(plan.block // plan.tile, 1) * plan.tile

    def block(own: Array) -> Any:
        tiles = own[:: plan.tile] // plan.tile
        image_rows, point_rows = (
            None
            if x is None
            else lax.map(
                lambda number, x=x, valid=valid, cells=cells: tile_distances(
                    x, number, valid=valid, cells=cells, **kernel
                ),
                tiles,
            ).reshape(size, x.shape[1], n)
            for x, valid, cells in sides
        )
        return hand_out(image_rows, point_rows, fn, own, n, count)

    return map_blocks(block, n, size)


def map_distances(
    image: Array | None,
    points: Array | None,
    fn: Callable[[Array | None, Array | None, Array, Array], Any],
    *,
    block: int,
    count: int | Array | None = None,
) -> Any:
    """``map_rows`` on distances that are there already, such as ``mutual_min_distances`` gives.

    Args:
        image: (N, M, N) float32 or None.
        points: (N, G, N) float32 or None.
        fn, count: as in ``map_rows``.
        block: samples whose rows ``fn`` is given at once.
    """
    given = [x for x in (image, points) if x is not None]
    n = given[0].shape[0]
    count = jnp.asarray(n if count is None else count, jnp.int32)
    return map_blocks(
        lambda own: hand_out(_pick(image, own), _pick(points, own), fn, own, n, count), n, block
    )


def hand_out(
    image_rows: Array | None, point_rows: Array | None, fn: Callable, own: Array, n: int, count: Array
) -> Any:
    """``fn`` on the rows of the samples ``own``, without themselves and the padding."""
    ids = jnp.arange(n, dtype=jnp.int32)
    ref_valid = (ids[None] != own[:, None]) & (ids[None] < count)
    return fn(_masked(image_rows, ref_valid), _masked(point_rows, ref_valid), ref_valid, own)


def map_blocks(function: Callable[[Array], Any], n: int, block: int) -> Any:
    """``function`` of the numbers of ``block`` samples at a time, joined along the leading axis."""
    blocks = -(-n // block)
    joined = lax.map(function, jnp.arange(blocks * block, dtype=jnp.int32).reshape(blocks, block))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], joined)


def _masked(rows: Array | None, ref_valid: Array) -> Array | None:
    return None if rows is None else jnp.where(ref_valid[:, None], rows, jnp.inf)


def _pick(rows: Array | None, ids: Array) -> Array | None:
    return None if rows is None else rows[ids]


def interval_size(fraction: float, count: int) -> int:
    """k of Eq. 9: how many of ``count`` reference distances are averaged; at least one."""
    return min(max(1, int(fraction * count)), max(count, 1))


def _interval_sizes(fraction: float | Array, counted: Array, size: int) -> Array:
    """``interval_size`` of every count up to ``size``; a traced fraction counts in float32."""
    if isinstance(fraction, Array):
        share = jnp.floor(fraction.astype(jnp.float32) * counted.astype(jnp.float32)).astype(jnp.int32)
        return jnp.clip(share, 1, jnp.maximum(counted, 1).astype(jnp.int32))
    return jnp.asarray([interval_size(fraction, r) for r in range(size + 1)], jnp.int32)[counted]


@jax.named_scope("scoring.interval_average")
def interval_average(distances: Array, fraction: float | Array, valid: Array | None = None) -> Array:
    """Mean of the ``k = max(1, floor(fraction · R))`` smallest distances of each row (Eq. 9).

    The released single-modality code lacks the ``max(1, ·)`` and returns NaN for fewer than five samples.

    Args:
        distances: (..., R) float32, no NaN; inf is a distance that does not count.
        fraction: X in (0, 1]; 0.3 in the paper. May be traced, to try many in one program.
        valid: bool, broadcastable to ``distances`` along its last axis, or None: references that count.

    Returns:
        (...) float32; 0 where no reference counts.
    """
    size = distances.shape[-1]
    distances = distances if valid is None else jnp.where(valid, distances, jnp.inf)
    counted = jnp.sum(jnp.isfinite(distances), axis=-1)
    k = _interval_sizes(fraction, counted, size)
    smallest = jnp.expand_dims(k, -1) > lax.broadcasted_iota(jnp.int32, distances.shape, distances.ndim - 1)
    total = jnp.sum(
        jnp.where(smallest & (jnp.expand_dims(counted, -1) > 0), ascending(distances), 0), axis=-1
    )
    return total / k.astype(total.dtype)


def plain_average(distances: Array, fraction: float | Array, valid: Array | None = None) -> Array:
    """Mean over all references: the ablation without the interval average. Arguments as there."""
    del fraction
    return interval_average(distances, 1.0, valid)


def score_against(
    queries: Array,
    references: Array,
    *,
    fraction: float = 0.3,
    average: Callable[..., Array] = interval_average,
    reference_valid: Array | None = None,
    **kernel: Any,
) -> Array:
    """Patch scores of new samples against a fixed set of references.

    Args:
        queries: (Q, M, C) float32.
        references: (R, L, C) float32.
        fraction: X of the interval average.
        kernel: keywords of ``min_distances``.

    Returns:
        (Q, M) float32.
    """
    return average(min_distances(queries, references, reference_valid=reference_valid, **kernel), fraction)
