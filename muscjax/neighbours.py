"""Exact nearest neighbours of a cloud without looking at every point.

Points are cut into leaves, runs of 16 along a Hilbert curve, each with its bounding box. A tile of queries
looks at its nearest leaves, some at a time, until the nearest leaf that is left is farther than the k-th
neighbour found. That proves the answer; nothing is assumed about a camera, a grid or the density. The worst
case, all points at one place, is brute force.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from muscjax.selection import first_true, select, smallest

_LEAF = 16  # points; smaller leaves prune more and cost more bookkeeping
_BATCH = 8192  # queries served in one step
_BATCH_CPU = 256  # so that their candidates stay in the cache
_BEYOND = 1 << 30  # sorts after every Hilbert index
_ROUNDING = 1e-6  # eight roundings: a box's distance is not rounded as a point's is


class _Leaves(NamedTuple):
    xyz: jax.Array  # (3, L, 16) float32; inf where there is no point
    ids: jax.Array  # (L, 16) int32, rows of the cloud
    low: jax.Array  # (L, 3) float32, of the bounding box; inf for an empty leaf
    high: jax.Array  # (L, 3) float32; -inf for an empty leaf


class _Search(NamedTuple):
    """How far each of T tiles of t queries has come."""

    open: jax.Array  # (T,) bool, a leaf that is left may still hold a neighbour
    bound: jax.Array  # (T,) float32, and leaf (T,) int32: the last leaf looked at, in order of distance
    leaf: jax.Array
    squared: jax.Array  # (T, t, k) float32, ascending; inf where not yet found
    index: jax.Array  # (T, t, k) int32


@jax.named_scope("neighbours.nearest")
def nearest(
    queries: jax.Array,
    points: jax.Array,
    valid: jax.Array,
    k: int,
    *,
    radius: jax.Array | float | None = None,
    query_valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k nearest valid points of each query, exact, by direct squared differences.

    Ascending; the lowest index first among ties, so a query that is itself a point finds itself first
    (unless a duplicate precedes it). Direct differences, because the expanded square loses the order of
    near neighbours. Batch many queries of one cloud by ``jax.lax.map`` rather than ``jax.vmap``, which would
    copy the whole state at every step.

    Args:
      queries: (Q, 3) float32.
      points: (P, 3) float32.
      valid: (P,) bool.
      k: static; may exceed P.
      radius: points farther than this are left out; a scalar in the unit of the points.
      query_valid: (Q,) bool; no time is spent on the other queries, whose answer is empty.

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
    key = jnp.where(query_valid, hilbert_index(queries, low, high), _BEYOND)
    order = jnp.argsort(key) if tile > 1 else jnp.arange(count, dtype=jnp.int32)
    padding = (0, -count % tile)
    tiles = jnp.pad(queries[order], (padding, (0, 0))).reshape(-1, tile, 3)
    present = jnp.pad(query_valid[order], padding).reshape(-1, tile)

    # A CPU wants the candidates of one step in its cache, any other device as much work as possible.
    run = functools.partial(_run, k=k)
    squared, index = lax.platform_dependent(
        tiles,
        present,
        leaves,
        limit,
        cpu=functools.partial(run, batch=max(1, _BATCH_CPU // tile)),
        default=functools.partial(run, batch=max(1, _BATCH // tile)),
    )
    place = jnp.zeros((count,), jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32))
    squared, index = (a.reshape(-1, k)[place] for a in (squared, index))
    squared = jnp.where(query_valid[:, None], squared, jnp.inf)
    found = jnp.isfinite(squared)
    index = jnp.where(found, index, jnp.where(found[:, :1], index[:, :1], 0))
    return index, jnp.sqrt(squared)


def _leaves(points: jax.Array, valid: jax.Array, low: jax.Array, high: jax.Array) -> _Leaves:
    order = jnp.argsort(jnp.where(valid, hilbert_index(points, low, high), _BEYOND))
    padding = (0, -points.shape[0] % _LEAF)
    there = jnp.pad(valid[order], padding).reshape(-1, _LEAF, 1)
    xyz = jnp.pad(points[order], (padding, (0, 0))).reshape(-1, _LEAF, 3)
    xyz = jnp.where(there, xyz, jnp.inf)
    return _Leaves(
        xyz=jnp.moveaxis(xyz, -1, 0),
        ids=jnp.pad(order.astype(jnp.int32), padding).reshape(-1, _LEAF),
        low=jnp.min(xyz, axis=1),
        high=jnp.max(jnp.where(there, xyz, -jnp.inf), axis=1),
    )


def _run(
    tiles: jax.Array, present: jax.Array, leaves: _Leaves, limit: jax.Array, *, k: int, batch: int
) -> tuple[jax.Array, jax.Array]:
    """The k smallest squared distances and their ids, (T, t, k), of tiles (T, t, 3)."""
    count, per_tile, _ = tiles.shape
    batch = min(batch, count)
    total = leaves.low.shape[0]
    # Leaves looked at in one step: a little more than what a patch of k points of a surface touches.
    take = min(math.isqrt(16 * k - 1) + 1, total)
    low = jnp.min(jnp.where(present[..., None], tiles, jnp.inf), axis=1)
    high = jnp.max(jnp.where(present[..., None], tiles, -jnp.inf), axis=1)
    numbers = jnp.arange(total, dtype=jnp.int32)[None, :]

    def step(state: _Search) -> _Search:
        # A queue: each step serves tiles that are not finished, so that one far-flung tile delays no other.
        tile = first_true(state.open, batch)
        live, tile = tile >= 0, jnp.maximum(tile, 0)
        gap = jnp.maximum(leaves.low[None] - high[tile][:, None], low[tile][:, None] - leaves.high[None])
        bound = jnp.sum(jnp.square(jnp.maximum(gap, 0)), axis=-1)

        def after(bound_, leaf):
            later = (bound > bound_) | ((bound == bound_) & (numbers > leaf))
            return jnp.where(later, bound, jnp.inf)

        bounds = after(state.bound[tile][:, None], state.leaf[tile][:, None])
        distance, chosen = select(bounds, jnp.broadcast_to(numbers, bound.shape), take)
        last = jnp.max(distance, axis=1)
        last = last, jnp.max(jnp.where(distance == last[:, None], chosen, -1), axis=1)

        xyz = leaves.xyz[:, chosen].reshape(3, batch, 1, take, _LEAF)
        difference = xyz - jnp.moveaxis(tiles[tile], -1, 0)[..., None, None]
        found = difference[0] ** 2 + difference[1] ** 2 + difference[2] ** 2
        found = jnp.where(jnp.isfinite(distance)[:, None, :, None] & (found <= limit), found, jnp.inf)
        ids = jnp.broadcast_to(leaves.ids[chosen][:, None], found.shape)
        squared, index = (
            jnp.concatenate([old[tile], new.reshape(batch, per_tile, -1)], axis=-1).reshape(
                batch * per_tile, -1
            )
            for old, new in ((state.squared, found), (state.index, ids))
        )
        squared, index = (a.reshape(batch, per_tile, k) for a in smallest(squared, index, k))

        farthest = jnp.where(present[tile], jnp.minimum(squared[..., -1], limit), -1.0)
        left = jnp.min(after(last[0][:, None], last[1][:, None]), axis=1) * jnp.float32(1 - _ROUNDING)
        new = _Search(
            open=jnp.isfinite(left) & (left <= jnp.max(farthest, axis=1)),
            bound=last[0],
            leaf=last[1],
            squared=squared,
            index=index,
        )
        slot = jnp.where(live, tile, count)
        return jax.tree.map(lambda old, entry: old.at[slot].set(entry, mode="drop"), state, new)

    shape = (count, per_tile, k)
    start = _Search(
        open=jnp.any(present, axis=1),
        bound=jnp.full((count,), -1, jnp.float32),
        leaf=jnp.full((count,), -1, jnp.int32),
        squared=jnp.full(shape, jnp.inf, jnp.float32),
        index=jnp.zeros(shape, jnp.int32),
    )
    end = lax.while_loop(lambda state: jnp.any(state.open), step, start)
    return end.squared, end.index


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
