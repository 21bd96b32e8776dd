"""One row of a table for one seed: from the bench to metrics in per cent, with its resamples over scans."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import baseline, intervals, metrics, pairs, pipeline
from muscjax.ablate import bench as benches
from muscjax.ablate.bench import Bench, Part
from muscjax.ablate.tables import Draw, Variant
from muscjax.config import Config, override
from muscjax.datasets import Kind
from muscjax.errors import InputError
from muscjax.extract import batches_by_size, extract_images, extract_points
from muscjax.outputs import plain
from muscjax.pipeline import Extracted
from muscjax.store import digest, package_version
from muscjax.types import Detection, Features, PatchScores, PointGroups

RESAMPLES = 500
_TIMED_IMAGES, _TIMED_CLOUDS = 16, 8


@dataclasses.dataclass(frozen=True)
class Cell:
    """A variant at one seed, ready to be computed."""

    variant: Variant
    seed: int
    kind: Kind
    config: Config


def cell_of(bench: Bench, variant: Variant, seed: int) -> Cell | str:
    """The cell, or one line that says why this run has none."""
    kind, used = variant.modality or bench.inputs.kind, bench.inputs.kind
    if used != "both" and kind != used:
        return f"{variant.setting} ({kind}) is left out: the run uses {used} only"
    if (variant.need == "both" and kind != "both") or (variant.need == "points" and kind == "image"):
        lacking = "point clouds" if kind == "image" else "images"
        return f"{variant.setting} is left out: without {lacking} it differs from nothing"
    try:
        config = override(bench.config, *variant.overrides)
    except InputError as error:
        return f"{variant.setting} is left out: {error}"
    if variant.method == "MuSc" and not hasattr(bench.plan.image_backbone, "with_class_token"):
        return f"{variant.setting} is left out: RsCIN needs the class feature of a network"
    defective = labels_of(bench) != 0
    if variant.draw.cut != 1 and (defective.all() or not defective.any()):
        return f"{variant.setting} is left out: it needs good and defective scans"
    return Cell(variant, seed, kind, config)


def labels_of(bench: Bench) -> np.ndarray:
    """(N,), 1 for defective.

    Raises:
        InputError: a scan whose label is not known.
    """
    scans = bench.inputs.dataset.scans
    unknown = next((scan.name for scan in scans if scan.label is None), None)
    if unknown is not None:
        raise InputError(f"{bench.inputs.dataset.root}: ablations need labels, {unknown} has none")
    return np.asarray([scan.label for scan in scans])


def cell_key(bench: Bench, cell: Cell) -> str:
    """Hash of everything that the cell's result depends on."""
    images, points = cell.kind != "points", cell.kind != "image"
    config = plain(cell.config)
    del config["run"], config["preset"]
    variant = cell.variant
    return digest(
        [
            [bench.image_identity, bench.image_samples] if images else None,
            [bench.point_identity, bench.cloud_samples] if points else None,
            config,
            [plain(variant.pooling), plain(variant.draw), variant.method, variant.timed, variant.seeds == 1],
            [cell.seed, bench.truth, RESAMPLES, package_version()],
        ]
    )[:32]


def evaluate(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Metrics in per cent (``values``), resamples of them over scans (``resamples``), and ``seconds``."""
    started = time.perf_counter()
    variant, config = cell.variant, cell.config
    image = point = None
    if cell.kind != "points":
        image = benches.image_part(bench, config, variant.pooling, variant.method)
    if cell.kind != "image":
        point = benches.point_part(bench, config, variant.pooling)
    kept = kept_scans(labels_of(bench), variant.draw, cell.seed)
    extra: dict[str, float] = {}
    if variant.timed and cell.seed == 0:
        detection, extra = _timed(bench, cell, image, point)
    else:
        scores = _patch_scores(bench, cell, image, point, kept)
        detection = _finish(bench, cell, scores, None if point is None else point.groups, kept)
    values, resamples = _metrics(bench, kept, detection, resampled=variant.seeds == 1)
    return {
        "values": {**values, **extra},
        "resamples": resamples,
        "scans": len(kept),
        "seconds": time.perf_counter() - started,
    }


def kept_scans(labels: np.ndarray, draw: Draw, seed: int) -> np.ndarray:
    """Numbers of the scans that stay in the set, ascending: all, or 1/cut of the normal ones (rounded up)."""
    if draw.cut == 1:
        return np.arange(len(labels))
    normal = np.flatnonzero(labels == 0)
    stay = -(-len(normal) // draw.cut) if draw.cut else 0
    chosen = np.random.default_rng(seed).permutation(normal)[:stay]
    return np.sort(np.concatenate([chosen, np.flatnonzero(labels != 0)])).astype(np.int64)


def parts_of(n: int, draw: Draw, seed: int) -> list[np.ndarray]:
    """The parts that are scored apart, balanced and of at least two scans."""
    parts = min(-(-n // draw.batch), n // 2) if draw.batch else draw.parts
    return [np.arange(n)] if parts <= 1 else pipeline.subset_ids(n, parts, seed)


def _features(image: Part | None, point: Part | None) -> Features:
    return Features(
        None if image is None else image.features,
        None if point is None else point.features,
        levels=(1 if image is None else image.levels, 1 if point is None else point.levels),
    )


def _subset(
    features: Features, groups: PointGroups | None, ids: np.ndarray
) -> tuple[Features, PointGroups | None]:
    image, points = (None if x is None else x[:, ids] for x in (features.image, features.points))
    of_part = None if groups is None else jax.tree.map(lambda leaf: leaf[ids], groups)
    return Features(image, points, levels=features.levels), of_part


def _patch_scores(
    bench: Bench, cell: Cell, image: Part | None, point: Part | None, kept: np.ndarray
) -> PatchScores:
    config, features = cell.config, _features(image, point)
    groups = None if point is None else point.groups
    grid_hw = None if image is None else bench.grid_hw
    shape: dict[str, Any] = {"grid_hw": grid_hw, "map_hw": bench.map_hw}
    whole = pairs.Distances(
        *(None if part is None else benches.distances(bench, part, config) for part in (image, point))
    )
    parts = parts_of(len(kept), cell.variant.draw, cell.seed)
    if len(parts) == 1 and len(kept) == len(labels_of(bench)):
        if image is not None and point is not None and groups is not None and config.cae.enabled:
            kernel = (config.scoring.precision, config.scoring.implementation, config.scoring.refine)
            whole = bench.memory.get(
                ("fused", image.key, point.key, kernel, config.cae),
                lambda: pairs.fuse(whole, features, groups, config, progress=bench.observe, **shape),
            )
        return pairs.average(whole, features, groups, config)
    scored = []
    for ids in parts:
        chosen, of_part = _subset(features, groups, kept[ids])
        scored.append(pairs.score(pairs.take(whole, kept[ids]), chosen, of_part, config, **shape))
    order = np.argsort(np.concatenate(parts))
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[order]), *scored)


def _finish(
    bench: Bench, cell: Cell, scores: PatchScores, groups: PointGroups | None, kept: np.ndarray
) -> Detection:
    clouds = None if groups is None else bench.inputs.clouds
    chosen: dict[str, Any] = {}
    if cell.variant.method == "MuSc":
        found = benches.class_features(bench)
        assert found is not None
        chosen["rescore"] = baseline.Rscin(found[kept])
    return pipeline.finish(
        scores,
        None if clouds is None else [clouds[i] for i in kept],
        None if groups is None else jax.tree.map(lambda leaf: leaf[kept], groups),
        cell.config,
        grid_hw=bench.grid_hw if cell.kind != "points" else None,
        map_hw=bench.map_hw,
        **chosen,
    )


def _metrics(
    bench: Bench, kept: np.ndarray, detection: Detection, *, resampled: bool
) -> tuple[dict[str, float], dict[str, list[float]]]:
    prepared = [bench.inputs.prepared[i] for i in kept]
    labels = labels_of(bench)[kept]
    scores, maps = np.asarray(detection.pred_score), np.asarray(detection.anomaly_map)
    masks: list[Any] | None = [item.mask for item in prepared]
    inside: list[Any] | None = [item.foreground for item in prepared]
    masks = None if any(mask is None for mask in masks) else masks
    inside = None if masks is None or any(mask is None for mask in inside) else inside
    values = measured(labels, scores, masks, list(maps), inside)
    if masks is not None:
        hot = np.flatnonzero(labels != 0)
        on_defective = (
            metrics.pixel_metrics([masks[i] for i in hot], [maps[i] for i in hot]) if hot.size else {}
        )
        values["ap_seg_defective"] = on_defective.get("ap")
    resamples: dict[str, list[float]] = {}
    if resampled:
        drawn = intervals.resampled(
            labels, scores, masks, None if masks is None else list(maps), inside, resamples=RESAMPLES
        )
        for part, found in drawn.items():
            for name, numbers in found.items():
                resamples[_NAMES.get((part, name), "")] = [round(100 * float(v), 4) for v in numbers]
        resamples.pop("", None)
    return {name: 100 * float(value) for name, value in values.items() if value is not None}, resamples


_NAMES = {
    ("image", "auroc"): "auroc_cls",
    ("image", "f1_max"): "f1_max_cls",
    ("image", "ap"): "ap_cls",
    ("pixel", "auroc"): "auroc_seg",
    ("pixel", "f1_max"): "f1_max_seg",
    ("pixel", "ap"): "ap_seg",
    ("pixel", "aupro_musc"): "pro_musc",
    ("pixel", "foreground_ap"): "foreground_ap",
    ("pixel", "hit_rate"): "hit_rate",
}


def measured(
    labels: np.ndarray, scores: np.ndarray, masks: Any, maps: Any, inside: Any
) -> dict[str, float | None]:
    """The metrics of a row by the names of the published tables, between 0 and 1; None where undefined."""
    found: dict[str, Any] = {"image": {}, "pixel": {}}
    if not np.all(labels != 0):  # with nothing but defects F1 and AP are 100 % whatever the scores
        found["image"] = metrics.image_metrics(labels, scores)
    if masks is not None:
        found["pixel"] = metrics.pixel_metrics(masks, maps)
        found["pixel"]["hit_rate"] = metrics.hit_rate(masks, maps)
        if inside is not None:
            found["pixel"]["foreground_ap"] = metrics.foreground_ap(masks, maps, inside)
    return {name: found[part].get(metric) for (part, metric), name in _NAMES.items()}


def yardstick(bench: Bench) -> tuple[str, dict[str, float]]:
    """The name and the metrics, in per cent, of maps that know where the object is and nothing else.

    Where no foreground is known, of maps that are highest in the middle; ``("", {})`` without masks.
    """
    prepared = bench.inputs.prepared
    masks: list[Any] = [item.mask for item in prepared]
    inside: Any = [item.foreground for item in prepared]
    if any(mask is None for mask in masks):
        return "", {}
    if any(mask is None for mask in inside):
        name, maps, inside = "picture centre", metrics.picture_centre(masks), None
    else:
        name, maps = "blurred mask", metrics.blurred_mask(inside)
    scores = np.asarray([trivial.max() for trivial in maps])
    found = measured(labels_of(bench), scores, masks, maps, inside)
    return name, {metric: 100 * value for metric, value in found.items() if value is not None}


def _timed(
    bench: Bench, cell: Cell, image: Part | None, point: Part | None
) -> tuple[Detection, dict[str, float]]:
    """The detection by ``pipeline`` itself, and what a scan costs once everything is compiled.

    Everything is done twice and the second time counts; extraction on a few scans, the rest on all of them.
    """
    config, variant = cell.config, cell.variant
    parts = dataclasses.replace(config.run, subsets=variant.draw.parts, seed=cell.seed)
    config = dataclasses.replace(config, run=parts)
    extracted = Extracted(
        _features(image, point),
        bench.inputs.clouds if point is not None else None,
        None if point is None else point.groups,
        bench.grid_hw if image is not None else None,
        bench.map_hw,
    )
    n = len(bench.inputs.prepared)

    def work() -> Detection:
        scores = pipeline.score_subsets(extracted, config)
        return jax.block_until_ready(_finish(bench, cell, scores, extracted.groups, np.arange(n)))

    detection = work()
    cost = _seconds(work) / n + _extraction_seconds(bench, cell)
    return detection, {"time_ms": 1e3 * cost[0], "cpu_ms": 1e3 * cost[1]}


def _extraction_seconds(bench: Bench, cell: Cell) -> np.ndarray:
    """Wall and processor seconds per scan of backbone and pooling."""
    variant, total = cell.variant, np.zeros(2)
    pool_grid, pool_groups = benches.pool_functions(variant.pooling)
    if cell.kind != "points":
        assert bench.inputs.images is not None
        images: Any = np.asarray(bench.inputs.images[:_TIMED_IMAGES])
        network: Any = benches.image_backbone(bench, variant.method)
        pool = baseline.pool_grid if variant.method == "MuSc" else pool_grid
        total += _second_time(lambda: extract_images(images, network, cell.config, pool=pool)) / len(images)
    if cell.kind != "image":
        assert bench.inputs.clouds is not None
        same = batches_by_size(bench.inputs.clouds, _TIMED_CLOUDS)[0]  # of one padded size: full batches
        clouds = [bench.inputs.clouds[i] for i in same]
        encoder: Any = bench.plan.point_backbone
        work = functools.partial(extract_points, clouds, encoder, cell.config, pool=pool_groups)
        total += _second_time(work) / len(clouds)
    return total


def _seconds(work: Any) -> np.ndarray:
    """(2,) wall and processor seconds; the latter of all threads, and hardly touched by other programs."""
    started = time.perf_counter(), time.process_time()
    work()
    return np.asarray([time.perf_counter() - started[0], time.process_time() - started[1]])


def _second_time(work: Any) -> np.ndarray:
    work()
    return _seconds(work)
