"""A data set on disk to maps, ranked scores, metrics and a report: what ``muscjax detect`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muscjax import datasets, outputs, report, results
from muscjax.backbones import WEIGHT_FREE
from muscjax.config import DEFAULT_IMAGE_SIZE, Config
from muscjax.console import Observer
from muscjax.datasets import Dataset, Kind, Prepared, Scan
from muscjax.errors import InputError
from muscjax.requests import Outcome, Request


def run(request: Request, config: Config, observe: Observer) -> list[Outcome]:
    """Score every category under ``request.path`` and write the results below ``request.out``.

    Each category's files are complete before the next one begins.

    Raises:
        InputError: anything the user has to change; what was finished before stays.
    """
    found = datasets.open_dataset(
        request.path,
        layout=request.layout,
        category=request.category,
        split=request.split,
        modality=request.modality,
    )
    out = outputs.open_output(request.out)
    notes: list[str] = []

    def say(message: str) -> None:
        notes.append(message)
        observe.say(message)

    for dataset in found:
        for problem in dataset.problems:
            say(problem)
    missing = report.available()
    if missing is not None:
        observe.say(missing)
    kinds: list[Kind] = [_modality(dataset, request) for dataset in found]
    image_backbone = None
    if any(kind != "points" for kind in kinds):
        image_backbone = load_image_backbone(request.image_backbone, config)
    point_backbone = None
    if any(kind != "image" for kind in kinds):
        point_backbone = load_point_backbone(request.point_backbone, config)
    config = _sized(config, image_backbone)
    for dataset in found:
        for scan in dataset.scans:
            outputs.map_path(out, scan.name)  # refused before any work is done
    outputs.write_json(out / "run.json", {"unfinished": True})  # marks the folder as results, not input
    done: list[Outcome] = []
    with outputs.count_compiles() as compiles:
        for dataset, kind in zip(found, kinds, strict=True):
            backbones = (
                None if kind == "points" else image_backbone,
                None if kind == "image" else point_backbone,
            )
            done.append(run_category(dataset, kind, request, config, backbones, out, observe, say))
            results.write_tables(out, done, request, config, observe, compiles, notes)
            observe("tables", len(done), len(found))
    return done


def _modality(dataset: Dataset, request: Request) -> Kind:
    """What a run of this data set uses; InputError where what was asked for is not there."""
    images, points = dataset.has_images, dataset.has_points
    asked = request.modality
    if asked == "auto":
        if not images and not points:
            raise InputError(f"{dataset.root}: found neither images nor XYZ maps for every scan")
        return "both" if images and points else "points" if points else "image"
    for name, present in (("image", images), ("points", points)):
        if asked in (name, "both") and not present:
            raise InputError(f"{dataset.root}: --modality {asked}, but not every scan has {name} data")
    return asked


def load_image_backbone(name: str, config: Config) -> Callable:
    """The texture descriptor, or the image network of that name or file at the configured size."""
    if name == WEIGHT_FREE["image"]:
        from muscjax.backbones import texture
        from muscjax.extract import Bound

        return Bound(texture.describe, config.texture)
    from muscjax.backbones import registry

    return registry.load_image_backbone(name, image_size=config.input.image_size)


def load_point_backbone(name: str, config: Config) -> Callable:
    """FPFH, or the Point-MAE encoder of that name or file."""
    if name == WEIGHT_FREE["points"]:
        from muscjax.backbones import descriptors
        from muscjax.extract import Bound

        return Bound(descriptors.fpfh, config.fpfh)
    from muscjax.backbones import registry

    return registry.load_point_backbone(name)


def _sized(config: Config, backbone: Any) -> Config:
    """The configuration with the image size that the backbone settled on."""
    size = config.input.image_size or getattr(backbone, "image_size", None) or DEFAULT_IMAGE_SIZE
    return dataclasses.replace(config, input=dataclasses.replace(config.input, image_size=size))


def run_category(
    dataset: Dataset,
    kind: Kind,
    request: Request,
    config: Config,
    backbones: tuple[Callable | None, Callable | None],
    out: Path,
    observe: Observer,
    say: Callable[[str], None],
) -> Outcome:
    """Load, score and write one category with its (image, point) backbones."""
    from muscjax import pipeline

    scans = dataset.scans
    pipeline.subset_ids(len(scans), config.run.subsets, config.run.seed)  # refused before any work is done
    _, map_size = datasets.working_sizes(scans, config, modality=kind)
    config = dataclasses.replace(config, input=dataclasses.replace(config.input, map_size=map_size))
    prepared = load(scans, kind, request, config, observe, say)
    images = (
        np.stack([item.image for item in prepared if item.image is not None]) if kind != "points" else None
    )
    prepared = [dataclasses.replace(item, image=None) for item in prepared]  # held once, in the stack
    clouds = [item.cloud for item in prepared if item.cloud is not None] if kind != "image" else None
    detection = pipeline.detect(
        images,
        clouds,
        image_backbone=backbones[0],
        point_backbone=backbones[1],
        config=config,
        progress=observe,
    )
    anomaly_maps = np.asarray(detection.anomaly_map)
    scores, before = np.asarray(detection.pred_score), np.asarray(detection.map_max)
    source_maps, cards = results.write_scans(
        scans, prepared, anomaly_maps, scores, before, kind, request, out, observe
    )
    summary = results.evaluate(scans, prepared, anomaly_maps, source_maps, scores, request)
    observe("metrics", 1, 1)
    return Outcome(dataset, kind, scores, before, summary, cards)


def load(
    scans: Sequence[Scan],
    kind: Kind,
    request: Request,
    config: Config,
    observe: Observer,
    say: Callable[[str], None],
) -> list[Prepared]:
    """All scans at working size, read and cleaned by a few threads."""

    def one(scan: Scan) -> Prepared:
        return datasets.prepare(
            scan,
            config,
            modality=kind,
            clean=request.clean,
            units=request.units,
            map_size=config.input.map_size,
        )

    prepared = []
    for scan, item in zip(scans, datasets.prefetch(one, scans), strict=True):
        prepared.append(item)
        for note in item.notes:
            say(note)
        if item.cloud is not None and not np.any(item.cloud.valid):
            say(f"{scan.xyz}: no foreground; its points get no score")
        observe("loading", len(prepared), len(scans))
    return prepared
