"""What becomes of whole rows of distances, a block of samples at a time: enhancement and average.

The functions that ``scoring.map_rows`` and ``scoring.map_distances`` are given are made of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from muscjax import maps
from muscjax.batching import each
from muscjax.errors import InputError
from muscjax.types import Array, Features, PointGroups

POINT_GRID = (28, 28)  # where there are no image patches: the paper's grid


def places(
    image_shape: tuple[int, ...] | None,
    pixel: Array | np.ndarray | None,
    *,
    window: int | None,
    grid_hw: tuple[int, int] | None,
    map_hw: tuple[int, int],
) -> tuple[Array | None, Array | None]:
    """Where patches and groups lie on the patch grid, for a search ``window``; None where there is none.

    Args:
        image_shape: (N, M) of the image patches, or None.
        pixel: (N, G) int32 flat pixels of the groups' centres on a map of ``map_hw``, or None.

    Returns:
        (N, M, 2) and (N, G, 2) int32, row and column. A group has the cell of its centre's pixel.
    """
    if window is None:
        return None, None
    image = points = None
    if image_shape is not None:
        assert grid_hw is not None
        cells = np.stack(np.divmod(np.arange(image_shape[1]), grid_hw[1]), axis=-1)
        image = jnp.asarray(np.broadcast_to(cells.astype(np.int32), (*image_shape, 2)))
    if pixel is not None:
        grid = grid_hw or POINT_GRID
        patch = maps.patch_of_pixel(jnp.asarray(pixel), map_hw, grid)
        points = jnp.stack([patch // grid[1], patch % grid[1]], axis=-1)
    return image, points


def score_rows(
    image_rows: Array | None,
    point_rows: Array | None,
    ref_valid: Array,
    ids: Array,
    *,
    groups: PointGroups | None,
    scoring_config: Any,
    cae_config: Any,
    grid_hw: tuple[int, int] | None,
    map_hw: tuple[int, int],
    fuse: Callable,
    average: Callable,
) -> tuple[Array | None, Array | None]:
    """Patch scores of the samples ``ids`` from their rows: averages, of what was enhanced where it can be."""
    if image_rows is not None and point_rows is not None and cae_config.enabled:
        assert groups is not None
        assert grid_hw is not None
        shape: dict[str, Any] = {"grid_hw": grid_hw, "map_hw": map_hw}
        image_rows, point_rows = fuse_rows(
            image_rows, point_rows, groups, ref_valid, ids, config=cae_config, fuse=fuse, **shape
        )
    settings: dict[str, Any] = {"fraction": scoring_config.interval, "average": average}
    return average_rows(image_rows, point_rows, groups, ref_valid, ids, **settings)


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
    return fuse_block(image_rows, point_rows, patch, groups.valid[ids], both, config=config, fuse=fuse)


def fuse_block(
    image_rows: Array,
    point_rows: Array,
    patch: Array,
    group_valid: Array,
    both: Array,
    *,
    config: Any,
    fuse: Callable,
) -> tuple[Array, Array]:
    """``fuse``, sample by sample: (B, M, R), (B, G, R), (B, G), (B, G), (B, R) -> new rows.

    ``both`` says which references have both modalities, as the sample has itself.
    """
    return each(lambda one: fuse(*one, config), (image_rows, point_rows, patch, group_valid, both))


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
