"""The walk of one device round the ring: inside ``shard_map``, seen from the device at ``place``.

A device has a block of L samples, whole tiles. ``rows`` are kept by the device whose samples they are
distances to, (D, ..., M, L), and come into the order of the set when they are handed on. While a block is
being scored the next one is on its way: its ``ppermute`` is issued first and depends on nothing that is being
computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from muscjax import distances, scoring
from muscjax.distances import Plan, Samples


@dataclasses.dataclass(frozen=True)
class Place:
    """A device in the ring; of the set's tiles it has every ``size``-th, from ``number`` on."""

    axis: str
    size: int
    tile: int
    number: Array

    def shifted(self, data: Any, by: int) -> Any:
        """What the device ``by`` places behind sends; this one's go to the one ``by`` places ahead."""
        pairs = [(i, (i + by) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), data)

    def ids(self, positions: Array) -> Array:
        """Numbers within the set of the samples at these positions of this device."""
        tiles = positions // self.tile * self.size + self.number
        return tiles * self.tile + positions % self.tile


def _put(rows: Array, found: Array, place: Place, ahead: Any) -> Array:
    """``found`` (..., L) as the distances to the samples of the device that is ``ahead`` in the ring."""
    return lax.dynamic_update_index_in_dim(rows, found, (place.number + ahead) % place.size, 0)


def _in_order(rows: Array, place: Place, n: int) -> Array:
    """(D, B, M, L) by device to (B, M, N) in the order of the set."""
    tiles = rows.reshape(*rows.shape[:3], -1, place.tile)
    return jnp.moveaxis(tiles, 0, -2).reshape(*rows.shape[1:3], -1)[..., :n]


def symmetric(
    own: tuple[Samples | None, ...],
    fn: Callable,
    *,
    place: Place,
    plan: Plan,
    n: int,
    count: Array,
    kernel: dict[str, Any],
) -> Any:
    """All rows of this device's samples, then ``fn``."""
    tiles = -(-count // (place.size * place.tile))  # that the fullest device has
    image, points = (None if x is None else _mutual(x, place, tiles, kernel) for x in own)
    length = next(len(x.features) for x in own if x is not None)

    def block(positions: Array) -> Any:
        rows = [None if x is None else _in_order(x[:, positions], place, n) for x in (image, points)]
        return scoring.hand_out(rows[0], rows[1], fn, place.ids(positions), n, count)

    return scoring.map_blocks(block, length, plan.block)


def _mutual(own: Samples, place: Place, tiles: Array, kernel: dict[str, Any]) -> Array:
    """(D, L, M, L): distances to all samples by the device that holds them, each pair computed once."""
    length, m, _ = own.features.shape
    half = place.size // 2
    here = place.shifted(own, -1)
    rows = jnp.full((place.size, length, m, length), jnp.inf)
    within = distances.mutual_min_distances(
        own.features, valid=own.valid, cells=own.cells, count=tiles * place.tile, tile=place.tile, **kernel
    )
    rows = _put(rows, within, place, 0)
    back: list[tuple[Array, int]] = []  # minima on their way from the device so many places behind
    for step in range(1, (place.size + 1) // 2):
        here = _after(here, rows)
        following = place.shifted(here, -1) if step < half else here
        found, columns = _cross(own, here, tiles, tiles, tile=place.tile, kernel=kernel)
        rows = _put(_arrived(rows, back, place), jnp.sqrt(found), place, step)
        back = [(place.shifted(columns, step), step)]
        here = following
    if place.size % 2 == 0:
        here = _after(here, rows)
        found = _shared(own, here, place, tiles, kernel)
        rows = _put(rows, jnp.sqrt(found), place, half)
    return _arrived(rows, back, place)


def _arrived(rows: Array, back: list[tuple[Array, int]], place: Place) -> Array:
    for columns, behind in back:
        rows = _put(rows, jnp.sqrt(columns), place, -behind)
    return rows


def _after(here: Samples, rows: Array) -> Samples:
    """``here``, which cannot leave before ``rows`` are there: no device holds more than one block in advance.

    XLA drops its barriers before it orders a program, so the order is put into the data: none is below 0.
    """
    there = ~(rows[0, 0, 0, 0] < -1)
    return jax.tree.map(lambda x: jnp.where(there, x, jnp.zeros_like(x)), here)


def _shared(own: Samples, other: Samples, place: Place, tiles: Array, kernel: dict[str, Any]) -> Array:
    """(L, M, L) squared distances to the block half a ring away, which that device computes too.

    Of the two blocks A (on the lower device) and B, the lower device computes the first half of A's tiles
    against B, the upper one the rest; then they exchange what is the other's.
    """
    length, m, _ = own.features.shape
    half = -(-length // (2 * place.tile)) * place.tile
    high = -(-tiles // 2)
    start = high * place.tile  # of the upper device's part of A: halves of the samples that are there
    lower = place.number < place.size // 2
    rest = start + jnp.arange(half, dtype=jnp.int32)
    part = jax.tree.map(
        lambda mine, theirs: jnp.where(lower, mine[:half], jnp.take(theirs, rest, axis=0, mode="clip")),
        own,
        other,
    )
    whole = jax.tree.map(lambda mine, theirs: jnp.where(lower, theirs, mine), own, other)
    rows, columns = _cross(part, whole, high, tiles, tile=place.tile, kernel=kernel)
    sent = jnp.where(lower, columns.reshape(-1), rows.reshape(-1))
    received = place.shifted(sent, place.size // 2)
    of_a = jnp.concatenate([rows, rows])  # the second half is overwritten
    of_a = lax.dynamic_update_slice(of_a, received.reshape(half, m, length), (start, 0, 0))
    of_b = jnp.concatenate([received.reshape(length, m, half), columns], axis=2)
    of_b = lax.dynamic_update_slice(of_b, columns, (0, 0, start))
    return jnp.where(lower, of_a[:length], of_b[..., :length])


def _cross(
    first: Samples, second: Samples, high: Array, wide: Array, *, tile: int, kernel: dict[str, Any]
) -> tuple[Array, Array]:
    """Squared minima of two blocks of samples, tile by tile: (A, M, B) and (B, M, A); each pair once.

    Of the tiles, the first ``high`` and ``wide`` are met; the rest stays inf.
    """

    def step(pair: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        i, j = tile * (pair // wide), tile * (pair % wide)
        rows, columns = distances.meet(first.pick(i, tile), second.pick(j, tile), **kernel)
        assert columns is not None
        return (
            lax.dynamic_update_slice(found[0], rows, (i, 0, j)),
            lax.dynamic_update_slice(found[1], columns, (j, 0, i)),
        )

    shape = len(first.features), first.features.shape[1], len(second.features)
    empty = jnp.full(shape, jnp.inf), jnp.full(shape[::-1], jnp.inf)
    return lax.fori_loop(0, high * wide, step, empty)


def in_blocks(
    own: tuple[Samples | None, ...],
    fn: Callable,
    *,
    place: Place,
    plan: Plan,
    n: int,
    count: Array,
    kernel: dict[str, Any],
) -> Any:
    """The rows of ``plan.block`` samples at a time, each time once round the ring, then ``fn``."""
    length = next(len(x.features) for x in own if x is not None)
    size = max(plan.block // plan.tile, 1) * plan.tile
    nexts = [None if x is None else place.shifted(x, -1) for x in own]  # each round begins with this block

    def block(positions: Array) -> Any:
        rows = [
            None
            if x is None or here is None
            else _in_order(_around(x, here, positions[0], size, place, kernel), place, n)
            for x, here in zip(own, nexts, strict=True)
        ]
        return scoring.hand_out(rows[0], rows[1], fn, place.ids(positions), n, count)

    return scoring.map_blocks(block, length, size)


def _around(
    own: Samples, here: Samples, start: Array, size: int, place: Place, kernel: dict[str, Any]
) -> Array:
    """(D, B, M, L): distances of ``size`` samples from ``start`` on to all samples, by device."""
    (length, m, _), tile = own.features.shape, place.tile
    asking = own.padded(size).pick(start, size)

    def within(number: Array) -> Array:
        return distances.tile_distances(
            own.features, number, valid=own.valid, cells=own.cells, tile=tile, **kernel
        )

    def against(other: Samples) -> Array:
        return distances.min_distances(
            asking.features,
            other.features,
            reference_valid=other.valid,
            query_cells=asking.cells,
            reference_cells=other.cells,
            tile=tile,
            **kernel,
        )

    def step(ahead: Array, state: tuple[Samples, Array]) -> tuple[Samples, Array]:
        here, rows = state
        following = place.shifted(here, -1)
        return following, _put(rows, against(here), place, ahead)

    tiles = start // tile + jnp.arange(size // tile, dtype=jnp.int32)
    rows = jnp.full((place.size, size, m, length), jnp.inf)
    rows = _put(rows, lax.map(within, tiles).reshape(size, m, length), place, 0)
    if place.size == 1:
        return rows
    here, rows = lax.fori_loop(1, place.size - 1, step, (here, rows))
    return _put(rows, against(here), place, place.size - 1)
