"""The composition: scans to features, features to patch scores, patch scores to maps and scan scores.

All batching lives here, in ``extract`` and in ``detection``. The stages come in as functions, so a variant of
the method replaces one argument.
Sizes are padded to buckets (``geometry.bucket_size``) for samples and for points alike, so that runs over
sets of similar size share their compiled programs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import cae, geometry, ipg, maps, rows, rscon, scoring, snamd
from muscjax.config import Config, released
from muscjax.detection import finish
from muscjax.errors import InputError
from muscjax.extract import (
    SAMPLE_BUCKET,
    Progress,
    extract_images,
    extract_points,
    grid_of,
    pad_samples,
    silent,
)
from muscjax.types import Array, Cloud, Detection, Features, PatchScores, PointGroups

AVERAGES = {"interval": scoring.interval_average, "mean": scoring.plain_average}


class Extracted(NamedTuple):
    """What is known of each sample alone: features (leaves on the host), clouds with their groups, grids."""

    features: Features
    clouds: Sequence[Cloud] | None
    groups: PointGroups | None
    grid_hw: tuple[int, int] | None  # of the image patches
    map_hw: tuple[int, int]  # the working size that the groups' pixels count in


@functools.partial(
    jax.jit, static_argnames=("plan", "scoring_config", "cae_config", "grid_hw", "map_hw", "fuse", "average")
)
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
) -> tuple[Array | None, Array | None]:
    """Patch scores of one stage: (N, M, C), (N, G, C) -> (N, M), (N, G); either modality may be None."""

    def statistics(image_rows, point_rows, ref_valid, ids):
        if image_rows is not None and point_rows is not None and cae_config.enabled:
            assert groups is not None
            assert grid_hw is not None
            shape: dict[str, Any] = {"grid_hw": grid_hw, "map_hw": map_hw}
            image_rows, point_rows = rows.fuse_rows(
                image_rows, point_rows, groups, ref_valid, ids, config=cae_config, fuse=fuse, **shape
            )
        settings: dict[str, Any] = {"fraction": scoring_config.interval, "average": average}
        return rows.average_rows(image_rows, point_rows, groups, ref_valid, ids, **settings)

    return scoring.map_rows(
        image,
        points,
        statistics,
        plan=plan,
        points_valid=None if groups is None else groups.valid,
        count=count,
        precision=scoring_config.precision,
        implementation=scoring_config.implementation,
        refine=scoring_config.refine,
    )


def plan_of(features: Features, config: Config) -> tuple[int, scoring.Plan]:
    """How the pairs of these samples are walked: their number padded to its bucket, and the plan.

    Raises:
        InputError: a memory budget that cannot hold one stage's features or one sample's rows.
    """
    given = [x for x in features_of(features) if x is not None]
    n = given[0].shape[1]
    size = geometry.bucket_size(n, minimum=SAMPLE_BUCKET)
    budget = config.run.memory_budget
    held = 4 * size * sum(int(np.prod(x.shape[2:])) for x in given)
    if held > budget:
        raise InputError(
            f"run.memory_budget: one stage's features of {n} scans take {held / 2**30:.1f} GiB, more than "
            f"{budget / 2**30:.1f} GiB; raise it, or score in run.subsets"
        )
    try:
        plan = scoring.plan(
            size,
            tuple(x.shape[2] for x in given),
            memory_budget=budget,
            tile_bytes=scoring.TILE_BYTES if jax.default_backend() == "cpu" else budget // 16,
        )
    except ValueError as error:
        raise InputError(f"run.memory_budget: {error}") from None
    return size, plan


def score(
    features: Features,
    groups: PointGroups | None,
    config: Config,
    *,
    grid_hw: tuple[int, int] | None,
    map_hw: tuple[int, int],
    fuse: Callable = cae.enhance,
    average: Callable | None = None,
    progress: Progress = silent,
) -> PatchScores:
    """Mutual scoring of all stages: their mean, and the feature of each sample's most salient patch.

    Args:
        features: (S, N, M, C) and (S or 1, N, G, C); either may be None.
        groups: leading axis N, with the point features.
        grid_hw: the patch grid of the image features.
        map_hw: the working size that ``groups.pixel`` counts in.
        fuse: the stage that ``cae.enhance`` is. average: the stage that ``scoring.interval_average`` is.

    Raises:
        InputError: fewer than two samples, stages that do not match, or a memory budget that cannot hold one
            stage's features or one sample's rows.
    """
    n = next(x for x in features_of(features) if x is not None).shape[1]
    if n < 2:
        raise InputError(f"mutual scoring needs at least two scans, found {n}")
    entries = rows.paired_entries(features)
    if (features.points is None) != (groups is None):
        raise InputError("score: point features and their groups go together")
    average = average or AVERAGES[config.scoring.average]
    size, plan = plan_of(features, config)
    padded_groups = pad_groups(groups, size)
    totals: list[Any] = [None, None]
    for done, pair in enumerate(entries, start=1):
        found = score_stage(
            *(
                None if x is None else pad_samples(x[entry], size)
                for x, entry in zip(features_of(features), pair, strict=True)
            ),
            padded_groups,
            jnp.asarray(n, jnp.int32),
            plan=plan,
            scoring_config=config.scoring,
            cae_config=config.cae,
            grid_hw=grid_hw,
            map_hw=map_hw,
            fuse=fuse,
            average=average,
        )
        add_part(totals, found, n, len(entries))
        progress(f"{plan.kind} scoring", done, len(entries))
    return patch_scores(features, totals)


def pad_groups(groups: PointGroups | None, size: int) -> PointGroups | None:
    """Up to ``size`` samples, without members: by far the largest field, which scoring does not read."""
    if groups is None:
        return None
    small = dataclasses.replace(groups, indices=groups.indices[:, :, :0])
    return jax.tree.map(lambda leaf: pad_samples(np.asarray(leaf), size), small)


def add_part(totals: list[Any], found: Sequence[Array | None], n: int, parts: int) -> None:
    """Add one of ``parts`` equal shares of a mean to ``totals``, for each modality that is there."""
    for side, scores in enumerate(found):
        if scores is not None:  # on the host: a slice of n samples on the device would compile for every n
            part = np.asarray(scores)[:n] / np.float32(parts)
            totals[side] = part if totals[side] is None else totals[side] + part


def patch_scores(features: Features, totals: Sequence[Any]) -> PatchScores:
    """The stage means (N, M), (N, G) with the features of their highest patches."""
    salient = [
        _salient(x, levels, total)
        for x, levels, total in zip(features_of(features), features.levels, totals, strict=True)
        if x is not None
    ]
    image, points = (None if total is None else jnp.asarray(total) for total in totals)
    return PatchScores(image, points, jnp.asarray(np.concatenate(salient, axis=1)))


def _salient(features: Any, levels: int, scores: np.ndarray) -> np.ndarray:
    """(N, C) of the second-last tapped block at each sample's highest patch; the mean of its levels."""
    start = max(len(features) - 2 * levels, 0)
    chosen = [
        np.asarray(x)[np.arange(len(scores)), np.argmax(scores, axis=1)]
        for x in features[start : start + levels]
    ]
    return chosen[0] if levels == 1 else np.mean(chosen, axis=0)


def features_of(features: Features) -> tuple[Any, Any]:
    """Both modalities, each an array or None."""
    return features.image, features.points


def subset_ids(n: int, parts: int, seed: int) -> list[np.ndarray]:
    """A random division of ``n`` samples into balanced parts of at least two, each part ascending.

    Raises:
        InputError: a part would hold fewer than two samples.
    """
    if n < 2 * parts:
        raise InputError(f"run.subsets: {parts} parts of {n} scans would hold fewer than two scans each")
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(part) for part in np.array_split(order, parts)]


def score_subsets(extracted: Extracted, config: Config, **keywords: Any) -> PatchScores:
    """``score`` within each of ``config.run.subsets`` random parts; the parts' scores are pooled."""
    features, groups = extracted.features, extracted.groups
    keywords |= {"grid_hw": extracted.grid_hw, "map_hw": extracted.map_hw}
    n = next(x for x in features_of(features) if x is not None).shape[1]
    if config.run.subsets == 1:
        return score(features, groups, config, **keywords)
    parts = subset_ids(n, config.run.subsets, config.run.seed)
    order = np.argsort(np.concatenate(parts))
    scored = []
    for ids in parts:
        chosen = Features(
            *(None if x is None else x[:, ids] for x in features_of(features)), levels=features.levels
        )
        of_part = None if groups is None else jax.tree.map(lambda leaf, ids=ids: leaf[ids], groups)
        scored.append(score(chosen, of_part, config, **keywords))
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[order]), *scored)


def extract(
    images: Any | None = None,
    clouds: Sequence[Cloud] | Any | None = None,
    *,
    image_backbone: Callable[[Array], Array] | None = None,
    point_backbone: Callable[[Cloud, PointGroups], Array] | None = None,
    config: Config | None = None,
    group: Callable = ipg.group,
    pool_grid: Callable = snamd.pool_grid,
    pool_groups: Callable = snamd.pool_groups,
    progress: Progress = silent,
) -> Extracted:
    """The first half of ``detect``: everything that is done to each sample alone. Arguments as there."""
    config = released() if config is None else config
    _check(images, clouds, image_backbone, point_backbone)
    map_hw = _map_size(images, clouds, config)
    if clouds is not None and not isinstance(clouds[0], Cloud):
        clouds = [geometry.cloud_from_xyz(np.asarray(xyz)) for xyz in clouds]
    image = points = groups = grid_hw = None
    image_levels = point_levels = 1
    if images is not None and image_backbone is not None:
        image, image_levels = extract_images(
            images, image_backbone, config, pool=pool_grid, progress=progress
        )
        grid_hw = grid_of(image.shape[2], np.shape(images[0:1])[1:3])
    if clouds is not None and point_backbone is not None:
        points, point_levels, groups = extract_points(
            clouds, point_backbone, config, group=group, pool=pool_groups, progress=progress
        )
    features = Features(image, points, (image_levels, point_levels))
    return Extracted(features, clouds, groups, grid_hw, map_hw)


def detect(
    images: Any | None = None,
    clouds: Sequence[Cloud] | Any | None = None,
    *,
    image_backbone: Callable[[Array], Array] | None = None,
    point_backbone: Callable[[Cloud, PointGroups], Array] | None = None,
    config: Config | None = None,
    group: Callable = ipg.group,
    pool_grid: Callable = snamd.pool_grid,
    pool_groups: Callable = snamd.pool_groups,
    fuse: Callable = cae.enhance,
    average: Callable | None = None,
    rescore: Callable = rscon.rescore,
    interpolate: Callable = maps.interpolate_points,
    blur: Callable = maps.blur,
    progress: Progress = silent,
) -> Detection:
    """Anomaly maps and scores of a set of unlabeled scans, each scored by all the others.

    Args:
        images: (N, H, W, 3) uint8 or float32 in [0, 1], or a lazy sequence of such rows; None: points only.
        clouds: N ``Cloud`` objects, or an array (N, H, W, 3) of organised XYZ in metres (0 = no point);
            None: images only. The maps have the size of the XYZ arrays. The pixels of ``Cloud`` objects count
            in ``config.input.map_size``, which must be given with them.
        image_backbone: (B, H, W, 3) -> (S, B, M, C). point_backbone: (cloud, groups) -> (S, G, C).
        config: ``released()`` when None.
        group, pool_grid, pool_groups, fuse, average, rescore, interpolate, blur: replacements for the stages
            of those names in ``ipg``, ``snamd``, ``cae`` (``enhance``), ``scoring`` (``interval_average``),
            ``rscon`` and ``maps``. They are called as the stages are: masks tell padding from data.
        progress: called as (stage, done, total).

    Raises:
        InputError: fewer than two scans, no modality, unequal counts or shapes, a modality without its
            backbone, features that are not finite, or pixels outside the map.
    """
    config = released() if config is None else config
    extracted = extract(
        images,
        clouds,
        image_backbone=image_backbone,
        point_backbone=point_backbone,
        config=config,
        group=group,
        pool_grid=pool_grid,
        pool_groups=pool_groups,
        progress=progress,
    )
    scored = score_subsets(extracted, config, fuse=fuse, average=average, progress=progress)
    chosen: dict[str, Any] = {"rescore": rescore, "interpolate": interpolate, "blur": blur}
    shape = {"grid_hw": extracted.grid_hw, "map_hw": extracted.map_hw}
    return finish(scored, extracted.clouds, extracted.groups, config, **chosen, **shape, progress=progress)


def _check(images: Any, clouds: Any, image_backbone: Any, point_backbone: Any) -> None:
    if images is None and clouds is None:
        raise InputError("detect: found neither images nor clouds")
    for name, data, backbone in (
        ("image", images, image_backbone), ("point", clouds, point_backbone)
    ):  # fmt: skip
        if data is not None and backbone is None:
            raise InputError(f"detect: {name} data needs {name}_backbone")
        if data is not None and len(data) < 2:
            raise InputError(f"mutual scoring needs at least two scans, found {len(data)}")
    if images is not None and clouds is not None and len(images) != len(clouds):
        raise InputError(f"detect: found {len(images)} images and {len(clouds)} clouds, expected as many")


def _map_size(images: Any, clouds: Any, config: Config) -> tuple[int, int]:
    side = config.input.map_size
    if clouds is None:
        if side is not None:
            return side, side
        h, w = np.shape(images[0:1])[1:3]
        return h, w
    if not isinstance(clouds[0], Cloud):
        shapes = [np.shape(xyz) for xyz in clouds]
        for i, found in enumerate(shapes):
            if found != shapes[0] or len(found) != 3:
                raise InputError(
                    f"clouds[{i}]: found shape {found}, expected {shapes[0][:2]} × 3 as clouds[0]"
                )
        return shapes[0][0], shapes[0][1]
    if side is None:
        raise InputError("detect: Cloud objects need config.input.map_size, the side of their pixels' grid")
    for i, cloud in enumerate(clouds):
        highest = int(np.max(np.asarray(cloud.pixel), initial=0))
        if highest >= side * side:
            raise InputError(f"clouds[{i}]: found pixel {highest}, expected less than {side}·{side}")
    return side, side
