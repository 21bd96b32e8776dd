"""One stage as one compiled program: its patch scores, or its distances alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from muscjax import parallel, rows, scoring
from muscjax.types import Array, PointGroups


@functools.partial(jax.jit, static_argnames=("tile", "precision", "implementation", "refine", "window"))
def measure_stage(
    features: Array, valid: Array | None, cells: Array | None, count: Array, **settings: Any
) -> Array:
    """``scoring.mutual_min_distances`` of one modality: (N, M, C) to (N, M, N)."""
    return scoring.mutual_min_distances(features, valid=valid, cells=cells, count=count, **settings)


@functools.partial(
    jax.jit,
    static_argnames=(
        "plan", "scoring_config", "cae_config", "grid_hw", "map_hw", "fuse", "average", "mesh"
    ),
)  # fmt: skip
def score_stage(
    image: Array | None,
    points: Array | None,
    groups: PointGroups | None,
    count: Array,
    *,
    plan: scoring.Plan,
    scoring_config: Any,
    cae_config: Any,
    grid_hw: tuple[int, int] | None,
    map_hw: tuple[int, int],
    fuse: Callable,
    average: Callable,
    mesh: Mesh | None = None,
    known: tuple[Array | None, Array | None] = (None, None),
) -> tuple[Array | None, Array | None]:
    """Patch scores of one stage: (N, M, C), (N, G, C) -> (N, M), (N, G); either modality may be None.

    Over a ``mesh`` the features are dealt (``parallel.deal``), and so are the scores; the groups of all
    samples are on every device. ``known`` are distances of ``measure_stage``, for ``plan`` ``symmetric``.
    """
    statistics = functools.partial(
        rows.score_rows,
        groups=groups,
        scoring_config=scoring_config,
        cae_config=cae_config,
        grid_hw=grid_hw,
        map_hw=map_hw,
        fuse=fuse,
        average=average,
    )
    image_cells, point_cells = rows.places(
        None if image is None else (int(np.prod(image.shape[:-2])), image.shape[-2]),
        None if groups is None else groups.pixel,
        window=scoring_config.window,
        grid_hw=grid_hw,
        map_hw=map_hw,
    )
    valid = None if groups is None else groups.valid
    if any(x is not None for x in known):
        sides = ((image, None, image_cells), (points, valid, point_cells))
        image_distances, point_distances = (
            had
            if had is not None or x is None
            else scoring.mutual_min_distances(
                x, valid=mask, cells=cells, count=count, tile=plan.tile, **scoring_config.kernel
            )
            for had, (x, mask, cells) in zip(known, sides, strict=True)
        )
        return scoring.map_distances(
            image_distances, point_distances, statistics, block=plan.block, count=count
        )
    map_rows = scoring.map_rows if mesh is None else functools.partial(parallel.map_rows, mesh=mesh)
    return map_rows(
        image,
        points,
        statistics,
        plan=plan,
        points_valid=valid,
        image_cells=image_cells,
        point_cells=point_cells,
        count=count,
        **scoring_config.kernel,
    )
