"""From a request to what the pipeline takes: data sets, backbones, and scans at working size.

``run``, ``explain`` and ``ablate`` all begin here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from muscjax import datasets
from muscjax.backbones import WEIGHT_FREE, overlap
from muscjax.config import DEFAULT_IMAGE_SIZE, Config
from muscjax.console import Observer
from muscjax.datasets import Dataset, Kind, Prepared
from muscjax.errors import InputError
from muscjax.requests import Request
from muscjax.types import Cloud


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a request comes to: its data sets, what is used of each, and the backbones, loaded once."""

    datasets: tuple[Dataset, ...]
    kinds: tuple[Kind, ...]
    image_backbone: Callable | None  # None where no data set's images are used
    point_backbone: Callable | None
    config: Config  # with the image size that the backbone settled on

    def backbones(self, kind: Kind) -> dict[str, Any]:
        """Those that a data set of that kind is given, as ``pipeline.extract`` names them."""
        return {
            "image_backbone": None if kind == "points" else self.image_backbone,
            "point_backbone": None if kind == "image" else self.point_backbone,
        }


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One category, ready for the pipeline."""

    dataset: Dataset
    kind: Kind
    config: Config  # with the map size of this category
    prepared: tuple[Prepared, ...]  # without images
    images: Sequence[np.ndarray] | np.ndarray | None  # (N, s, s, 3) uint8, or a lazy sequence of such rows
    clouds: list[Cloud] | None


def plan(request: Request, config: Config, *, fewest: int = 2) -> Plan:
    """Open the data sets, of at least ``fewest`` scans each, and load the backbones.

    Raises:
        InputError: anything the user has to change.
    """
    found = datasets.open_dataset(
        request.path,
        layout=request.layout,
        category=request.category,
        split=request.split,
        modality=request.modality,
        fewest=fewest,
    )
    kinds: list[Kind] = [_kind(dataset, request) for dataset in found]
    image_backbone = point_backbone = None
    networks = () if request.image_backbone == WEIGHT_FREE["image"] else kinds
    config = overlap.resolved(config, [kind for kind in networks if kind != "points"])
    if any(kind != "points" for kind in kinds):
        image_backbone = load_image_backbone(request.image_backbone, config)
    if any(kind != "image" for kind in kinds):
        point_backbone = load_point_backbone(request.point_backbone, config)
    return Plan(tuple(found), tuple(kinds), image_backbone, point_backbone, _sized(config, image_backbone))


def _kind(dataset: Dataset, request: Request) -> Kind:
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

    network = registry.load_image_backbone(name, image_size=config.input.image_size)
    return overlap.configured(network, config.network)


def load_point_backbone(name: str, config: Config) -> Callable:
    """FPFH, or the Point-MAE encoder of that name or file."""
    if name == WEIGHT_FREE["points"]:
        from muscjax.backbones import descriptors
        from muscjax.extract import Bound

        return Bound(descriptors.fpfh, config.fpfh)
    from muscjax.backbones import registry

    return registry.load_point_backbone(name)


def _sized(config: Config, backbone: Any) -> Config:
    """The configuration with the image size that the backbone settled on, and the step of sizes it takes."""
    size = config.input.image_size or getattr(backbone, "image_size", None) or DEFAULT_IMAGE_SIZE
    patch = getattr(getattr(backbone, "spec", backbone), "patch_size", None)
    sized = dataclasses.replace(config.input, image_size=size, image_step=patch or config.input.image_step)
    return dataclasses.replace(config, input=sized)


def load(
    dataset: Dataset,
    kind: Kind,
    request: Request,
    config: Config,
    observe: Observer,
    say: Callable[[str], None],
) -> Inputs:
    """All scans of a category at working size: from the cache, or read and cleaned by worker processes."""
    from muscjax import pipeline

    scans = dataset.scans
    if config.run.subsets > 1:  # refused before any work is done
        pipeline.subset_ids(len(scans), config.run.subsets, config.run.seed)
    working = datasets.open_working(
        scans,
        config,
        modality=kind,
        clean=request.clean,
        units=request.units,
        progress=lambda done, total: observe("loading", done, total),
    )
    for note in working.notes:
        say(note)
    for scan, item in zip(scans, working.prepared, strict=True):
        for note in item.notes:
            say(note)
        if item.cloud is not None and not np.any(item.cloud.valid):
            say(f"{scan.xyz}: no foreground; its points get no score")
    clouds = [item.cloud for item in working.prepared if item.cloud is not None]
    return Inputs(
        dataset,
        kind,
        dataclasses.replace(config, input=dataclasses.replace(config.input, map_size=working.map_size)),
        working.prepared,
        working.images,
        clouds if kind != "image" else None,
    )
