"""The k smallest of a row, exactly and in order, without sorting the row.

``lax.top_k`` sorts rows through a comparator on a CPU and sorts them whole on a GPU. Here a bisection over
the bit patterns finds the k-th value with plain counts, which vectorise, and only the k survivors are sorted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

_BITS = 31  # of a non-negative float32
_INFINITE = 0x7F800000  # bits of inf
_RUN = 32


def smallest(values: jax.Array, ids: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k smallest (value, id) pairs of each row, ascending; the lower id first among equal values.

    Args:
      values: (Q, C) float32, 0 or more; inf marks an entry that does not exist.
      ids: (Q, C) int32, 0 or more and different within the row wherever the value is finite.
      k: static; may exceed C.

    Returns:
      values (Q, k) float32 and ids (Q, k) int32; inf and 0 where the row has fewer finite entries.
    """
    return sort_pairs(*select(values, ids, k))


def select(values: jax.Array, ids: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """What ``smallest`` gives, in the order in which the row holds it."""
    bits = lax.bitcast_convert_type(values, jnp.int32)  # ordered as the floats are, since none is negative
    chosen = _chosen(bits, ids, k) if k < values.shape[1] else jnp.isfinite(values)
    position = jax.vmap(lambda row: first_true(row, k))(chosen)
    there = position >= 0
    position = jnp.maximum(position, 0)
    values = jnp.where(there, jnp.take_along_axis(values, position, axis=1), jnp.float32(jnp.inf))
    return values, jnp.where(there, jnp.take_along_axis(ids, position, axis=1), 0)


def first_true(mask: jax.Array, count: int) -> jax.Array:
    """Positions of the first ``count`` true entries of (C,), ascending: (count,) int32, then -1."""
    slot = jnp.where(mask, _running_count(mask) - 1, count)
    entry = jnp.arange(mask.shape[0], dtype=jnp.int32)
    return jnp.full((count,), -1, jnp.int32).at[slot].set(entry, mode="drop")


def _running_count(mask: jax.Array) -> jax.Array:
    """Inclusive cumulative sum of (C,) bool: int32. A product with a triangle beats XLA's windowed sum."""
    runs = jnp.pad(mask, (0, -mask.shape[0] % _RUN)).reshape(-1, _RUN).astype(jnp.float32)
    triangle = jnp.triu(jnp.ones((_RUN, _RUN), jnp.float32))
    within = jnp.matmul(runs, triangle, precision=lax.Precision.HIGHEST)
    before = jnp.cumsum(within[:, -1]) - within[:, -1]
    return (within + before[:, None]).reshape(-1)[: mask.shape[0]].astype(jnp.int32)


def kth_smallest(values: jax.Array, k: int) -> jax.Array:
    """The k-th smallest of each row: (Q, C) float32, 0 or more, to (Q,); inf where there are fewer."""
    bits = lax.bitcast_convert_type(values, jnp.int32)
    return lax.bitcast_convert_type(_kth_bits(bits, k), jnp.float32)


def _kth_bits(bits: jax.Array, k: int) -> jax.Array:
    def halve(_, bounds):
        low, high = bounds  # at most k-1 values lie at or below low; k or more at or below high
        middle = low + (high - low) // 2
        # Counted in float32, exact up to 2^24: an integer sum of comparisons does not vectorise.
        enough = jnp.sum(bits <= middle[:, None], axis=1, dtype=jnp.float32) >= k
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    rows = bits.shape[0]
    start = jnp.full((rows,), -1, jnp.int32), jnp.full((rows,), _INFINITE, jnp.int32)
    return lax.fori_loop(0, _BITS, halve, start)[1]


def _chosen(bits: jax.Array, ids: jax.Array, k: int) -> jax.Array:
    """(Q, C) bool, the k smallest finite (value, id) pairs of each row."""
    kth = _kth_bits(bits, k)[:, None]
    below, equal = bits < kth, (bits == kth) & (kth < _INFINITE)
    room = k - jnp.sum(below, axis=1, dtype=jnp.int32)
    tied = jnp.sum(equal, axis=1, dtype=jnp.int32) > room

    def halve(bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(equal & (ids <= middle[:, None]), axis=1, dtype=jnp.int32) >= room
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    # Ties across the boundary are rare in measured clouds, so their search runs only where there is one.
    high = jnp.max(ids, axis=1)
    low = jnp.where(tied, -1, high - 1)
    _, last = lax.while_loop(lambda b: jnp.any(b[1] - b[0] > 1), halve, (low, high))
    return below | (equal & (ids <= last[:, None]))


def sort_pairs(values: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows of (Q, k) pairs ascending by value, then id; values are 0 or more.

    One integer array sorts an order of magnitude faster than two through a comparator. So the slot is packed
    into the lowest bits of the value, and neighbours that this left in the wrong order are exchanged after.
    """
    k = values.shape[1]
    slots = (1 << max(1, (k - 1).bit_length())) - 1
    keys = (lax.bitcast_convert_type(values, jnp.int32) & ~slots) | jnp.arange(k, dtype=jnp.int32)[None, :]
    slot = lax.sort(keys, dimension=1) & slots
    values, ids = jnp.take_along_axis(values, slot, axis=1), jnp.take_along_axis(ids, slot, axis=1)

    def wrong(values, ids):
        ahead = values[:, :-1] > values[:, 1:]
        return ahead | ((values[:, :-1] == values[:, 1:]) & (ids[:, :-1] > ids[:, 1:]))

    def exchange(state):
        values, ids, _, parity = state
        swap = wrong(values, ids) & (jnp.arange(k - 1) % 2 == parity)[None, :]
        up, down = jnp.pad(swap, ((0, 0), (0, 1))), jnp.pad(swap, ((0, 0), (1, 0)))
        values, ids = (
            jnp.where(up, jnp.roll(a, -1, axis=1), jnp.where(down, jnp.roll(a, 1, axis=1), a))
            for a in (values, ids)
        )
        return values, ids, jnp.any(wrong(values, ids)), 1 - parity

    state = values, ids, jnp.any(wrong(values, ids)), jnp.int32(0)
    values, ids, _, _ = lax.while_loop(lambda s: s[2], exchange, state)
    return values, ids
