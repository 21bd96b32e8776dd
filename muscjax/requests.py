"""What a run is asked for, and what is left of a category after it."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

import numpy as np

from muscjax import config
from muscjax.backbones import WEIGHT_FREE
from muscjax.config import Config
from muscjax.datasets import Dataset, Kind
from muscjax.datasets.loading import Units
from muscjax.decision import Decision
from muscjax.errors import InputError, shown
from muscjax.report import Card
from muscjax.texts import read_record

RECORD = "run.json"


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
    reference: Path | None = None  # a kept set (`muscjax.reference`); None: the scans score each other
    store: Path | None = None  # features of the scans, kept for other runs (`muscjax.state`)


# As JSON has them: paths are text.
_AS_TEXT: dict[Any, Any] = {Path: str, Path | None: str | None}
_KINDS = {name: _AS_TEXT.get(kind, kind) for name, kind in typing.get_type_hints(Request).items()}


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
    reference: dict[str, Any] | None = None  # the kept set that the scans were scored against


def recorded(folder: Path) -> tuple[Request, Config]:
    """The request and the configuration of the finished run whose results are in ``folder``.

    Raises:
        InputError: no run.json, one of a run that did not finish, or one that this version cannot read.
    """
    record = record_of(folder)
    path = folder / RECORD
    request = record["request"]
    if not {"path", "out"} <= set(request):
        raise InputError(f"{path}: found a request without path, expected the record of a finished run")
    given: dict[str, Any] = {name: request[name] for name in _KINDS if name in request}
    for name in ("path", "out", "reference", "store"):
        if given.get(name) is not None:
            given[name] = Path(given[name])
    return Request(**given), config.from_tree(record.get("config", {}), str(path))


def record_of(folder: Path) -> dict[str, Any]:
    """run.json of a finished run: its request has fields of the right types, its parts are objects.

    Raises:
        InputError: no such file, one of a run that did not finish, or one that is no record.
    """
    path = folder / RECORD
    if not path.exists():
        raise InputError(f"{path}: no such file, expected results of detect")
    record = read_record(path)
    if not isinstance(record.get("request"), dict):
        raise InputError(f"{path}: found no request, expected the record of a finished run")
    for name in ("config", "versions", "device"):
        if not isinstance(record.get(name, {}), dict):
            raise InputError(f"{path}: {name}: found {shown(record[name])}, expected an object")
    for name, kind in _KINDS.items():
        value = record["request"].get(name)
        if name in record["request"]:
            record["request"][name] = config.typed(value, kind, f"{path}: request.{name}")
        if isinstance(value, str) and "\0" in value:
            raise InputError(f"{path}: request.{name}: found {shown(value)}, expected text without NUL")
    return record
