"""What becomes of whole rows of distances, a block of samples at a time: enhancement and average.

The functions that ``scoring.map_rows`` and ``scoring.map_distances`` are given are made of these two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from muscjax import maps
from muscjax.errors import InputError
from muscjax.types import Array, Features, PointGroups


def fuse_rows(
    image_rows: Array,
    point_rows: Array,
    groups: PointGroups,
    ref_valid: Array,
    ids: Array,
    *,
    config: Any,
    grid_hw: tuple[int, int],
    map_hw: tuple[int, int],
    fuse: Callable,
) -> tuple[Array, Array]:
    """``fuse`` on the rows of the samples ``ids``, as ``scoring.map_rows`` hands them out."""
    has_points = jnp.any(groups.valid, axis=1)
    both = ref_valid & has_points[None] & has_points[ids][:, None]
    patch = maps.patch_of_pixel(groups.pixel[ids], map_hw, grid_hw)
    data = (image_rows, point_rows, patch, groups.valid[ids], both)
    return lax.map(lambda sample: fuse(*sample, config), data)


def average_rows(
    image_rows: Array | None,
    point_rows: Array | None,
    groups: PointGroups | None,
    ref_valid: Array,
    ids: Array,
    *,
    fraction: float | Array,
    average: Callable,
) -> tuple[Array | None, Array | None]:
    """``average`` on the rows of the samples ``ids``: (B, M), (B, G)."""
    image_scores, point_scores = (
        None if rows is None else average(rows, fraction, ref_valid[:, None])
        for rows in (image_rows, point_rows)
    )
    if point_scores is not None:
        assert groups is not None
        point_scores = jnp.where(groups.valid[ids], point_scores, 0)
    return image_scores, point_scores


def paired_entries(features: Features) -> list[tuple[int, int]]:
    """Which entries of the image and of the point features are scored together.

    Block by block and, within a block, level by level; a modality that has one block (level) only uses it
    for every one of the other's. The number of a modality that is not there means nothing.

    Raises:
        InputError: numbers of blocks or levels that do not match.
    """
    there = [
        (len(x) // levels, levels)
        for x, levels in zip((features.image, features.points), features.levels, strict=True)
        if x is not None
    ]
    blocks, levels = (max(counts) for counts in zip(*there, strict=True))
    for name, counts, most in (
        ("stages", [b for b, _ in there], blocks),
        ("levels", [n for _, n in there], levels),
    ):
        if any(count not in (1, most) for count in counts):
            raise InputError(f"found {' and '.join(map(str, counts))} {name}, expected as many or 1")
    first, last = there[0], there[-1]
    return [
        (_entry(first, block, level), _entry(last, block, level))
        for block in range(blocks)
        for level in range(levels)
    ]


def _entry(counts: tuple[int, int], block: int, level: int) -> int:
    blocks, levels = counts
    return min(block, blocks - 1) * levels + min(level, levels - 1)
