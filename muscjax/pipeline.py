"""The composition: scans to features, features to patch scores, patch scores to maps and scan scores.

The stages come in as functions, so a variant of the method replaces one argument. ``batching`` says how they
meet a batch.
Sizes are padded to buckets (``geometry.bucket_size``) for samples and for points alike, so that runs over
sets of similar size share their compiled programs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from muscjax import cae, geometry, ipg, maps, parallel, rows, rscon, scoring, snamd, streaming
from muscjax.config import Config, released
from muscjax.detection import finish
from muscjax.errors import InputError
from muscjax.extract import (
    SAMPLE_BUCKET,
    Held,
    Keep,
    Progress,
    check_scans,
    extract_images,
    extract_points,
    map_size_of,
    pad_samples,
    patch_grid,
    silent,
)
from muscjax.stages import measure_stage, score_stage
from muscjax.totals import add_part, count_of, features_of, on_host, pad_groups, patch_scores
from muscjax.types import Array, Cloud, Detection, Features, PatchScores, PointGroups

AVERAGES = {"interval": scoring.interval_average, "mean": scoring.plain_average}


class Extracted(NamedTuple):
    """What is known of each sample alone: features (leaves on the host), clouds with their groups, grids."""

    features: Features
    clouds: Sequence[Cloud] | None
    groups: PointGroups | None
    grid_hw: tuple[int, int] | None  # of the image patches
    map_hw: tuple[int, int]  # the working size that the groups' pixels count in


def _sizes(features: Features) -> tuple[int, list[tuple[int, int]]]:
    """The number of samples padded to its bucket, and (M, C) of each modality."""
    given = [x for x in features_of(features) if x is not None]
    return geometry.bucket_size(given[0].shape[1], minimum=SAMPLE_BUCKET), [x.shape[2:] for x in given]


def _held(size: int, shapes: Sequence[tuple[int, int]]) -> int:
    """Bytes of one stage's features."""
    return 4 * size * sum(m * c for m, c in shapes)


def tile_bytes(budget: int) -> int:
    """Of one distance block: what the caches of a CPU serve; elsewhere what there is room for."""
    return scoring.TILE_BYTES if jax.default_backend() == "cpu" else budget // 16


def plan_of(features: Features, config: Config) -> tuple[int, scoring.Plan]:
    """How the pairs of these samples are walked: their number padded to its bucket, and the plan.

    Raises:
        InputError: a memory budget that cannot hold one stage's features or one sample's rows.
    """
    size, given = _sizes(features)
    budget = config.run.memory_budget
    held = _held(size, given)
    if held > budget:
        n = count_of(features)
        raise InputError(
            f"run.memory_budget: one stage's features of {n} scans take "
            f"{held / 2**30:.1f} GiB, more than {budget / 2**30:.1f} GiB; raise it, or score in run.subsets"
        )
    try:
        plan = scoring.plan(
            size,
            tuple(m for m, _ in given),
            memory_budget=budget,
            tile_bytes=tile_bytes(budget),
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
    remember: streaming.Remember = streaming.afresh,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> PatchScores:
    """Mutual scoring of all stages: their mean, and the feature of each sample's most salient patch.

    Args:
        features: (S, N, M, C) and (S or 1, N, G, C), arrays or ``streaming.Stages``; either may be None.
            Where a stage exceeds ``run.memory_budget``, blocks of it are read as they are needed.
        groups: leading axis N, with the point features.
        grid_hw: the patch grid of the image features.
        map_hw: the working size that ``groups.pixel`` counts in.
        fuse: the stage that ``cae.enhance`` is. average: the stage that ``scoring.interval_average`` is.
        remember: is given a name and what makes the patch scores of a stage, or of a block of one, and has
            them of an earlier run where it can.
        mesh: the devices that share the work, each with its part of the samples; None: one device. Where the
            parts do not fit their memory, one device does it all.

    Raises:
        InputError: fewer than two samples, stages that do not match, or a memory budget that cannot hold one
            sample's rows.
    """
    n = count_of(features)
    if n < 2:
        raise InputError(f"mutual scoring needs at least two scans, found {n}")
    entries = rows.paired_entries(features)
    if (features.points is None) != (groups is None):
        raise InputError("score: point features and their groups go together")
    average = average or AVERAGES[config.scoring.average]
    size, shapes = _sizes(features)
    budget, walk, plan = config.run.memory_budget, None, None
    if mesh is not None:
        over = parallel.plan_over(mesh, size, shapes, memory_budget=budget)
        mesh, (size, plan) = (None, (size, None)) if over is None else (mesh, over)
    padded_groups = pad_groups(groups, size)
    statistics: dict[str, Any] = {
        "scoring_config": config.scoring,
        "cae_config": config.cae,
        "grid_hw": grid_hw,
        "map_hw": map_hw,
        "fuse": fuse,
        "average": average,
    }
    if plan is not None:
        statistics["mesh"] = mesh
    elif _held(size, shapes) > budget:
        walk = streaming.walk_of(size, shapes, memory_budget=budget, tile_bytes=tile_bytes(budget))
    else:
        _, plan = plan_of(features, config)
    shape = None if features.image is None else (size, features.image.shape[2])
    where = {"window": config.scoring.window, "grid_hw": grid_hw, "map_hw": map_hw}
    cells = rows.places(shape, None if padded_groups is None else padded_groups.pixel, **where)

    @functools.cache
    def known() -> tuple[Array | None, Array | None]:
        """The distances of a modality that meets every stage of the other with the same features."""
        if plan is None or plan.kind != "symmetric" or mesh is not None or len(entries) == 1:
            return None, None
        masks = (None, None if padded_groups is None else padded_groups.valid)
        image, points = (
            None
            if x is None or len({pair[side] for pair in entries}) > 1
            else measure_stage(
                _placed(x[entries[0][side]], size, None, plan),
                masks[side],
                cells[side],
                jnp.asarray(n, jnp.int32),
                tile=plan.tile,
                **config.scoring.kernel,
            )
            for side, x in enumerate(features_of(features))
        )
        return image, points

    totals: list[Any] = [None, None]
    for done, pair in enumerate(entries):
        sides = [
            None if x is None else x[entry] for x, entry in zip(features_of(features), pair, strict=True)
        ]
        if walk is not None:
            found = streaming.score_stage(
                sides,
                padded_groups,
                walk=walk,
                size=size,
                count=n,
                kernel=config.scoring.kernel,
                cells=[None if x is None else np.asarray(x) for x in cells],
                remember=streaming.under(str(done), remember),
                step=lambda part, parts, done=done: progress(
                    "streamed scoring", done * parts + part, len(entries) * parts
                ),
                **statistics,
            )
        else:
            assert plan is not None
            found = remember(
                str(done),
                lambda sides=sides: on_host(
                    score_stage(
                        *(_placed(x, size, mesh, plan) for x in sides),
                        padded_groups,
                        jnp.asarray(n, jnp.int32),
                        plan=plan,
                        known=known(),
                        **statistics,
                    ),
                    n,
                ),
            )
            progress(f"{plan.kind} scoring", done + 1, len(entries))
        add_part(totals, found, n, len(entries))
    return patch_scores(features, totals)


def _placed(stage: Any, size: int, mesh: Mesh | None, plan: scoring.Plan) -> Any:
    """(N, M, C) padded to ``size``, and dealt where there is a mesh."""
    if stage is None:
        return None
    padded = pad_samples(streaming.whole(stage), size)
    return padded if mesh is None else parallel.deal(padded, mesh, plan)


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
    n = count_of(features)
    if config.run.subsets == 1:
        return score(features, groups, config, **keywords)
    parts = subset_ids(n, config.run.subsets, config.run.seed)
    order = np.argsort(np.concatenate(parts))
    scored, remember = [], keywords.pop("remember", streaming.afresh)
    for number, ids in enumerate(parts):
        chosen = Features(
            *(None if x is None else x[:, ids] for x in features_of(features)), levels=features.levels
        )
        of_part = None if groups is None else jax.tree.map(lambda leaf, ids=ids: leaf[ids], groups)
        of_part_alone = streaming.under(f"part {number}", remember)
        scored.append(score(chosen, of_part, config, remember=of_part_alone, **keywords))
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
    fewest: int = 2,
    keep: Keep = Held,
    progress: Progress = silent,
) -> Extracted:
    """The first half of ``detect``: everything that is done to each sample alone. Arguments as there.

    ``fewest`` scans are expected: two, or one where it is scored against a reference set. ``keep`` is where
    the features go; see ``extract.extract_images``.
    """
    config = released() if config is None else config
    check_scans(images, clouds, image_backbone, point_backbone, fewest)
    map_hw = map_size_of(images, clouds, config)
    if clouds is not None and not isinstance(clouds[0], Cloud):
        clouds = [geometry.cloud_from_xyz(np.asarray(xyz)) for xyz in clouds]
    image = points = groups = grid_hw = None
    image_levels = point_levels = 1
    if images is not None and image_backbone is not None:
        image, image_levels = extract_images(
            images, image_backbone, config, pool=pool_grid, keep=keep, progress=progress
        )
        grid_hw = patch_grid(image_backbone, image.shape[2], np.shape(images[0:1])[1:3])
    if clouds is not None and point_backbone is not None:
        points, point_levels, groups = extract_points(
            clouds, point_backbone, config, group=group, pool=pool_groups, keep=keep, progress=progress
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
        images: (N, H, W, 3) uint8 or float32 in [0, 1] (or normalised already, where the backbone wants it),
            or a lazy sequence of such rows; None: points only.
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
