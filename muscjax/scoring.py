"""Mutual scoring (section III-C): distances to the nearest patch of every other sample.

``a[i, m, j] = min_n |F_i(m) - F_j(n)|_2`` (Eq. 8), then the interval average over ``j`` (Eq. 9). The row
and the column minima of one distance block serve both directions, so every unordered pair of samples
needs one matrix product while all rows fit in memory (the ``symmetric`` plan); beyond that, blocks of
queries meet all references (``rows``: twice the products, bounded memory).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from muscjax import kernels
from muscjax.ordering import ascending

TILE_BYTES = 16 << 20  # one distance block; about what the caches of a CPU still serve


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the pairs of samples are walked; hashable, decided once from sizes and the memory budget."""

    kind: Literal["symmetric", "rows"]
    block: int  # samples whose whole rows are at hand at once
    tile: int  # samples on each side of one distance block


def plan(n: int, patches: tuple[int, ...], *, memory_budget: int, tile_bytes: int = TILE_BYTES) -> Plan:
    """Choose the plan for ``n`` samples with the given patch counts per modality.

    ``symmetric`` keeps the n²·sum(patches) float32 minima and is taken while they fit in half the budget.

    Raises:
        ValueError: not even the rows of one sample fit.
    """
    row = 4 * n * sum(patches)  # all distances of one sample
    largest = max(patches)
    tile = math.isqrt(min(tile_bytes, memory_budget // 8) // (4 * largest * largest))
    tile = max(1, min(tile, n))
    if row > memory_budget // 16 or 4 * largest * largest > memory_budget:
        raise ValueError(
            f"memory budget of {memory_budget} bytes is too small for {n} samples of {patches} patches"
        )
    block = max(1, min(8, n, memory_budget // (16 * row)))  # about a dozen copies live while a block is fused
    kind = "symmetric" if n * row <= memory_budget // 2 else "rows"
    return Plan(kind, block, tile)


def _padded(array: Array, axis: int, multiple: int) -> Array:
    missing = -array.shape[axis] % multiple
    if not missing:
        return array
    width = [(0, 0)] * array.ndim
    width[axis] = (0, missing)
    return jnp.pad(array, width)


def _blocks(array: Array, size: int) -> Array:
    """(N, ...) -> (N / size, size, ...), padded with zeros."""
    array = _padded(array, 0, size)
    return array.reshape(-1, size, *array.shape[1:])


@jax.named_scope("scoring.min_distances")
def min_distances(
    queries: Array,
    references: Array,
    *,
    reference_valid: Array | None = None,
    precision: str = "float32",
    implementation: str = "xla",
    refine: bool = False,
    tile: int | None = None,
    memory_budget: int = 1 << 30,
) -> Array:
    """Euclidean distance of every query patch to the nearest patch of every reference sample (Eq. 8).

    Args:
        queries: (Q, M, C) float32.
        references: (R, L, C) float32.
        reference_valid: (R, L) bool or None: patches that count.
        precision: operands of the product, "float32" | "tf32" | "bfloat16"; accumulation is float32.
        implementation: a name of ``kernels.IMPLEMENTATIONS``.
        refine: recompute the winning pairs directly, exact to float32; which pair wins is still the
            product's choice, so a near-tie within the bound below may go to the other pair.
        tile: samples on each side of one distance block; None: from the memory budget.
        memory_budget: bytes.

    Returns:
        (Q, M, R) float32; inf where a reference sample has no valid patch.

    A float32 product leaves ``|Δd²| ≤ 4·ε·(|x|² + |y|²)``: identical unit patches come out near 8e-4, not 0.
    """
    (q, m, _), (r, l, _) = queries.shape, references.shape
    if tile is None:
        tile = plan(max(q, r), (max(m, l),), memory_budget=memory_budget).tile
    kernel = functools.partial(
        kernels.min_squared_distances(implementation), precision=precision, refine=refine, columns=False
    )
    against = _blocks(references, tile)
    rows = min(tile, q)
    valid = None if reference_valid is None else _blocks(reference_valid, tile)

    def row(block: Array) -> Array:  # (rows, M, C) -> (rows, M, R)
        found = lax.map(lambda side: kernel(block, side[0], None, side[1])[0], (against, valid))
        return jnp.moveaxis(found, 0, -2).reshape(*block.shape[:2], -1)[..., :r]

    return jnp.sqrt(lax.map(row, _blocks(queries, rows)).reshape(-1, m, r)[:q])


@jax.named_scope("scoring.mutual_min_distances")
def mutual_min_distances(
    features: Array,
    *,
    valid: Array | None = None,
    count: int | Array | None = None,
    precision: str = "float32",
    implementation: str = "xla",
    refine: bool = False,
    tile: int | None = None,
    memory_budget: int = 1 << 30,
) -> Array:
    """``min_distances`` of a set against itself, every unordered pair of samples computed once.

    Args:
        features: (N, M, C) float32.
        valid: (N, M) bool or None: patches that count as neighbours.
        count: samples that are not padding; None: all. May be traced, so that one program serves any
            count up to N.
        precision, implementation, refine, tile, memory_budget: as in ``min_distances``.

    Returns:
        (N, M, N) float32; inf on the diagonal, for padding and for references without a valid patch.
    """
    n, m, _ = features.shape
    count = jnp.asarray(n if count is None else count, jnp.int32)
    if tile is None:
        tile = plan(n, (m,), memory_budget=memory_budget).tile
    kernel = functools.partial(
        kernels.min_squared_distances(implementation), precision=precision, refine=refine
    )
    padded, mask = _padded(features, 0, tile), None if valid is None else _padded(valid, 0, tile)
    size = len(padded)

    def fill(distances: Array, block: int, first: np.ndarray, second: np.ndarray, pairs: Array) -> Array:
        """The minima of the first ``pairs`` of these pairs of blocks, both directions of each."""
        pick = functools.partial(lax.dynamic_slice_in_dim, slice_size=block, axis=0)

        def step(pair: Array, distances: Array) -> Array:
            a, b = (block * jnp.asarray(side, jnp.int32)[pair] for side in (first, second))
            mask_a, mask_b = (None, None) if mask is None else (pick(mask, a), pick(mask, b))
            rows, cols = kernel(pick(padded, a), pick(padded, b), mask_a, mask_b)
            distances = lax.dynamic_update_slice(distances, cols, (b, 0, a))
            return lax.dynamic_update_slice(distances, rows, (a, 0, b))

        return lax.fori_loop(0, pairs, step, distances)

    squared = jnp.full((size, m, size), jnp.inf)
    tiles = -(-count // tile)
    later, earlier = np.tril_indices(size // tile, -1)  # those of the first t tiles come first
    if later.size:
        squared = fill(squared, tile, earlier, later, tiles * (tiles - 1) // 2)
    if tile > 1:  # inside a tile a whole block would compute every pair twice, and each sample with itself
        start = tile * np.arange(size // tile)[:, None]
        later, earlier = ((start + side).reshape(-1) for side in np.tril_indices(tile, -1))
        squared = fill(squared, 1, earlier, later, tiles * (tile * (tile - 1) // 2))
    ids = jnp.arange(n)
    other = (ids[:, None] != ids[None]) & (ids[None] < count)
    return jnp.where(other[:, None], jnp.sqrt(squared[:n, :, :n]), jnp.inf)


@jax.named_scope("scoring.map_rows")
def map_rows(
    image: Array | None,
    points: Array | None,
    fn: Callable[[Array | None, Array | None, Array, Array], Any],
    *,
    plan: Plan,
    points_valid: Array | None = None,
    count: int | Array | None = None,
    precision: str = "float32",
    implementation: str = "xla",
    refine: bool = False,
) -> Any:
    """Hand every sample's whole rows of distances to ``fn``, a block of samples at a time.

    ``fn(image_rows (B, M, N) | None, point_rows (B, G, N) | None, ref_valid (B, N), ids (B,))`` returns a
    pytree with leading axis B; the blocks come back joined with leading axis N. The sample itself and the
    padding are dropped here, once: their entries hold inf and ``ref_valid`` is False there.

    Args:
        image: (N, M, C) float32 or None.
        points: (N, G, C) float32 or None.
        plan: from ``plan``; the result does not depend on it beyond rounding.
        points_valid: (N, G) bool or None.
        count: samples that are not padding; may be traced.
    """
    given = [x for x in (image, points) if x is not None]
    n = given[0].shape[0]
    count = jnp.asarray(n if count is None else count, jnp.int32)
    kernel: dict[str, Any] = {
        "precision": precision, "implementation": implementation, "refine": refine, "tile": plan.tile
    }  # fmt: skip
    sides = ((image, None), (points, points_valid))
    if plan.kind == "symmetric":
        whole_image, whole_points = (
            None if x is None else mutual_min_distances(x, valid=valid, count=count, **kernel)
            for x, valid in sides
        )
        return map_distances(whole_image, whole_points, fn, block=plan.block, count=count)

    def block(own: Array) -> Any:
        image_rows, point_rows = (
            None if x is None else min_distances(x[own], x, reference_valid=valid, **kernel)
            for x, valid in sides
        )
        return _rows(image_rows, point_rows, fn, own, n, count)

    return _map_blocks(block, n, plan.block)


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
    return _map_blocks(lambda own: _rows(_pick(image, own), _pick(points, own), fn, own, n, count), n, block)


def _rows(
    image_rows: Array | None, point_rows: Array | None, fn: Callable, own: Array, n: int, count: Array
) -> Any:
    """``fn`` on the rows of the samples ``own``, without themselves and the padding."""
    ids = jnp.arange(n, dtype=jnp.int32)
    ref_valid = (ids[None] != own[:, None]) & (ids[None] < count)
    return fn(_masked(image_rows, ref_valid), _masked(point_rows, ref_valid), ref_valid, own)


def _map_blocks(function: Callable[[Array], Any], n: int, block: int) -> Any:
    """``function`` of the numbers of ``block`` samples at a time, joined along the leading axis."""
    joined = lax.map(function, _blocks(jnp.arange(n, dtype=jnp.int32), block))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], joined)


def sample_distances(
    features: Array,
    sample: int | Array,
    *,
    plan: Plan,
    valid: Array | None = None,
    precision: str = "float32",
    implementation: str = "xla",
    refine: bool = False,
) -> Array:
    """One sample's rows of distances by the products of ``map_rows``, so that the rounding is the same.

    Args:
        features: (N, M, C) float32. sample: its number; may be traced.
        plan, valid, precision, implementation, refine: as for ``map_rows``.

    Returns:
        (M, N) float32; inf where a reference has no valid patch. The sample itself is among them.
    """
    kernel: dict[str, Any] = {"precision": precision, "refine": refine}
    pick = functools.partial(lax.dynamic_index_in_dim, axis=0, keepdims=False)
    if plan.kind == "rows":
        ids = pick(_blocks(jnp.arange(len(features), dtype=jnp.int32), plan.block), sample // plan.block)
        kernel |= {"implementation": implementation, "tile": plan.tile}
        rows = min_distances(features[ids], features, reference_valid=valid, **kernel)
        return pick(rows, sample % plan.block)
    products = kernels.min_squared_distances(implementation)
    blocks = _blocks(features, plan.tile)
    masks = None if valid is None else _blocks(valid, plan.tile)
    own = sample // plan.tile

    def against(other: Array) -> Array:  # (M, tile)
        a, b = jnp.minimum(own, other), jnp.maximum(own, other)
        mask_a, mask_b = (None, None) if masks is None else (pick(masks, a), pick(masks, b))
        rows, columns = products(pick(blocks, a), pick(blocks, b), mask_a, mask_b, **kernel)
        return pick(jnp.where(own == a, rows, columns), sample % plan.tile)

    found = lax.map(against, jnp.arange(len(blocks), dtype=jnp.int32))
    return jnp.sqrt(jnp.moveaxis(found, 0, 1).reshape(features.shape[1], -1)[:, : len(features)])


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
