"""The published numbers of MuSc-V2, and which of them a run may be held against.

``published.csv`` holds the method's rows of Tables I and II of arXiv 2511.10047 and the per-category results
of its authors' repository, in per cent: maps of 224×224, complete test splits. A run is compared only where
its data are such a split and its networks are the published ones.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal

from muscjax.errors import InputError

Modality = Literal["image", "points", "both"]
METRICS = ("auroc_cls", "f1_max_cls", "ap_cls", "auroc_seg", "f1_max_seg", "ap_seg", "pro_musc")
TITLES = {
    "mvtec3d": "MVTec 3D-AD",
    "eyecandies": "Eyecandies",
    "mvtec": "MVTec AD",
    "visa": "VisA",
    "mpdd": "MPDD",
    "btad": "BTAD",
}
# Scans of each complete (public) test split: a category of the same name and another size is something else.
SIZES: dict[str, dict[str, int]] = {
    "mvtec3d": {
        "bagel": 110,
        "cable_gland": 108,
        "carrot": 159,
        "cookie": 131,
        "dowel": 130,
        "foam": 100,
        "peach": 132,
        "potato": 114,
        "rope": 101,
        "tire": 112,
    },
    "eyecandies": dict.fromkeys(
        (
            "CandyCane",
            "ChocolateCookie",
            "ChocolatePraline",
            "Confetto",
            "GummyBear",
            "HazelnutTruffle",
            "LicoriceSandwich",
            "Lollipop",
            "Marshmallow",
            "PeppermintCandy",
        ),
        50,
    ),
    "mvtec": {
        "bottle": 83,
        "cable": 150,
        "capsule": 132,
        "carpet": 117,
        "grid": 78,
        "hazelnut": 110,
        "leather": 124,
        "metal_nut": 115,
        "pill": 167,
        "screw": 160,
        "tile": 117,
        "toothbrush": 42,
        "transistor": 100,
        "wood": 79,
        "zipper": 151,
    },
    "visa": {
        "candle": 200,
        "capsules": 160,
        "cashew": 150,
        "chewinggum": 150,
        "fryum": 150,
        "macaroni1": 200,
        "macaroni2": 200,
        "pcb1": 200,
        "pcb2": 200,
        "pcb3": 201,
        "pcb4": 201,
        "pipe_fryum": 150,
    },
    "mpdd": {
        "bracket_black": 79,
        "bracket_brown": 77,
        "bracket_white": 60,
        "connector": 44,
        "metal_plate": 97,
        "tubes": 101,
    },
    "btad": {"01": 70, "02": 230, "03": 441},
}
_NAMES = {"dino-vitb8": "ViT-B-8", "clip-vitl14-336": "ViT-L-14-336", "point-mae": "Point-MAE"}
# Of a converted file's header: what the architecture must say for the family to be the published network.
_ARCHITECTURES = {
    "dino": ("ViT-B-8", {"patch_size": 8, "width": 768, "depth": 12}),
    "clip": ("ViT-L-14-336", {"patch_size": 14, "width": 1024, "depth": 24, "image_size": 336}),
    "point_mae": ("Point-MAE", {"width": 384, "depth": 12}),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One published result, in per cent; ``category`` "" is the mean of the data set."""

    dataset: str
    modality: str
    image: str  # the network, "" where the modality has none
    points: str
    category: str
    values: Mapping[str, float]  # of METRICS; without those that were not published

    @property
    def networks(self) -> str:
        return " + ".join(name for name in (self.image, self.points) if name)


@dataclasses.dataclass(frozen=True)
class Beside:
    """The published numbers that stand beside a run's."""

    dataset: str
    networks: str
    same: bool  # the run's own networks; otherwise no difference is meant
    categories: Mapping[str, Mapping[str, float]]  # only those that were published
    mean: Mapping[str, float] | None  # over the run's categories; None where that is not known
    notes: tuple[str, ...]


@functools.cache
def table() -> tuple[Row, ...]:
    """All rows of ``published.csv``."""
    lines = resources.files("muscjax").joinpath("published.csv").read_text("utf-8").splitlines()
    return tuple(
        Row(
            dataset=row["dataset"],
            modality=row["modality"],
            image=row["image"],
            points=row["points"],
            category=row["category"],
            values={name: float(row[name]) for name in METRICS if row[name]},
        )
        for row in csv.DictReader(lines)
    )


def network(backbone: str | os.PathLike) -> str | None:
    """The published name of a backbone, or None where nothing was published with it.

    backbone: a name of ``muscjax backbones``, a converted file (its header is read), or the published name.
    """
    name = os.fspath(backbone)
    if name in _NAMES or name in _NAMES.values():
        return _NAMES.get(name, name)
    if not Path(name).is_file():
        return None
    from muscjax.backbones import params

    try:
        header = params.metadata(name)
        stored = json.loads(header["architecture"])
        title, wanted = _ARCHITECTURES[header["family"]]
        return title if all(stored.get(field) == value for field, value in wanted.items()) else None
    except (InputError, KeyError, ValueError, AttributeError):
        return None


def lookup(
    dataset: str,
    modality: Modality,
    image_backbone: str | os.PathLike | None = None,
    point_backbone: str | os.PathLike | None = None,
    category: str | None = None,
) -> dict[str, float] | None:
    """Per cent by name of `METRICS`, published with exactly these backbones; None where there is nothing.

    dataset: a key of `SIZES`. Backbones as in `network`; the one that ``modality`` does not use is ignored.
    category: None for the mean of the data set.
    """
    image, points = _networks(modality, image_backbone, point_backbone)
    for row in table():
        key = (row.dataset, row.modality, row.image, row.points, row.category)
        if key == (dataset, modality, image, points, category or ""):
            return dict(row.values)
    return None


def dataset_of(sizes: Mapping[str, int]) -> tuple[str | None, str]:
    """The published data set of which these are complete test categories, and why there is none.

    sizes: scans by category. The second value is one line, "" where nothing has to be said.
    """
    for dataset, complete in SIZES.items():
        if not sizes or not set(sizes) <= set(complete):
            continue
        for category, count in sizes.items():
            if count != complete[category]:
                return None, (
                    f"No published numbers are shown: {category} has {count} scans here, "
                    f"{complete[category]} in the test split of {TITLES[dataset]}."
                )
        return dataset, ""
    return None, ""


def beside(
    sizes: Mapping[str, int],
    modality: Modality,
    image_backbone: str | os.PathLike | None = None,
    point_backbone: str | os.PathLike | None = None,
) -> Beside | None:
    """What a run over these categories is held against; None where nothing comparable was published.

    sizes: scans by category. Of other backbones than the published ones, the closest row (the one with the
    same ViT, else ViT-B-8, else the only one) comes back with ``same`` False.
    """
    dataset, _ = dataset_of(sizes)
    if dataset is None:
        return None
    image, points = _networks(modality, image_backbone, point_backbone)
    rows = [row for row in table() if (row.dataset, row.modality) == (dataset, modality)]
    if not rows:
        return None
    best = max(
        (row for row in rows if not row.category),
        key=lambda row: (
            (row.image, row.points) == (image, points),
            row.image == image,
            row.image != "ViT-L-14-336",
        ),
    )
    same = (best.image, best.points) == (image, points)
    chosen = {
        row.category: row.values for row in rows if (row.image, row.points) == (best.image, best.points)
    }
    categories = {name: chosen[name] for name in sizes if name in chosen}
    notes = [_origin(best, same)]
    if set(sizes) == set(SIZES[dataset]):
        mean: Mapping[str, float] | None = best.values
    elif len(categories) == len(sizes):
        mean = {
            name: sum(values[name] for values in categories.values()) / len(categories)
            for name in best.values
        }
    else:
        mean = None
        notes.append(
            f"Published for all {len(SIZES[dataset])} categories together only: "
            + ", ".join(f"{name} {value:.1f}" for name, value in best.values.items())
            + "."
        )
    if modality != "image":
        notes.append(
            "Published 3D numbers are stochastic if the released script made them: it leaves the batch norm "
            "of Point-MAE on the statistics of each cloud, and its DropPath active."
            + (" Here: batch norm with the stored statistics (running), no DropPath." if points else "")
        )
    return Beside(dataset, best.networks, same, categories, mean, tuple(notes))


def _origin(row: Row, same: bool) -> str:
    # Table II does not state its backbone.
    unstated = (
        " (presumably: the paper does not say)" if row.dataset in ("mvtec", "visa", "mpdd", "btad") else ""
    )
    text = f"Published: MuSc-V2 on {TITLES[row.dataset]} with {row.networks}{unstated}, maps of 224×224."
    return text if same else f"{text} This run used something else, so no difference is given."


def _networks(modality: str, image: str | os.PathLike | None, points: str | os.PathLike | None):
    return (
        "" if modality == "points" else (None if image is None else network(image)),
        "" if modality == "image" else (None if points is None else network(points)),
    )
