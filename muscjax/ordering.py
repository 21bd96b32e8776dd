"""Stable order and rank matching: what the interval average and CAE are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_TINY = np.finfo(np.float32).tiny  # the smallest normal number


def _key(values: Array) -> Array:
    """int32 keys in the order of the float32 values; -0, 0 and subnormals are the same value.

    Chosen, not added to 0: a compiler removes a sum with 0, and with it the one sign of zero.
    """
    values = jnp.where(jnp.abs(values) < _TINY, jnp.float32(0), values)
    bits = lax.bitcast_convert_type(values, jnp.int32)
    return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))


def _value(key: Array) -> Array:
    return lax.bitcast_convert_type(key ^ ((key >> 31) & jnp.int32(0x7FFFFFFF)), jnp.float32)


def ascending(values: Array) -> Array:
    """Sort the last axis, ascending.

    Integer keys: XLA's float comparison makes a CPU sort about four times slower.

    Args:
        values: (..., L) float32, no NaN.
    """
    return _value(lax.sort(_key(values), dimension=-1, is_stable=False))


def stable_order(values: Array) -> Array:
    """Stable ascending order of a vector, as indices: (L,) float32 without NaN -> (L,) int32.

    Key and position are packed into one 64-bit integer where that is the fastest sort there is (CPU,
    GPU); TPUs have no 64-bit integers and sort the pair.
    """
    position = lax.iota(jnp.int32, values.shape[0])

    def packed(key: Array) -> Array:
        with jax.enable_x64(True):
            both = lax.sort((key.astype(jnp.int64) << 32) | position.astype(jnp.int64), is_stable=False)
            return (both & 0xFFFFFFFF).astype(jnp.int32)

    def paired(key: Array) -> Array:
        return lax.sort((key, position), num_keys=1, is_stable=True)[1]

    return lax.platform_dependent(_key(values), tpu=paired, default=packed)


def place(order: Array, values: Array) -> Array:
    """The vector whose ``order[i]``-th entry is ``values[i]``: an inverse permutation by scatter."""
    return jnp.zeros_like(values).at[order].set(values, unique_indices=True, indices_are_sorted=False)


def rank_match(target: Array, sorted_source: Array, active: Array | None = None) -> Array:
    """Replace the values of ``target`` by those of a source of equal rank (stable in ``target``).

    Args:
        target: (L,) float32, finite where active.
        sorted_source: (L,) float32, ascending; its first ``sum(active)`` entries are used.
        active: (L,) bool or None (all); the other entries come back as they are.
    """
    if active is None:
        return place(stable_order(target), sorted_source)
    matched = place(stable_order(jnp.where(active, target, jnp.inf)), sorted_source)
    return jnp.where(active, matched, target)
