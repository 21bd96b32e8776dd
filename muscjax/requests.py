"""What a run is asked for, and what is left of a category after it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from muscjax.backbones import WEIGHT_FREE
from muscjax.datasets import Dataset, Kind
from muscjax.datasets.loading import Units
from muscjax.report import Card


@dataclasses.dataclass(frozen=True)
class Request:
    """What to run on what; the method's numbers are in the ``Config``."""

    path: Path
    out: Path
    layout: str = "auto"
    category: str | None = None
    split: str = "test"
    modality: Literal["auto", "image", "points", "both"] = "auto"
    image_backbone: str = WEIGHT_FREE["image"]  # or a converted file, or a registry name
    point_backbone: str = WEIGHT_FREE["points"]  # likewise
    units: Units = "auto"
    clean: bool = True  # plane removal and largest cluster on scans with XYZ
    metric_size: Literal["working", "original"] = "working"
    overlays: bool = True


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One category after its run."""

    dataset: Dataset
    modality: Kind
    scores: np.ndarray  # (N,) after RsCon
    before_rscon: np.ndarray  # (N,)
    summary: dict[str, Any] | None  # metrics.summary, None without labels
    cards: tuple[Card, ...]  # of the report, empty without its extra
