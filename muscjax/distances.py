"""Distances to the nearest patch of every other sample (Eq. 8), all pairs of a set in tiles.

``a[i, m, j] = min_n |F_i(m) - F_j(n)|_2``. The row and the column minima of one distance block serve both
directions, so every unordered pair of samples needs one matrix product while all rows fit in memory (the
``symmetric`` plan); beyond that, tiles of queries meet all references (``rows``: twice the products, bounded
memory). Both walk the same blocks, so they round alike.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from muscjax import kernels

TILE_BYTES = 16 << 20  # one distance block; about what the caches of a CPU still serve


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the pairs of samples are walked; hashable, decided once from sizes and the memory budget."""

    kind: Literal["symmetric", "rows"]
    block: int  # samples whose whole rows are at hand at once; whole tiles of them in ``rows``
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
    if n * row <= memory_budget // 2:
        return Plan("symmetric", block, tile)
    tile = min(tile, block)
    return Plan("rows", block - block % tile, tile)


def _padded(array: Array, axis: int, multiple: int) -> Array:
    missing = -array.shape[axis] % multiple
    if not missing:
        return array
    width = [(0, 0)] * array.ndim
    width[axis] = (0, missing)
    return jnp.pad(array, width)


@jax.named_scope("scoring.min_distances")
def min_distances(
    queries: Array,
    references: Array,
    *,
    reference_valid: Array | None = None,
    query_cells: Array | None = None,
    reference_cells: Array | None = None,
    tile: int | None = None,
    memory_budget: int = 1 << 30,
    precision: str = "float32",
    implementation: str = "xla",
    refine: bool = False,
    window: int | None = None,
) -> Array:
    """Euclidean distance of every query patch to the nearest patch of every reference sample (Eq. 8).

    Args:
        queries: (Q, M, C) float32.
        references: (R, L, C) float32.
        reference_valid: (R, L) bool or None: patches that count.
        query_cells, reference_cells: (Q, M, 2) and (R, L, 2) int32: the row and the column of each patch on
            the grid, for ``window``.
        tile: samples on each side of one distance block; None: from the memory budget.
        memory_budget: bytes.
        precision: operands of the product, "float32" | "tf32" | "bfloat16"; accumulation is float32.
        implementation: a name of ``kernels.IMPLEMENTATIONS``.
        refine: recompute the winning pairs directly, exact to float32; which pair wins is still the
            product's choice, so a near-tie within the bound below may go to the other pair.
        window: None: the nearest of all patches; R: of those at most R rows and R columns away, for products
            that lie alike in every scan. A patch without any of a sample's near is compared with all of them.

    Returns:
        (Q, M, R) float32; inf where a reference sample has no valid patch.

    A float32 product leaves ``|Δd²| ≤ 4·ε·(|x|² + |y|²)``: identical unit patches come out near 8e-4, not 0.
    """
    (q, m, _), (r, l, _) = queries.shape, references.shape
    if tile is None:
        tile = plan(max(q, r), (max(m, l),), memory_budget=memory_budget).tile
    rows = min(tile, q)
    kernel = {"precision": precision, "implementation": implementation, "refine": refine, "window": window}
    against = Samples(references, reference_valid, reference_cells).padded(tile)
    asking = Samples(queries, None, query_cells).padded(rows)

    def row(start: Array) -> Array:  # -> (rows, M, R)
        own = asking.pick(start, rows)
        found = lax.map(
            lambda other: meet(own, against.pick(other, tile), columns=False, **kernel)[0],
            jnp.arange(0, len(against.features), tile, dtype=jnp.int32),
        )
        return jnp.moveaxis(found, 0, -2).reshape(rows, m, -1)[..., :r]

    starts = jnp.arange(0, len(asking.features), rows, dtype=jnp.int32)
    return jnp.sqrt(lax.map(row, starts).reshape(-1, m, r)[:q])


@dataclasses.dataclass(frozen=True)
class Samples:
    """What the kernel is given of a set of samples; None stays None."""

    features: Array  # (N, M, C)
    valid: Array | None  # (N, M)
    cells: Array | None  # (N, M, 2)

    def pick(self, start: Any, size: int) -> Samples:
        return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), self)

    def padded(self, multiple: int) -> Samples:
        return jax.tree.map(lambda x: _padded(x, 0, multiple), self)


jax.tree_util.register_dataclass(Samples)


def meet(queries: Samples, references: Samples, **kernel: Any) -> tuple[Array, Array | None]:
    """Squared minima of two blocks of samples: (A, M, B) and (B, M, A)."""
    products = kernels.min_squared_distances(kernel.pop("implementation"))
    return products(
        queries.features,
        references.features,
        queries.valid,
        references.valid,
        query_cells=queries.cells,
        reference_cells=references.cells,
        **kernel,
    )


def inside_tile(block: Samples, kernel: Any) -> Array:
    """(T, M, T) squared minima within a tile, inf on the diagonal.

    A whole block would compute every pair twice, and each sample with itself.
    """
    count, m, _ = block.features.shape
    later, earlier = (jnp.asarray(side, jnp.int32) for side in np.tril_indices(count, -1))

    def step(pair: Array, squared: Array) -> Array:
        a, b = earlier[pair], later[pair]
        rows, columns = meet(block.pick(a, 1), block.pick(b, 1), **kernel)
        assert columns is not None
        squared = lax.dynamic_update_slice(squared, columns, (b, 0, a))
        return lax.dynamic_update_slice(squared, rows, (a, 0, b))

    empty = jnp.full((count, m, count), jnp.inf)
    return lax.fori_loop(0, len(later), step, empty) if len(later) else empty


@jax.named_scope("scoring.mutual_min_distances")
def mutual_min_distances(
    features: Array,
    *,
    valid: Array | None = None,
    cells: Array | None = None,
    count: int | Array | None = None,
    tile: int | None = None,
    memory_budget: int = 1 << 30,
    precision: str = "float32",
    implementation: str = "xla",
    refine: bool = False,
    window: int | None = None,
) -> Array:
    """``min_distances`` of a set against itself, every unordered pair of samples computed once.

    Args:
        features: (N, M, C) float32.
        valid: (N, M) bool or None: patches that count as neighbours.
        cells: (N, M, 2) int32 or None: as in ``min_distances``, with ``window``.
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
    kernel = {"precision": precision, "implementation": implementation, "refine": refine, "window": window}
    samples = Samples(features, valid, cells).padded(tile)
    size = len(samples.features)
    tiles = -(-count // tile)

    def own(number: Array, squared: Array) -> Array:
        start = tile * number
        return lax.dynamic_update_slice(
            squared, inside_tile(samples.pick(start, tile), kernel), (start, 0, start)
        )

    later, earlier = (jnp.asarray(side, jnp.int32) for side in np.tril_indices(size // tile, -1))

    def step(pair: Array, squared: Array) -> Array:
        a, b = tile * earlier[pair], tile * later[pair]
        rows, columns = meet(samples.pick(a, tile), samples.pick(b, tile), **kernel)
        assert columns is not None
        squared = lax.dynamic_update_slice(squared, columns, (b, 0, a))
        return lax.dynamic_update_slice(squared, rows, (a, 0, b))

    squared = jnp.full((size, m, size), jnp.inf)
    if len(later):  # the pairs of the first t tiles come first
        squared = lax.fori_loop(0, tiles * (tiles - 1) // 2, step, squared)
    if tile > 1:
        squared = lax.fori_loop(0, tiles, own, squared)
    ids = jnp.arange(n)
    other = (ids[:, None] != ids[None]) & (ids[None] < count)
    return jnp.where(other[:, None], jnp.sqrt(squared[:n, :, :n]), jnp.inf)


def tile_distances(
    features: Array,
    number: int | Array,
    *,
    tile: int,
    valid: Array | None = None,
    cells: Array | None = None,
    precision: str = "float32",
    implementation: str = "xla",
    refine: bool = False,
    window: int | None = None,
) -> Array:
    """The rows of one tile's samples: those of ``mutual_min_distances``, by the same blocks.

    Args:
        features: (N, M, C) float32. number: of the tile, which holds the samples from ``tile · number`` on;
            may be traced.
        valid, cells, tile, precision, implementation, refine, window: as in ``mutual_min_distances``.

    Returns:
        (tile, M, N) float32; inf for the sample itself and for references without a valid patch. The last
        tile is filled up with samples of zeros.
    """
    kernel = {"precision": precision, "implementation": implementation, "refine": refine, "window": window}
    samples = Samples(features, valid, cells).padded(tile)
    own = samples.pick(tile * number, tile)

    def against(other: Array) -> Array:
        return meet(own, samples.pick(tile * other, tile), columns=False, **kernel)[0]

    found = lax.map(against, jnp.arange(len(samples.features) // tile, dtype=jnp.int32))
    rows = jnp.moveaxis(found, 0, -2).reshape(*own.features.shape[:2], -1)
    rows = lax.dynamic_update_slice_in_dim(rows, inside_tile(own, kernel), tile * number, axis=2)
    return jnp.sqrt(rows[..., : len(features)])


def sample_distances(features: Array, sample: int | Array, *, tile: int, **kernel: Any) -> Array:
    """(M, N): one sample's rows of ``tile_distances``; ``sample`` may be traced."""
    rows = tile_distances(features, sample // tile, tile=tile, **kernel)
    return lax.dynamic_index_in_dim(rows, sample % tile, axis=0, keepdims=False)
