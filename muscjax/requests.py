"""What a run is asked for, and what is left of a category after it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from muscjax import config
from muscjax.backbones import WEIGHT_FREE
from muscjax.config import Config
from muscjax.datasets import Dataset, Kind
from muscjax.datasets.loading import Units
from muscjax.decision import Decision
from muscjax.errors import InputError
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
    before_rscon: np.ndarray  # (N,) maxima of the maps
    decision: Decision
    summary: dict[str, Any] | None  # metrics.summary, None without labels
    cards: tuple[Card, ...]  # of the report, empty without its extra


def recorded(folder: Path) -> tuple[Request, Config]:
    """The request and the configuration of the finished run whose results are in ``folder``.

    Raises:
        InputError: no run.json, one of a run that did not finish, or one that this version cannot read.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), expected results of detect") from None
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("request"), dict):
        raise InputError(f"{path}: found no request, expected the record of a finished run")
    known = {field.name for field in dataclasses.fields(Request)}
    given: dict[str, Any] = {name: value for name, value in record["request"].items() if name in known}
    if not {"path", "out"} <= set(given):
        raise InputError(f"{path}: found a request without path, expected the record of a finished run")
    for name in ("path", "out"):
        given[name] = Path(given[name])
    return Request(**given), config.from_tree(record.get("config", {}), str(path))
