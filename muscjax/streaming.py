"""Mutual scoring of features that do not fit into memory: blocks of them are read while others are scored.

A block of queries meets all references, a block of references at a time, and its whole rows of distances go
to the functions that ``pipeline.score`` hands any rows to. The blocks are whole tiles of ``distances``, met
as there, so the distances are those of the other plans to the bit. As under ``rows`` every pair is computed
twice. Time is a constant per pair; memory is what the budget says, whatever the number of samples.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from muscjax import distances, rows, scoring
from muscjax.ahead import prefetch
from muscjax.distances import Samples
from muscjax.errors import InputError
from muscjax.types import PointGroups

Sides = Sequence[Any]  # of image and points: (N, M, C), an array or anything whose slices are such; or None
Remember = Callable[[str, Callable[[], Any]], Any]  # what was made under that name, or what is made now
_READ = 16  # samples that are read at once where one row of each is wanted


def afresh(name: str, make: Callable[[], Any]) -> Any:
    """The ``Remember`` that remembers nothing."""
    del name
    return make()


@dataclasses.dataclass(frozen=True)
class Stage:
    """(N, M, C) features of one stage that lie elsewhere; ``stage[a:b]`` and ``stage[ids]`` read them."""

    column: Any  # (N', M, C), read by an array of row numbers
    rows: np.ndarray  # (N,) of the column

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.column.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        return self.column[self.rows[key]]


@dataclasses.dataclass(frozen=True)
class Stages:
    """(S, N, M, C) features that lie elsewhere: ``x[s]`` is a ``Stage``, ``x[:, ids]`` holds some samples."""

    stages: tuple[Stage, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.stages), *self.stages[0].shape)

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            _, ids = key
            return Stages(tuple(Stage(stage.column, stage.rows[ids]) for stage in self.stages))
        return self.stages[key]


def under(prefix: str, remember: Remember) -> Remember:
    """``remember`` with all names below ``prefix``."""
    return lambda name, make: remember(f"{prefix}/{name}", make)


def whole(stage: Any) -> Any:
    """The features of a stage in memory."""
    return stage[:] if isinstance(stage, Stage) else stage


def chosen_rows(stage: Any, patches: np.ndarray) -> np.ndarray:
    """(N, C): of each sample the feature of one patch; ``patches`` (N,)."""
    if not isinstance(stage, Stage):
        return np.asarray(stage)[np.arange(len(patches)), patches]
    parts = [slice(start, start + _READ) for start in range(0, len(patches), _READ)]
    read = prefetch(lambda part: stage[part], parts, workers=1, ahead=1)
    return np.concatenate(
        [block[np.arange(len(block)), patches[part]] for part, block in zip(parts, read, strict=True)]
    )


@dataclasses.dataclass(frozen=True)
class Walk:
    """Sizes in samples. ``queries`` and ``references`` are whole tiles, ``queries`` whole blocks too."""

    queries: int
    references: int
    block: int  # whose rows are handed out at once
    tile: int


def walk_of(
    n: int, shapes: Sequence[tuple[int, int]], *, memory_budget: int, tile_bytes: int = scoring.TILE_BYTES
) -> Walk:
    """The largest blocks that the budget holds: a quarter for each of what is alive at once.

    Args:
        n: samples, with their padding. shapes: (M, C) of each modality.

    Raises:
        InputError: the budget does not hold a dozen copies of one sample's rows.
    """
    features, row = 4 * sum(m * c for m, c in shapes), 4 * n * sum(m for m, _ in shapes)
    largest = 4 * max(m for m, _ in shapes) ** 2
    quarter = memory_budget // 4
    block = min(8, n, quarter // (12 * row))
    if block < 1 or largest > quarter:
        raise InputError(
            f"run.memory_budget: {memory_budget / 2**20:.0f} MiB do not hold the distances of one of {n} "
            f"scans, expected at least {max(48 * row, 4 * largest) / 2**20:.0f} MiB"
        )
    # As ``scoring.plan`` has it, so that both round alike.
    tile = max(1, min(math.isqrt(min(tile_bytes, memory_budget // 8) // largest), n))
    unit = math.lcm(tile, block)
    if unit * row > quarter:  # where rows are long, tiles are what gives way
        tile = block
        unit = block
    queries = max(1, quarter // (unit * (row + 2 * features))) * unit
    references = max(1, quarter // (tile * 3 * features)) * tile
    return Walk(min(queries, -(-n // unit) * unit), min(references, -(-n // tile) * tile), block, tile)


def score_stage(
    sides: Sides,
    groups: PointGroups | None,
    *,
    walk: Walk,
    size: int,
    count: int,
    kernel: dict[str, Any],
    cells: Sequence[Any] = (None, None),
    remember: Remember = afresh,
    step: Callable[[int, int], None] = lambda done, total: None,
    **statistics: Any,
) -> list[np.ndarray | None]:
    """Patch scores of one stage, (N, M) and (N, G), as ``pipeline.score_stage`` gives them.

    Args:
        sides: image and point features, of N samples each; either may be None.
        groups: padded to ``size``.
        size: N padded to its bucket: the width of the rows that are handed out.
        count: N.
        kernel: keywords of ``distances.meet``. cells: of both sides, padded to ``size``, for ``window``.
        remember: called with the number of each block of queries; what it has is not computed.
        step: called as (done, total) after each of them.
        statistics: what ``rows.score_rows`` is told beside ``groups``.
    """
    width = -(-size // walk.references) * walk.references
    valid = (None, None if groups is None else np.asarray(groups.valid))
    settings = tuple(sorted(kernel.items()))

    def read(ids: range) -> list[Samples | None]:
        """The samples ``ids``, filled up with samples of zeros that are not there."""
        return [
            None
            if side is None
            else Samples(*(_block(x, ids, count) for x in (side, side_valid, side_cells)))
            for side, side_valid, side_cells in zip(sides, valid, cells, strict=True)
        ]

    starts = range(0, count, walk.queries)
    others = [range(a, a + walk.references) for a in range(0, count, walk.references)]
    held: list[Any] = [None, None]  # the rows of the block in hand

    def block(start: int) -> list[Any]:
        own = range(start, start + walk.queries)
        parts = prefetch(read, [own, *others], workers=1, ahead=1)
        asking = jax.device_put(next(parts))
        for side, samples in enumerate(asking):
            if samples is not None and held[side] is None:
                held[side] = jnp.zeros((walk.queries, samples.features.shape[1], width), jnp.float32)
        coming = jax.device_put(next(parts))
        for other in others:
            met, coming = coming, None
            for side, (queries, references) in enumerate(zip(asking, met, strict=True)):
                if queries is not None:
                    held[side] = _met(
                        held[side], queries, references, _number(other.start), tile=walk.tile, kernel=settings
                    )
            coming = jax.device_put(next(parts, None))
            jax.block_until_ready(held)  # no more than one block is waiting
        for side, queries in enumerate(asking):
            if queries is not None and walk.tile > 1:
                held[side] = _within(held[side], queries, _number(start), tile=walk.tile, kernel=settings)
        found = _scored(
            *held, groups, _number(start), _number(count), size=size, block=walk.block, **statistics
        )
        return [None if x is None else np.asarray(x)[: min(count - start, walk.queries)] for x in found]

    done: list[list[Any]] = []
    for number, start in enumerate(starts):
        done.append(remember(str(number), lambda start=start: block(start)))
        step(number + 1, len(starts))
    return [None if parts[0] is None else np.concatenate(parts) for parts in zip(*done, strict=True)]


def _number(value: int) -> np.ndarray:
    """An argument that is traced: one program for all of its values."""
    return np.asarray(value, np.int32)


def _block(array: Any, ids: range, count: int) -> Any:
    """The samples ``ids`` of ``array``, those from ``count`` on as zeros."""
    if array is None:
        return None
    found = np.asarray(array[ids.start : min(ids.stop, count)])
    missing = len(ids) - len(found)
    return np.concatenate([found, np.zeros((missing, *found.shape[1:]), found.dtype)]) if missing else found


@functools.partial(jax.jit, static_argnames=("tile", "kernel"), donate_argnums=0)
def _met(
    rows: Array, queries: Samples, references: Samples, first: Array, *, tile: int, kernel: Any
) -> Array:
    """``rows`` (Q, M, N) with the distances to the references, whose first sample is number ``first``."""
    found = distances.min_distances(
        queries.features,
        references.features,
        reference_valid=references.valid,
        query_cells=queries.cells,
        reference_cells=references.cells,
        tile=tile,
        **dict(kernel),
    )
    return lax.dynamic_update_slice_in_dim(rows, found, first, axis=2)


@functools.partial(jax.jit, static_argnames=("tile", "kernel"), donate_argnums=0)
def _within(rows: Array, queries: Samples, first: Array, *, tile: int, kernel: Any) -> Array:
    """``rows`` with the distances inside each tile of the queries, which another product gives."""

    def one(number: Array, rows: Array) -> Array:
        found = jnp.sqrt(distances.inside_tile(queries.pick(tile * number, tile), dict(kernel)))
        return lax.dynamic_update_slice(rows, found, (tile * number, 0, first + tile * number))

    return lax.fori_loop(0, len(queries.features) // tile, one, rows)


@functools.partial(
    jax.jit,
    static_argnames=(
        "size", "block", "scoring_config", "cae_config", "grid_hw", "map_hw", "fuse", "average"
    ),
)  # fmt: skip
def _scored(
    image: Array | None,
    points: Array | None,
    groups: PointGroups | None,
    first: Array,
    count: Array,
    *,
    size: int,
    block: int,
    **statistics: Any,
) -> Any:
    """The patch scores of the queries, whose first sample is number ``first``, from their whole rows."""
    function = functools.partial(rows.score_rows, groups=groups, **statistics)
    queries = len(next(x for x in (image, points) if x is not None))

    def one(start: Array) -> Any:
        picked = (
            None if x is None else lax.dynamic_slice_in_dim(x, start, block)[..., :size]
            for x in (image, points)
        )
        image_rows, point_rows = picked
        own = first + start + jnp.arange(block, dtype=jnp.int32)
        return scoring.hand_out(image_rows, point_rows, function, own, size, count)

    found = lax.map(one, jnp.arange(0, queries, block, dtype=jnp.int32))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
