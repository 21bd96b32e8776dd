"""A data set on disk to maps, ranked scores and metrics in a folder: what ``muscjax detect`` does."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from muscjax import datasets, metrics, outputs
from muscjax.colormap import depth_picture, heat_limits
from muscjax.config import DEFAULT_IMAGE_SIZE, Config
from muscjax.console import Observer
from muscjax.datasets import Dataset, Prepared, Scan
from muscjax.datasets.loading import Units
from muscjax.errors import InputError

Modality = Literal["auto", "image", "points", "both"]
WEIGHT_FREE_POINTS = "fpfh"


@dataclasses.dataclass(frozen=True)
class Request:
    """What to run on what; the method's numbers are in the ``Config``."""

    path: Path
    out: Path
    layout: str = "auto"
    category: str | None = None
    split: str = "test"
    modality: Modality = "auto"
    image_backbone: str | None = None  # a converted file or a registry name
    point_backbone: str = WEIGHT_FREE_POINTS  # fpfh, a converted file or a registry name
    units: Units = "auto"
    clean: bool = True  # plane removal and largest cluster on scans with XYZ
    metric_size: Literal["working", "original"] = "working"
    overlays: bool = True


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One category after its run."""

    dataset: Dataset
    modality: str
    scores: np.ndarray  # (N,) after RsCon
    before_rscon: np.ndarray  # (N,)
    summary: dict[str, Any] | None  # metrics.summary, None without labels


def run(request: Request, config: Config, observe: Observer) -> list[Outcome]:
    """Score every category under ``request.path`` and write the results below ``request.out``.

    Each category's files are complete before the next one begins.

    Raises:
        InputError: anything the user has to change; what was finished before stays.
    """
    wanted = request.modality
    found = datasets.open_dataset(
        request.path,
        layout=request.layout,
        category=request.category,
        split=request.split,
        modality=wanted,
    )
    out = outputs.open_output(request.out)
    for dataset in found:
        for problem in dataset.problems:
            observe.say(problem)
    image_backbone = None
    modality = {dataset.category: _modality(dataset, request) for dataset in found}
    if any(kind != "points" for kind in modality.values()):
        image_backbone = load_image_backbone(request.image_backbone, config)
    config = _sized(config, image_backbone)
    done: list[Outcome] = []
    compiles: dict[str, float]
    with outputs.count_compiles() as compiles:
        for dataset in found:
            outcome = run_category(
                dataset, modality[dataset.category], request, config, image_backbone, out, observe
            )
            done.append(outcome)
            _write_tables(out, done, request, config, observe, compiles)
    return done


def _modality(dataset: Dataset, request: Request) -> str:
    """What a run of this data set uses; InputError where what was asked for is not there."""
    has = {"image": dataset.has_images, "points": dataset.has_points}
    asked = request.modality
    if asked == "auto":
        usable = [kind for kind in has if has[kind] and (kind == "points" or request.image_backbone)]
        if usable:
            return "both" if len(usable) == 2 else usable[0]
        if not has["image"]:
            raise InputError(f"{dataset.root}: found neither images nor XYZ maps for every scan")
        return "image"
    for kind, present in has.items():
        if asked in (kind, "both") and not present:
            raise InputError(f"{dataset.root}: --modality {asked}, but not every scan has {kind} data")
    return asked


def load_image_backbone(name: str | None, config: Config) -> Callable:
    """The image backbone of that name or file, at the configured input size."""
    if name is None:
        raise InputError("--image-backbone: expected a converted weights file (see muscjax convert)")
    from muscjax.backbones import registry

    return registry.load_image_backbone(name, image_size=config.input.image_size)


def load_point_backbone(name: str, config: Config, grid_hw: tuple[int, int] | None) -> Callable:
    """FPFH on the given pixel grid, or the Point-MAE encoder of that name or file."""
    if name == WEIGHT_FREE_POINTS:
        from muscjax.backbones import descriptors

        return functools.partial(descriptors.fpfh, config=config.fpfh, grid_hw=grid_hw)
    from muscjax.backbones import registry

    return registry.load_point_backbone(name)


def _sized(config: Config, backbone: Any) -> Config:
    """The configuration with the image size that the backbone settled on."""
    size = config.input.image_size or getattr(backbone, "image_size", None) or DEFAULT_IMAGE_SIZE
    return dataclasses.replace(config, input=dataclasses.replace(config.input, image_size=size))


def run_category(
    dataset: Dataset,
    modality: str,
    request: Request,
    config: Config,
    image_backbone: Callable | None,
    out: Path,
    observe: Observer,
) -> Outcome:
    """Load, score and write one category."""
    from muscjax import pipeline

    scans = dataset.scans
    _, map_size = datasets.working_sizes(scans, config, modality=modality)
    config = dataclasses.replace(config, input=dataclasses.replace(config.input, map_size=map_size))
    prepared = load(scans, modality, request, config, observe)
    if modality != "image":
        for scan, item in zip(scans, prepared, strict=True):
            if item.cloud is not None and not np.any(item.cloud.valid):
                observe.say(f"{scan.xyz}: no foreground; its points get no score")
    images = None if modality == "points" else np.stack([_given(item.image) for item in prepared])
    clouds = None if modality == "image" else [item.cloud for item in prepared]
    point_backbone = None
    if clouds is not None:
        grid = sensor_grid(prepared) if config.fpfh.full_resolution else prepared[0].frame.working_hw
        point_backbone = load_point_backbone(request.point_backbone, config, grid)
    detection = pipeline.detect(
        images,
        clouds,
        image_backbone=image_backbone if images is not None else None,
        point_backbone=point_backbone,
        config=config,
        progress=observe,
    )
    anomaly_maps = np.asarray(detection.anomaly_map)
    scores, before = np.asarray(detection.pred_score), np.asarray(detection.map_max)
    source_maps = write_maps(scans, prepared, anomaly_maps, request, out, observe)
    summary = evaluate(scans, prepared, anomaly_maps, source_maps, scores, request)
    observe("metrics", 1, 1)
    return Outcome(dataset, modality, scores, before, summary)


def load(
    scans: Sequence[Scan], modality: str, request: Request, config: Config, observe: Observer
) -> list[Prepared]:
    """All scans at working size, read and cleaned by a few threads."""

    def one(scan: Scan) -> Prepared:
        return datasets.prepare(
            scan,
            config,
            modality=modality,
            clean=request.clean,
            units=request.units,
            map_size=config.input.map_size,
        )

    prepared = []
    for item in datasets.prefetch(one, scans):
        prepared.append(item)
        for note in item.notes:
            observe.say(note)
        observe("loading", len(prepared), len(scans))
    return prepared


def _given(image: np.ndarray | None) -> np.ndarray:
    assert image is not None
    return image


def sensor_grid(prepared: Sequence[Prepared]) -> tuple[int, int] | None:
    """The sensor grid that all scans share; None where they differ."""
    grids = {item.sensor_hw for item in prepared}
    return grids.pop() if len(grids) == 1 else None


def write_maps(
    scans: Sequence[Scan],
    prepared: Sequence[Prepared],
    anomaly_maps: np.ndarray,
    request: Request,
    out: Path,
    observe: Observer,
) -> list[np.ndarray]:
    """Each scan's map at its own size as TIFF, and the picture under its heat, one colour scale for the set.

    Returns:
        The maps at source size where ``metric_size`` asks for them, else an empty list.
    """
    import jax

    from muscjax import maps

    to_source = jax.jit(maps.to_source, static_argnums=1)
    limits = heat_limits(list(anomaly_maps))

    def one(position: int) -> np.ndarray:
        scan, frame = scans[position], prepared[position].frame
        full = np.asarray(to_source(anomaly_maps[position], frame))
        outputs.write_map(outputs.map_path(out, scan.name), full)
        if request.overlays:
            picture = _picture(scan, request)
            outputs.write_overlay(outputs.overlay_path(out, scan.name), picture, full, limits=limits)
        return full

    kept = []
    for done, full in enumerate(datasets.prefetch(one, range(len(scans))), start=1):
        observe("writing", done, len(scans))
        if request.metric_size == "original":
            kept.append(full)
    return kept


def _picture(scan: Scan, request: Request) -> np.ndarray:
    """The scan as a person would recognise it, at source size: its image, else its shaded depth."""
    if scan.image is not None:
        return datasets.load_image(scan.image)
    assert scan.xyz is not None
    return depth_picture(datasets.load_xyz(scan.xyz, units=request.units))


def evaluate(
    scans: Sequence[Scan],
    prepared: Sequence[Prepared],
    anomaly_maps: np.ndarray,
    source_maps: Sequence[np.ndarray],
    scores: np.ndarray,
    request: Request,
) -> dict[str, Any] | None:
    """``metrics.summary`` where every scan's label is known; pixel metrics where every mask is."""
    if any(scan.label is None for scan in scans):
        return None
    labels = np.asarray([scan.label for scan in scans])
    original = request.metric_size == "original"
    masks = [
        datasets.load_truth(scan) if original else item.mask
        for scan, item in zip(scans, prepared, strict=True)
    ]
    foreground = [item.foreground for item in prepared]
    with_foreground = not original and all(mask is not None for mask in foreground)
    if any(mask is None for mask in masks):
        return metrics.summary(labels=labels, scores=scores)
    return metrics.summary(
        labels=labels,
        scores=scores,
        masks=[mask for mask in masks if mask is not None],
        maps=list(source_maps) if original else list(anomaly_maps),
        foreground=[mask for mask in foreground if mask is not None] if with_foreground else None,
    )


def _write_tables(
    out: Path,
    outcomes: Sequence[Outcome],
    request: Request,
    config: Config,
    observe: Observer,
    compiles: dict[str, float],
) -> None:
    """scores.csv, metrics.json and run.json of all categories that are finished."""
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        scans = outcome.dataset.scans
        labels = [scan.label for scan in scans]
        names = [
            str((scan.image or scan.xyz or Path(scan.name)).relative_to(outcome.dataset.root))
            for scan in scans
        ]
        paths = [f"{outcome.dataset.category}/{name}" for name in names]
        rows += outputs.score_rows(paths, outcome.scores, outcome.before_rscon, labels)
    outputs.write_scores(out / "scores.csv", rows)
    summaries = {o.dataset.category: o.summary for o in outcomes if o.summary is not None}
    if summaries:
        outputs.write_json(out / "metrics.json", summaries)
    record = outputs.run_record(
        config,
        seconds=observe.seconds,
        compiles=compiles,
        request=request,
        scans={o.dataset.category: len(o.dataset.scans) for o in outcomes},
        modality={o.dataset.category: o.modality for o in outcomes},
    )
    outputs.write_json(out / "run.json", record)
