"""The reference form of the min-distance kernel: one matrix product, then its row and column minima.

XLA keeps the product of one tile and reads it once or twice; what it may weigh is the caller's choice of
tile. ``d(x, y)^2 = |x|^2 + |y|^2 - 2 x.y`` with the norms of the operands as the product sees them.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax


def as_operand(x: Array, precision: str) -> tuple[Array, lax.Precision]:
    """The features rounded as the product will round them, and the product's precision."""
    if precision == "float32":
        return x, lax.Precision.HIGHEST
    if precision == "tf32":
        return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10), lax.Precision.HIGH
    if precision == "bfloat16":
        return x.astype(jnp.bfloat16), lax.Precision.DEFAULT
    raise ValueError(f"precision {precision!r}: expected float32, tf32 or bfloat16")


def _channel_sums(x: Array) -> Array:
    """Sums over the last axis, as a product with ones from the left.

    XLA's CPU reduction of a minor axis is scalar, and its product with a vector on the right half as fast.
    """
    channels = x.shape[-1]
    ones = jnp.ones((1, channels), x.dtype)
    return jnp.matmul(ones, x.reshape(-1, channels).T, precision=lax.Precision.HIGHEST).reshape(x.shape[:-1])


def _norms(operand: Array, valid: Array | None) -> Array:
    """Squared norms of the operands, inf for patches that do not count."""
    wide = operand.astype(jnp.float32)
    norms = _channel_sums(wide * wide)
    return norms if valid is None else jnp.where(valid, norms, jnp.inf)


@jax.named_scope("kernels.xla.min_squared_distances")
def min_squared_distances(
    queries: Array,
    references: Array,
    query_valid: Array | None = None,
    reference_valid: Array | None = None,
    *,
    query_cells: Array | None = None,
    reference_cells: Array | None = None,
    precision: str = "float32",
    refine: bool = False,
    window: int | None = None,
    columns: bool = True,
) -> tuple[Array, Array | None]:
    """Squared distance of every patch to the nearest patch of every sample of the other side.

    Args:
        queries: (A, M, C) float32.
        references: (B, L, C) float32.
        query_valid: (A, M) bool or None: patches that count as neighbours of the references.
        reference_valid: (B, L) bool or None.
        query_cells, reference_cells: (A, M, 2), (B, L, 2) int32: places on the grid, with ``window``.
        precision: "float32", "tf32" or "bfloat16" operands; float32 accumulation always.
        refine: recompute the distance of each winning pair from the float32 features.
        window: compare with the patches at most so many rows and columns away; with all of a sample's
            patches where none of them is so near.
        columns: also the minima the other way round.

    Returns:
        (A, M, B) float32 and (B, L, A) float32 or None; inf where a side has no valid patch.
    """
    q, level = as_operand(queries, precision)
    r, _ = as_operand(references, precision)
    (a, m, c), (b, l, _) = q.shape, r.shape
    # As two matrices: with four axes XLA copies the references, transposed, before it multiplies.
    product = jnp.matmul(
        q.reshape(a * m, c), r.reshape(b * l, c).T, precision=level, preferred_element_type=jnp.float32
    ).reshape(a, m, b, l)
    outside = None
    if window is not None:
        assert query_cells is not None
        assert reference_cells is not None
        apart = jnp.abs(query_cells[:, :, None, None] - reference_cells[None, None])
        outside = jnp.max(apart, axis=-1) > window
    # The largest x.y - |y|^2 / 2 is the smallest distance: an operation less for every entry of the product.
    half = 0.5 * _norms(r, reference_valid)[None, None]
    most, place = _highest(product, half, outside, axis=3, places=refine)
    rows = _norms(q, None)[:, :, None] - 2 * most
    if place is not None:
        rows = _refined(queries, references, rows, place)
    if not columns:
        return jnp.maximum(rows, 0), None
    half = 0.5 * _norms(q, query_valid)[:, :, None, None]
    most, place = _highest(product, half, outside, axis=1, places=refine)
    cols = _norms(r, None)[:, :, None] - 2 * jnp.moveaxis(most, 0, -1)
    if place is not None:
        cols = _refined(references, queries, cols, jnp.moveaxis(place, 0, -1))
    return jnp.maximum(rows, 0), jnp.maximum(cols, 0)


def _highest(
    product: Array, half: Array, outside: Array | None, *, axis: int, places: bool
) -> tuple[Array, Array | None]:
    """The maximum of ``product - half`` along ``axis`` and the first index that holds it, as of ``argmax``.

    Entries that lie ``outside`` of the window do not count, unless all of them do.

    In two levels, the parts' maxima first and then the places of one part: XLA's argmax is a scalar loop on a
    CPU, 35 times slower than its maximum. That the values may be computed anew does no harm: a difference has
    one rounding. The axis is split before the difference, which then becomes part of the maximum.
    """
    size = product.shape[axis]
    parts = 1
    if places:
        parts = min((n for n in range(1, size + 1) if size % n == 0), key=lambda n: abs(n - math.sqrt(size)))

    def split(x: Array) -> Array:
        here = (1, 1) if x.shape[axis] == 1 else (parts, size // parts)
        return x.reshape(*x.shape[:axis], *here, *x.shape[axis + 1 :])

    near = split(product) - split(half)
    if outside is not None:
        inside = jnp.where(split(outside), -jnp.inf, near)
        alone = jnp.isneginf(jnp.max(inside, axis=(axis, axis + 1), keepdims=True))
        near = jnp.where(alone, near, inside)
    if not places:
        return jnp.max(near, axis=(axis, axis + 1)), None
    highest = lax.optimization_barrier(jnp.max(near, axis=axis + 1))
    most = jnp.max(highest, axis=axis)
    part = _first(highest == jnp.expand_dims(most, axis), axis)
    chosen = jnp.expand_dims(part, (axis, axis + 1))
    if outside is None:  # its own difference: one that is used twice would be written out in full
        near = lax.optimization_barrier(split(product)) - lax.optimization_barrier(split(half))
    inner = jnp.take_along_axis(near, chosen, axis=axis, mode="promise_in_bounds").squeeze(axis)
    return most, part * (size // parts) + _first(inner == jnp.expand_dims(most, axis), axis)


def _first(flags: Array, axis: int) -> Array:
    """The first index along ``axis`` that is set; there is one."""
    place = lax.broadcasted_iota(jnp.float32, flags.shape, axis)  # exact: fewer than 2^24 patches
    found = jnp.min(jnp.where(flags, place, jnp.inf), axis=axis)
    return jnp.minimum(found, flags.shape[axis] - 1).astype(jnp.int32)


def _refined(queries: Array, references: Array, least: Array, index: Array) -> Array:
    """(A, M, B) squared distances of the pairs (a, m) and (b, index[a, m, b]), computed directly.

    In a loop over the references, whose body is compiled the same wherever the places come from: what is
    fused with a sum decides how it rounds. Of matrices, as the product is: with more axes XLA would copy both
    sides once more.
    """
    (a, m, c), (b, l, _) = queries.shape, references.shape
    ours, theirs = queries.reshape(a * m, c), references.reshape(b * l, c)

    def against(winners: Array) -> Array:  # (A·M,) rows of theirs
        difference = ours - theirs.at[winners].get(mode="promise_in_bounds")
        return _channel_sums(difference * difference)

    winners = jnp.moveaxis(index, -1, 0) + l * jnp.arange(b, dtype=index.dtype)[:, None, None]
    exact = lax.map(against, winners.reshape(b, a * m)).reshape(b, a, m)
    return jnp.where(jnp.isinf(least), jnp.inf, jnp.moveaxis(exact, 0, -1))
