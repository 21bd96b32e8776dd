"""The reference form of the min-distance kernel: one matrix product, then its row and column minima.

XLA keeps the product of one tile and reads it once or twice; what it may weigh is the caller's choice of
tile. ``d(x, y)^2 = |x|^2 + |y|^2 - 2 x.y`` with the norms of the operands as the product sees them.
"""

from __future__ import annotations

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


def _norms(operand: Array, valid: Array | None) -> Array:
    """Squared norms. A product with ones: XLA's CPU reduction of a minor axis is scalar."""
    wide = operand.astype(jnp.float32)
    ones = jnp.ones(wide.shape[-1:], jnp.float32)
    norms = jnp.matmul(wide * wide, ones, precision=lax.Precision.HIGHEST)
    return norms if valid is None else jnp.where(valid, norms, jnp.inf)


@jax.named_scope("kernels.xla.min_squared_distances")
def min_squared_distances(
    queries: Array,
    references: Array,
    query_valid: Array | None = None,
    reference_valid: Array | None = None,
    *,
    precision: str = "float32",
    refine: bool = False,
    columns: bool = True,
) -> tuple[Array, Array | None]:
    """Squared distance of every patch to the nearest patch of every sample of the other side.

    Args:
        queries: (A, M, C) float32.
        references: (B, L, C) float32.
        query_valid: (A, M) bool or None: patches that count as neighbours of the references.
        reference_valid: (B, L) bool or None.
        precision: "float32", "tf32" or "bfloat16" operands; float32 accumulation always.
        refine: recompute the distance of each winning pair from the float32 features.
        columns: also the minima the other way round.

    Returns:
        (A, M, B) float32 and (B, L, A) float32 or None; inf where a side has no valid patch.
    """
    q, level = as_operand(queries, precision)
    r, _ = as_operand(references, precision)
    # As two matrices the product is some 15 % faster on a CPU, but XLA then rounds it differently for blocks
    # of different sizes, and both plans must agree.
    product = jnp.einsum("amc,blc->ambl", q, r, precision=level, preferred_element_type=jnp.float32)
    # The largest x.y - |y|^2 / 2 is the smallest distance: an operation less for every entry of the product.
    near = product - 0.5 * _norms(r, reference_valid)[None, None]
    most = jnp.max(near, axis=3)
    rows = _norms(q, None)[:, :, None] - 2 * most
    if refine:
        rows = _refined(queries, references, rows, _first_place(near, most, axis=3))
    if not columns:
        return jnp.maximum(rows, 0), None
    near = product - 0.5 * _norms(q, query_valid)[:, :, None, None]
    most = jnp.max(near, axis=1)
    cols = _norms(r, None)[:, :, None] - 2 * jnp.moveaxis(most, 0, -1)
    if refine:
        index = jnp.moveaxis(_first_place(near, most, axis=1), 0, -1)
        cols = _refined(references, queries, cols, index)
    return jnp.maximum(rows, 0), jnp.maximum(cols, 0)


def _first_place(values: Array, most: Array, *, axis: int) -> Array:
    """The first index along ``axis`` that holds the maximum ``most``: ``argmax`` in two fast passes.

    XLA's argmax is a scalar loop on a CPU, 35 times slower than its maximum of float32. That the values may
    be computed anew does no harm: a difference has one rounding.
    """
    place = lax.broadcasted_iota(
        jnp.float32, values.shape, axis
    )  # exact: a sample has fewer than 2^24 patches
    largest = jnp.expand_dims(lax.optimization_barrier(most), axis)
    return jnp.min(jnp.where(values == largest, place, jnp.inf), axis=axis).astype(jnp.int32)


def _refined(queries: Array, references: Array, least: Array, index: Array) -> Array:
    """(A, M, B) squared distances of the pairs (a, m) and (b, index[a, m, b]), computed directly."""
    ones = jnp.ones(queries.shape[-1:], queries.dtype)

    def against(reference: Array, winners: Array) -> Array:  # (L, C), (A, M) -> (A, M)
        difference = queries - reference.at[winners].get(mode="clip")
        return jnp.matmul(difference * difference, ones, precision=lax.Precision.HIGHEST)

    exact = lax.map(lambda pair: against(*pair), (references, jnp.moveaxis(index, -1, 0)))
    return jnp.where(jnp.isinf(least), jnp.inf, jnp.moveaxis(exact, 0, -1))
