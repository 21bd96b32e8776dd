"""Why one place of one scan has its score: every number of the method on the way there."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import balance, maps, pipeline, rscon
from muscjax.config import Config
from muscjax.detection import neighbours, units_of
from muscjax.errors import InputError
from muscjax.explain import place as places
from muscjax.explain.parts import Contributions, Explanation, ScanScore
from muscjax.explain.place import Place
from muscjax.explain.sides import sides
from muscjax.extract import SAMPLE_BUCKET, Progress, pad_samples, silent
from muscjax.geometry import bucket_size
from muscjax.pipeline import Extracted
from muscjax.types import Array, Cloud, Detection, Frame, PatchScores, PointGroups


def explain(
    extracted: Extracted,
    config: Config,
    sample: int,
    pixel_yx: tuple[int, int] | None = None,
    *,
    frames: Sequence[Frame] | None = None,
    detection: Detection | None = None,
    progress: Progress = silent,
) -> Explanation:
    """Follow one pixel of one sample through the method.

    Args:
        extracted: from ``pipeline.extract``; all samples.
        config: that of the run.
        sample: its number, from 0.
        pixel_yx: in the original image; None: where the sample's map is highest.
        frames: of all samples; None: the original image is the working grid.
        detection: of the same samples and configuration; None: they are scored here, all of them.
        progress: called as (stage, done, total).

    Raises:
        InputError: a sample that is not there, a pixel outside of the image or of the part that was used, or
            one without points in a run of points alone.
    """
    n = pipeline.count_of(extracted.features)
    if not 0 <= sample < n:
        raise InputError(f"sample: found {sample}, expected a number from 0 to {n - 1}")
    frames = places.default_frames(extracted.map_hw, n) if frames is None else frames
    frame = frames[sample]
    if pixel_yx is not None:
        places.to_working(frame, pixel_yx)  # refused before any work is done
    clouds, groups = extracted.clouds, extracted.groups
    shape: dict[str, Any] = {"grid_hw": extracted.grid_hw, "map_hw": extracted.map_hw}
    if detection is None:
        scored = pipeline.score_subsets(extracted, config, progress=progress)
        detection = pipeline.finish(scored, clouds, groups, config, **shape, progress=progress)
    anomaly_map, scores = np.asarray(detection.anomaly_map[sample]), detection.patch_scores
    highest = _peak(anomaly_map, frame)
    peak = places.to_source(frame, highest)
    own_groups = places.of_sample(groups, sample)
    place = places.locate(
        peak if pixel_yx is None else pixel_yx,
        frame,
        grid_hw=extracted.grid_hw,
        cloud=None if clouds is None or groups is None else clouds[sample],
        groups=own_groups,
        neighbours=config.maps.neighbours,
        scores=None if scores.points is None else np.asarray(scores.points[sample]),
        working_yx=highest if pixel_yx is None else None,
    )
    notes = []
    if groups is not None and place.point is None:
        at = f"{place.source_yx[0]},{place.source_yx[1]}"
        if extracted.features.image is None:
            value = float(anomaly_map[place.working_yx])
            raise InputError(
                f"--at {at}: no point of the cloud lies there (background), so nothing was compared; "
                f"the map's {value:.3g} is what the blur carries over from its surroundings"
            )
        notes.append(
            f"no point of the cloud lies at {at} (background): no group is compared, and the 3D part is what "
            "the blur carries over from its surroundings"
        )
    image, points = sides(extracted, config, sample, place, frames, scores, progress)
    return Explanation(
        sample,
        place,
        image,
        points,
        _contributions(extracted, config, sample, place, own_groups, scores, anomaly_map),
        _scan_score(config, sample, peak, detection),
        anomaly_map,
        tuple(notes),
    )


def _peak(anomaly_map: np.ndarray, frame: Frame) -> tuple[int, int]:
    """The highest working pixel; the padding around the source does not count."""
    values = np.where(places.inside(frame), anomaly_map, -np.inf)
    y, x = np.unravel_index(int(values.argmax()), values.shape)
    return int(y), int(x)


def _contributions(
    extracted: Extracted,
    config: Config,
    sample: int,
    place: Place,
    groups: PointGroups | None,
    scores: PatchScores,
    anomaly_map: np.ndarray,
) -> Contributions:
    """The map's value at the place, taken apart as ``pipeline.finish`` put it together."""
    y, x = place.working_yx
    shape: dict[str, Any] = {"grid_hw": extracted.grid_hw, "map_hw": extracted.map_hw}
    units = units_of(scores, extracted.groups, config, **shape)
    cells, weights = np.zeros(0, np.int32), np.zeros(0, np.float32)
    image = points = blurred = 0.0
    cell_scores = group_scores = weights
    if scores.image is not None:
        assert extracted.grid_hw is not None
        share = maps.cell_shares(config.maps, extracted.map_hw, extracted.grid_hw, (y, x))
        cells = np.flatnonzero(share).astype(np.int32)
        weights, cell_scores = share[cells], np.asarray(scores.image[sample])[cells]
        image = float(np.sum(weights * cell_scores))
    if scores.points is not None and extracted.clouds is not None and groups is not None:
        own = np.asarray(scores.points[sample])
        sharp, soft = _spread(
            own,
            dataclasses.replace(groups, indices=groups.indices[:, :0]),
            dataclasses.replace(extracted.clouds[sample], surface=None),
            neighbours=config.maps.neighbours,
            form=config.maps.blur,
            map_hw=extracted.map_hw,
        )
        points, blurred = float(sharp[y, x]), float(soft[y, x])
        group_scores = own[place.groups]
    value = float(anomaly_map[y, x])
    if units is not None:
        image, points, blurred = _shares(units, value, image, points, blurred)
    return Contributions(value, image, cells, weights, cell_scores, points, group_scores, blurred - points)


def _shares(
    units: balance.Units, value: float, image: float, points: float, blurred: float
) -> tuple[float, float, float]:
    """What each contributes to a joined value, the points before and after the blur; they add up to it.

    The value is the root of a sum of squares, v = i² / v + p² / v: each part, in its own unit, counts as much
    as its own share of the value.
    """
    both = zip((image, points, blurred), (0, 1, 1), strict=True)
    own, sharp, soft = (
        float(balance.excess(jnp.float32(x), units.centre[k], units.reach[k])) for x, k in both
    )
    if value <= 0:
        return 0.0, 0.0, 0.0
    return own * own / value, sharp * soft / value, soft * soft / value


@functools.partial(jax.jit, static_argnames=("neighbours", "form", "map_hw"))
def _spread(
    scores: Array, groups: PointGroups, cloud: Cloud, *, neighbours: int, form: Any, map_hw: tuple[int, int]
) -> tuple[Array, Array]:
    """The 3D map before and after the blur."""
    values = maps.interpolate_points(
        scores, groups.centers, groups.valid, cloud.points, cloud.valid, neighbours=neighbours
    )
    sharp = maps.scatter_to_grid(values, cloud.pixel, cloud.valid, map_hw)
    return sharp, maps.blur(sharp, form=form)


def _scan_score(config: Config, sample: int, peak: tuple[int, int], detection: Detection) -> ScanScore:
    """How the scan's own score came about."""
    highest, pred = np.asarray(detection.map_max), np.asarray(detection.pred_score)
    n, settings, patches = len(highest), config.rscon, detection.patch_scores
    base = highest
    if settings.enabled and settings.normalise:
        size = bucket_size(n, minimum=SAMPLE_BUCKET)
        padded = jnp.asarray(pad_samples(highest, size))
        base = np.asarray(rscon.min_max(padded, jnp.arange(size) < n))[:n]
    ids, weights = (
        leaf[sample, :n] for leaf in neighbours(patches, config)
    )  # beyond n there is only padding
    return ScanScore(
        rank=int(np.sum(pred > pred[sample]) + np.sum(pred[:sample] == pred[sample])) + 1,
        map_max=float(highest[sample]),
        peak_yx=peak,
        base=float(base[sample]),
        neighbours=ids,
        weights=weights,
        scores=base[ids],
        pred_score=float(pred[sample]),
        salient_patch=None if patches.image is None else int(np.argmax(patches.image[sample])),
        salient_group=None if patches.points is None else int(np.argmax(patches.points[sample])),
    )
