"""New scans against a fixed set: their rows of distances, references read block by block, and frozen RsCon.

The statistics are those of ``pipeline.score_stage``. Nothing that a scan gets depends on the other new scans.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from muscjax import cae, geometry, maps, pipeline, rows, rscon
from muscjax.config import Config
from muscjax.distances import Samples, min_distances, plan
from muscjax.errors import InputError
from muscjax.extract import SAMPLE_BUCKET, Progress, pad_samples, silent
from muscjax.reference.kept import Frozen
from muscjax.types import Array, Features, PatchScores, PointGroups

_BLOCK = 8  # new scans whose rows are at hand at once


def score_against(
    queries: Features,
    groups: PointGroups | None,
    references: Features,
    reference_valid: np.ndarray | None,
    config: Config,
    *,
    grid_hw: tuple[int, int] | None,
    map_hw: tuple[int, int],
    reference_pixel: np.ndarray | None = None,
    same: np.ndarray | None = None,
    fuse: Callable = cae.enhance,
    average: Callable | None = None,
    progress: Progress = silent,
) -> PatchScores:
    """Patch scores of Q new samples, each against R references and nothing else.

    Args:
        queries: (S, Q, M, C) and (S or 1, Q, G, C); either may be None.
        groups: leading axis Q, with the point features.
        references: as ``queries`` with R samples; ``references.image[s][a:b]`` may read them from a disk.
        reference_valid: (R, G) bool, groups that exist, with the point features.
        reference_pixel: (R, G) int32, where the references' groups lie on the map; for ``scoring.window``.
        same: (Q, R) bool: the reference is the very scan itself, and does not count.
        grid_hw, map_hw, fuse, average: as for ``pipeline.score``.

    Of each modality, ``run.memory_budget`` holds the rows of the scans in hand and a block of references;
    all references of one stage are held where they take less than a quarter of it.

    Raises:
        InputError: features of other shapes than the references', a scan without any reference but itself,
            or a memory budget that cannot hold the rows of one scan.
    """
    q, r = _checked(queries, references, same)
    entries = rows.paired_entries(queries)
    average = average or pipeline.AVERAGES[config.scoring.average]
    block, several, tile = _sizes(queries, r, config)
    if q == 1:
        block = 1
    padded = geometry.bucket_size(r, minimum=SAMPLE_BUCKET)
    has_points = np.zeros(padded, bool)
    if reference_valid is not None:
        has_points[:r] = np.asarray(reference_valid).any(axis=1)
    kernel: dict[str, Any] = {**config.scoring.kernel, "tile": tile}

    def cells_of(count: int, pixel: Any) -> tuple[Any, Any]:
        patches = None if queries.image is None else queries.image.shape[2]
        return rows.places(
            None if patches is None else (count, patches),
            pixel,
            window=config.scoring.window,
            grid_hw=grid_hw,
            map_hw=map_hw,
        )

    reference_cells = cells_of(r, reference_pixel)
    blocks = [range(start, min(start + block, q)) for start in range(0, q, block)]
    totals: list[Any] = [None, None]
    for number, pair in enumerate(entries):
        sides = [
            None if x is None else (x[entry], y[entry])
            for x, y, entry in zip(
                pipeline.features_of(queries), pipeline.features_of(references), pair, strict=True
            )
        ]
        streams = [
            None if side is None else _Stream(side[1], valid, cells, several, config.run.memory_budget // 4)
            for side, valid, cells in zip(sides, (None, reference_valid), reference_cells, strict=True)
        ]
        found: list[list[Any]] = [[], []]
        for done, ids in enumerate(blocks, start=1):
            own = [
                None if side is None else pad_samples(np.asarray(side[0][ids.start : ids.stop]), block)
                for side in sides
            ]
            of_block = None
            if groups is not None:
                of_block = jax.tree.map(lambda leaf, i=ids: np.asarray(leaf[i.start : i.stop]), groups)
                of_block = pipeline.pad_groups(of_block, block)
            own_cells = cells_of(block, None if of_block is None else of_block.pixel)
            counts = np.zeros((block, padded), bool)
            counts[:, :r] = True
            if same is not None:
                counts[: len(ids), :r] &= ~same[ids.start : ids.stop]
            made = statistics(
                *(
                    None if x is None or s is None else _distances(x, at, s, padded, kernel)
                    for x, at, s in zip(own, own_cells, streams, strict=True)
                ),
                of_block,
                has_points,
                counts,
                scoring_config=config.scoring,
                cae_config=config.cae,
                grid_hw=grid_hw,
                map_hw=map_hw,
                fuse=fuse,
                average=average,
            )
            for into, scores in zip(found, made, strict=True):
                into.append(None if scores is None else np.asarray(scores)[: len(ids)])
            progress("reference scoring", number * len(blocks) + done, len(entries) * len(blocks))
        whole = [None if part[0] is None else np.concatenate(part) for part in found]
        pipeline.add_part(totals, whole, q, len(entries))
    return pipeline.patch_scores(queries, totals)


def _checked(queries: Features, references: Features, same: np.ndarray | None) -> tuple[int, int]:
    shapes = [
        [None if x is None else (x.shape[0], *x.shape[2:]) for x in pipeline.features_of(features)]
        for features in (queries, references)
    ]
    if shapes[0] != shapes[1] or queries.levels != references.levels:
        raise InputError(f"features of new scans: found {shapes[0]}, expected the references' {shapes[1]}")
    q, r = pipeline.count_of(queries), pipeline.count_of(references)
    alone = np.zeros(q, bool) if same is None else same.all(axis=1)
    if r == 0 or alone.any():
        raise InputError("scoring against references: found none but the scan itself, expected at least one")
    return q, r


def _sizes(queries: Features, r: int, config: Config) -> tuple[int, int, int]:
    """New scans whose rows are held at once, references read at once, and samples per distance block."""
    given = [x for x in pipeline.features_of(queries) if x is not None]
    budget, patches = config.run.memory_budget, tuple(x.shape[2] for x in given)
    padded = geometry.bucket_size(r, minimum=SAMPLE_BUCKET)
    try:
        tile_bytes = pipeline.tile_bytes(budget)
        chosen = plan(padded, patches, memory_budget=budget, tile_bytes=tile_bytes)
    except ValueError as error:
        raise InputError(f"run.memory_budget: {error}") from None
    sample = 4 * sum(int(np.prod(x.shape[2:])) for x in given)
    several = int(np.clip(budget // 16 // sample, 1, min(64, padded)))
    return min(chosen.block, _BLOCK), several, min(chosen.tile, several)


class _Stream:
    """The references of one stage in blocks of equal size; read once where they fit in ``hold`` bytes."""

    def __init__(
        self, features: Any, valid: np.ndarray | None, cells: Any | None, several: int, hold: int
    ) -> None:
        self._features, self._several = features, several
        self._beside = (valid, None if cells is None else np.asarray(cells))
        self._keep = 4 * int(np.prod(features.shape)) <= hold
        self._held: list[Samples] = []

    def __iter__(self) -> Iterator[Samples]:
        """``several`` samples at a time, padded with zeros."""
        if self._held:
            yield from self._held
            return
        total = self._features.shape[0]
        for start in range(0, total, self._several):
            stop = min(start + self._several, total)
            found = Samples(
                jnp.asarray(pad_samples(np.asarray(self._features[start:stop]), self._several)),
                *(None if x is None else pad_samples(x[start:stop], self._several) for x in self._beside),
            )
            if self._keep:
                self._held.append(found)
            yield found


def _distances(
    queries: np.ndarray, cells: Any | None, references: _Stream, padded: int, kernel: dict[str, Any]
) -> np.ndarray:
    """(B, M, C) -> (B, M, padded) on the host; what lies behind the last reference does not count."""
    out = np.full((*queries.shape[:2], padded), np.inf, np.float32)
    start = 0
    for block in references:
        stop = min(start + len(block.features), padded)
        found = _block_distances(queries, cells, block, **kernel)
        out[..., start:stop] = np.asarray(found)[..., : stop - start]
        start = stop
    return out


@functools.partial(jax.jit, static_argnames=("precision", "implementation", "refine", "window", "tile"))
def _block_distances(queries: Array, cells: Array | None, references: Samples, **kernel: Any) -> Array:
    return min_distances(
        queries,
        references.features,
        reference_valid=references.valid,
        query_cells=cells,
        reference_cells=references.cells,
        **kernel,
    )


@functools.partial(
    jax.jit, static_argnames=("scoring_config", "cae_config", "grid_hw", "map_hw", "fuse", "average")
)
def statistics(
    image_rows: Array | None,
    point_rows: Array | None,
    groups: PointGroups | None,
    has_points: Array,
    counts: Array,
    *,
    scoring_config: Any,
    cae_config: Any,
    grid_hw: tuple[int, int] | None,
    map_hw: tuple[int, int],
    fuse: Callable,
    average: Callable,
) -> tuple[Array | None, Array | None]:
    """Rows (B, M, R), (B, G, R) of which ``counts`` (B, R) count -> patch scores (B, M), (B, G)."""
    image_rows, point_rows = (
        None if x is None else jnp.where(counts[:, None], x, jnp.inf) for x in (image_rows, point_rows)
    )
    if image_rows is not None and point_rows is not None and cae_config.enabled:
        assert groups is not None
        assert grid_hw is not None
        both = counts & has_points[None] & jnp.any(groups.valid, axis=1)[:, None]
        patch = maps.patch_of_pixel(groups.pixel, map_hw, grid_hw)
        image_rows, point_rows = rows.fuse_block(
            image_rows, point_rows, patch, groups.valid, both, config=cae_config, fuse=fuse
        )
    own = jnp.arange(len(counts), dtype=jnp.int32)
    settings: dict[str, Any] = {"fraction": scoring_config.interval, "average": average}
    return rows.average_rows(image_rows, point_rows, groups, counts, own, **settings)


def frozen_rescore(
    highest: np.ndarray,
    salient: np.ndarray,
    frozen: Frozen,
    config: Config,
    *,
    same: np.ndarray | None = None,
) -> np.ndarray:
    """Scores of new scans after RsCon among the kept ones (Eq. 12-15 with frozen numbers).

    A new scan's row of W holds its products with the R kept scans and, last, with itself: the k largest
    count, a kept scan before itself where they are equal. Its score is C + Σ w_j (C_j - C) over them, with
    all scores on the scale of the kept ones: (c - min) / (max - min) of ``frozen.map_max``, not clipped.
    Scores stay as they are where the kept ones are all equal, and where ``rscon.normalise`` is off.

    Args:
        highest: (Q,) maxima of the maps. salient: (Q, D) features of the most salient patches.
        same: (Q, R) bool: the kept scan is the very scan itself, and no candidate; None: none is.

    Returns:
        (Q,) float32; the maxima themselves where re-scoring is off.
    """
    highest = np.asarray(highest, np.float32)
    if not config.rscon.enabled:
        return highest
    if salient.shape[1] != frozen.salient.shape[1]:
        raise InputError(
            f"salient features: found {salient.shape[1]} channels, expected the references' "
            f"{frozen.salient.shape[1]}"
        )
    settings = config.rscon
    found = _rescored(
        jnp.asarray(highest),
        jnp.asarray(salient),
        jnp.asarray(frozen.map_max),
        jnp.asarray(frozen.salient),
        jnp.zeros((len(highest), len(frozen.map_max)), bool) if same is None else jnp.asarray(same),
        windows=rscon.checked_windows(settings.windows, settings.form),
        form=settings.form,
        normalise=settings.normalise,
    )
    return np.asarray(found)


@functools.partial(jax.jit, static_argnames=("windows", "form", "normalise"))
def _rescored(
    highest: Array,
    salient: Array,
    kept: Array,
    features: Array,
    same: Array,
    *,
    windows: Any,
    form: Any,
    normalise: bool,
) -> Array:
    low, span = jnp.min(kept), jnp.max(kept) - jnp.min(kept)

    def scale(scores: Array) -> Array:
        if not normalise:
            return scores
        return jnp.where(span > 0, (scores - low) / jnp.where(span > 0, span, 1), scores)

    kept = scale(kept)

    def one(scan: tuple[Array, Array, Array]) -> Array:  # no product of two new scans is ever made
        score, feature, own = scale(scan[0]), scan[1], scan[2]
        products = jnp.matmul(features, feature, precision=lax.Precision.HIGHEST)
        candidates = jnp.append(jnp.where(own, -jnp.inf, products), jnp.sum(feature * feature))
        best, ids = lax.top_k(candidates, min(max(windows), len(candidates)))
        count = jnp.sum(jnp.logical_not(own).astype(jnp.int32)) + 1
        weights = rscon.window_weights(best[None], count, windows=windows, form=form)[0]
        return score + jnp.sum(weights * (jnp.append(kept, score)[ids] - score))

    return lax.map(one, (highest, salient, same))
