"""Mutual scoring in steps that keep their results: all distances once, then whatever follows from them.

``pipeline.score`` holds one stage's distances at a time and keeps none. Whoever scores the same features in
many ways (subsets, other averages, with and without enhancement) measures the distances once here and gets
the same scores: the steps run the same functions on the same rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import cae, pipeline, rows, scoring
from muscjax.config import Config
from muscjax.errors import InputError
from muscjax.extract import Progress, pad_samples, silent
from muscjax.stages import measure_stage
from muscjax.types import Features, PatchScores, PointGroups


class Distances(NamedTuple):
    """Distances of every patch to the nearest patch of every sample, on the host; inf on the diagonal."""

    image: np.ndarray | None  # (S, N, M, N) float32
    points: np.ndarray | None  # (S or 1, N, G, N) float32


def measure(
    features: np.ndarray,
    config: Config,
    *,
    valid: np.ndarray | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """All distances of one modality: (S, N, M, C) to (S, N, M, N) float32.

    Args:
        valid: (N, M) bool or None, patches that count; ``groups.valid`` of point features.

    Raises:
        InputError: fewer than two samples, a memory budget that all stages together do not fit, or a
            ``scoring.window``, which needs to know where patches lie.
    """
    stages, n, m = features.shape[:3]
    if config.scoring.window is not None:
        raise InputError(
            f"scoring.window: found {config.scoring.window}, expected none where distances are kept"
        )
    if n < 2:
        raise InputError(f"mutual scoring needs at least two scans, found {n}")
    size, plan = pipeline.plan_of(Features(features, None), config)
    needed = 4 * n * m * n * stages
    if needed > config.run.memory_budget // 2:
        raise InputError(
            f"run.memory_budget: all distances of {n} scans take {needed / 2**30:.1f} GiB, "
            f"expected at most half of {config.run.memory_budget / 2**30:.1f} GiB"
        )
    mask = None if valid is None else pad_samples(np.asarray(valid), size)
    out = np.empty((stages, n, m, n), np.float32)
    for stage in range(stages):
        found = measure_stage(
            pad_samples(features[stage], size),
            mask,
            None,
            jnp.asarray(n, jnp.int32),
            tile=plan.tile,
            **config.scoring.kernel,
        )
        out[stage] = np.asarray(found)[:n, :, :n]
        progress("distances", stage + 1, stages)
    return out


def take(distances: Distances, ids: np.ndarray) -> Distances:
    """The distances among the samples ``ids``, in that order."""
    return Distances(*(None if x is None else x[:, ids][..., ids] for x in distances))


def fuse(
    distances: Distances,
    features: Features,
    groups: PointGroups,
    config: Config,
    *,
    grid_hw: tuple[int, int],
    map_hw: tuple[int, int],
    function: Callable = cae.enhance,
    progress: Progress = silent,
) -> Distances:
    """Both modalities' distances after ``function``, for every pair of entries that is scored together."""
    assert distances.image is not None
    assert distances.points is not None
    size, plan = pipeline.plan_of(features, config)
    n, entries = distances.image.shape[1], rows.paired_entries(features)
    padded = pipeline.pad_groups(groups, size)
    out = [np.empty((len(entries), *x.shape[1:]), np.float32) for x in (distances.image, distances.points)]
    for done, (image, points) in enumerate(entries):
        found = _fuse_entry(
            _padded(distances.image[image], size),
            _padded(distances.points[points], size),
            padded,
            jnp.asarray(n, jnp.int32),
            block=plan.block,
            config=config.cae,
            grid_hw=grid_hw,
            map_hw=map_hw,
            fuse=function,
        )
        for whole, part in zip(out, found, strict=True):
            whole[done] = np.asarray(part)[:n, :, :n]
        progress("enhancement", done + 1, len(entries))
    return Distances(*out)


@functools.partial(jax.jit, static_argnames=("block", "config", "grid_hw", "map_hw", "fuse"))
def _fuse_entry(image, points, groups, count, *, block, **settings):
    def fused(image_rows, point_rows, ref_valid, ids):
        return rows.fuse_rows(image_rows, point_rows, groups, ref_valid, ids, **settings)

    return scoring.map_distances(image, points, fused, block=block, count=count)


def average(
    distances: Distances,
    features: Features,
    groups: PointGroups | None,
    config: Config,
    *,
    function: Callable | None = None,
    progress: Progress = silent,
) -> PatchScores:
    """Patch scores from distances, fused or not; ``features`` are those that the distances are of."""
    n = next(x for x in distances if x is not None).shape[1]
    size, plan = pipeline.plan_of(features, config)
    padded = pipeline.pad_groups(groups, size)
    totals: list[Any] = [None, None]
    entries = rows.paired_entries(features)
    for done, pair in enumerate(entries):
        found = _average_entry(
            *(
                # Fused distances have an entry for each pair.
                None if x is None else _padded(x[done if len(x) == len(entries) else entry], size)
                for x, entry in zip(distances, pair, strict=True)
            ),
            padded,
            jnp.asarray(n, jnp.int32),
            block=plan.block,
            fraction=config.scoring.interval,
            average=function or pipeline.AVERAGES[config.scoring.average],
        )
        pipeline.add_part(totals, found, n, len(entries))
        progress("averages", done + 1, len(entries))
    return pipeline.patch_scores(features, totals)


@functools.partial(jax.jit, static_argnames=("block", "fraction", "average"))
def _average_entry(image, points, groups, count, *, block, **settings):
    def averaged(image_rows, point_rows, ref_valid, ids):
        return rows.average_rows(image_rows, point_rows, groups, ref_valid, ids, **settings)

    return scoring.map_distances(image, points, averaged, block=block, count=count)


def _padded(distances: np.ndarray, size: int) -> np.ndarray:
    """(n, M, n) to (size, M, size)."""
    missing = size - len(distances)
    return np.pad(distances, ((0, missing), (0, 0), (0, missing))) if missing else distances


def score(
    distances: Distances,
    features: Features,
    groups: PointGroups | None,
    config: Config,
    *,
    grid_hw: tuple[int, int] | None,
    map_hw: tuple[int, int],
    **functions: Any,
) -> PatchScores:
    """``pipeline.score`` from distances; ``functions``: ``fuse``, ``average`` and ``progress`` as there."""
    progress = functions.get("progress", silent)
    if distances.image is not None and distances.points is not None and config.cae.enabled:
        assert groups is not None
        assert grid_hw is not None
        function = functions.get("fuse", cae.enhance)
        shape = {"grid_hw": grid_hw, "map_hw": map_hw}
        distances = fuse(distances, features, groups, config, function=function, progress=progress, **shape)
    return average(distances, features, groups, config, function=functions.get("average"), progress=progress)
