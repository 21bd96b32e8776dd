"""From patch scores to maps and scan scores: the last stages, batched over the samples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import balance, maps, rscon
from muscjax.batching import each
from muscjax.config import Config
from muscjax.extract import CLOUD_BATCH, SAMPLE_BUCKET, Progress, batches_by_size, pad_samples, silent, stack
from muscjax.geometry import bucket_size
from muscjax.types import Array, Cloud, Detection, PatchScores, PointGroups

_IMAGE_BATCH = 8


@functools.partial(jax.jit, static_argnames=("config", "grid_hw", "map_hw", "interpolate", "blur"))
def _map_batch(
    image: Array | None,
    points: Array | None,
    clouds: Cloud | None,
    groups: PointGroups | None,
    units: balance.Units | None,
    *,
    config: Any,
    grid_hw: tuple[int, int] | None,
    map_hw: tuple[int, int],
    interpolate: Callable,
    blur: Callable,
) -> Array:
    def one(sample) -> Array:
        image_scores, point_scores, cloud, group = sample
        total = jnp.zeros(map_hw, jnp.float32)
        if image_scores is not None:
            assert grid_hw is not None
            total += maps.upsample(image_scores.reshape(grid_hw), map_hw, config)
        if point_scores is not None:
            values = interpolate(
                point_scores,
                group.centers,
                group.valid,
                cloud.points,
                cloud.valid,
                neighbours=config.neighbours,
            )
            spread = maps.scatter_to_grid(values, cloud.pixel, cloud.valid, map_hw)
            blurred = blur(spread, form=config.blur)
            total = total + blurred if units is None else balance.join(total, blurred, units)
        return total

    return each(one, (image, points, clouds, groups))


def finish(
    patch_scores: PatchScores,
    clouds: Sequence[Cloud] | None,
    groups: PointGroups | None,
    config: Config,
    *,
    grid_hw: tuple[int, int] | None,
    map_hw: tuple[int, int],
    rescore: Callable = rscon.rescore,
    interpolate: Callable = maps.interpolate_points,
    blur: Callable = maps.blur,
    units: balance.Units | None = None,
    progress: Progress = silent,
) -> Detection:
    """Anomaly maps at working size, their maxima, and the scan scores after re-scoring.

    Args:
        patch_scores: from ``score``.
        clouds, groups: of the N samples, with point scores.
        rescore, interpolate, blur: the stages that ``rscon.rescore``, ``maps.interpolate_points`` and
            ``maps.blur`` are. ``rescore`` is given a bucket of rows, of which ``valid`` are scans.
        units: of the set that the samples are compared with, for ``maps.balance``; None: ``units_of`` them.
    """
    n = len(patch_scores.salient)
    with_points = patch_scores.points is not None
    assert not with_points or clouds is not None
    if with_points and clouds is not None and groups is not None:
        # Neither the members of the groups nor the sensor's own points are read here: they stay on the host.
        groups = dataclasses.replace(groups, indices=groups.indices[:, :, :0])
        clouds = [dataclasses.replace(cloud, surface=None) for cloud in clouds]
        size, batches = CLOUD_BATCH, batches_by_size(clouds, CLOUD_BATCH)
    else:
        size = _IMAGE_BATCH
        batches = [list(range(k, min(k + size, n))) for k in range(0, n, size)]
    image, points = (None if x is None else np.asarray(x) for x in (patch_scores.image, patch_scores.points))
    if units is None:
        units = units_of(patch_scores, groups, config, grid_hw=grid_hw, map_hw=map_hw)
    out = np.empty((n, *map_hw), np.float32)
    done = 0
    for ids in batches:
        padded = np.asarray(ids + ids[-1:] * (size - len(ids)))
        made = _map_batch(
            None if image is None else image[padded],
            None if points is None else points[padded],
            stack([clouds[i] for i in padded]) if with_points and clouds is not None else None,
            jax.tree.map(lambda leaf, p=padded: leaf[p], groups) if with_points else None,
            units,
            config=config.maps,
            grid_hw=grid_hw,
            map_hw=map_hw,
            interpolate=interpolate,
            blur=blur,
        )
        out[ids] = np.asarray(made)[: len(ids)]
        done += len(ids)
        progress("maps", done, n)
    highest = out.reshape(n, -1).max(axis=1)
    pred = scan_scores(highest, patch_scores, config, rescore=rescore)
    return Detection(jnp.asarray(out), jnp.asarray(pred), jnp.asarray(highest), patch_scores)


def units_of(
    patch_scores: PatchScores,
    groups: PointGroups | None,
    config: Config,
    *,
    grid_hw: tuple[int, int] | None,
    map_hw: tuple[int, int],
) -> balance.Units | None:
    """``balance.units`` of the set; None where the maps are added as they are, or there is only one."""
    image, points = patch_scores.image, patch_scores.points
    if config.maps.balance == "none" or image is None or points is None:
        return None
    assert groups is not None
    assert grid_hw is not None
    return balance.units(np.asarray(image), np.asarray(points), groups, grid_hw=grid_hw, map_hw=map_hw)


def scan_scores(
    highest: np.ndarray, patch_scores: PatchScores, config: Config, *, rescore: Callable = rscon.rescore
) -> np.ndarray:
    """(N,) scores of the scans, from the maxima of their maps and their salient features alone."""
    if not config.rscon.enabled:
        return highest
    salient, valid = _padded_salient(patch_scores)
    rescored = rescore(
        pad_samples(highest, len(valid)),
        salient,
        windows=config.rscon.windows,
        normalise=config.rscon.normalise,
        form=config.rscon.form,
        valid=valid,
    )
    return np.asarray(rescored)[: len(highest)]  # on the host: a slice on the device compiles for every n


def neighbours(patch_scores: PatchScores, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Whose scores re-scoring mixed into each scan's: ``rscon.neighbours`` of the set, on the host.

    Returns:
        (N, K) rows and (N, K) weights; K is 0 where re-scoring is off.
    """
    n = len(patch_scores.salient)
    if not config.rscon.enabled:
        return np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32)
    salient, valid = _padded_salient(patch_scores)
    ids, weights = rscon.neighbours(
        jnp.asarray(salient),
        windows=config.rscon.windows,
        form=config.rscon.form,
        valid=jnp.asarray(valid),
    )
    return np.asarray(ids)[:n], np.asarray(weights)[:n]


def _padded_salient(patch_scores: PatchScores) -> tuple[np.ndarray, np.ndarray]:
    """The salient features padded to their bucket, and which rows are scans."""
    n = len(patch_scores.salient)
    pad = bucket_size(n, minimum=SAMPLE_BUCKET)
    return pad_samples(np.asarray(patch_scores.salient), pad), np.arange(pad) < n
