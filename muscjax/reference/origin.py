"""What every scan of a store was made with; scans made with anything else are refused in one line.

The origin is a JSON object: modality, configuration, backbones with the hash of their weights, the patch
grid, the levels, and the version of this package.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from muscjax import config as configuration
from muscjax.config import Config
from muscjax.errors import InputError
from muscjax.identity import backbone_identity, content_digest, package_version
from muscjax.inputs import Inputs, Plan
from muscjax.outputs import plain
from muscjax.reference.kept import Kept, open_kept
from muscjax.requests import Request

_FREE = (
    "run.memory_budget",
    "run.features",
    "run.seed",
    "decision.",
    "preset",
)  # what no kept feature and no frozen score depends on


def defaults(folder: Path) -> tuple[dict[str, Any], Config]:
    """The options of a request, and the configuration, that a store was made with."""
    origin = open_kept(folder).origin
    options = {"modality": origin["kind"], "clean": origin["clean"], "units": origin["units"]}
    for side in ("image_backbone", "point_backbone"):
        if origin[side] is not None:
            options[side] = origin[side]["name"]
    return options, config_of(origin)


def config_of(origin: Mapping[str, Any]) -> Config:
    """The configuration that the scans of a store were made with."""
    return configuration.from_tree(origin["config"], "the reference store")


def compare_request(kept: Kept, plan: Plan, request: Request) -> None:
    """InputError where a run differs from what the store was made with, in one line that names both."""
    one_category(plan, request)
    mine = _made_with(plan, request)
    for name, option in (("kind", "modality"), ("clean", "clean")):
        if mine[name] != kept.origin[name]:
            raise _mismatch(kept, option, kept.origin[name], mine[name])
    for side, option in (("image_backbone", "image backbone"), ("point_backbone", "point backbone")):
        own, theirs = mine[side], kept.origin[side]
        if own is not None and own["identity"] != theirs["identity"]:
            same = " with other weights or settings" if own["name"] == theirs["name"] else ""
            raise _mismatch(kept, option, theirs["name"], f"{own['name']}{same}")
    own, theirs = (_flat(plain(c)) for c in (plan.config, config_of(kept.origin)))
    for field, value in theirs.items():
        if not field.startswith(_FREE) and own[field] != value:
            raise _mismatch(kept, field, value, own[field])


def compare_loaded(kept: Kept, loaded: Inputs) -> None:
    """InputError where the scans do not come to the store's map size."""
    if loaded.config.input.map_size != kept.origin["map_size"]:
        raise _mismatch(kept, "maps of side", kept.origin["map_size"], loaded.config.input.map_size)


def one_category(plan: Plan, request: Request) -> None:
    """InputError where there are several: a reference set is of one product."""
    if len(plan.datasets) != 1:
        names = ", ".join(dataset.category for dataset in plan.datasets)
        raise InputError(f"{request.path}: found the categories {names}, expected one (--category)")


def _mismatch(kept: Kept, what: str, theirs: Any, mine: Any) -> InputError:
    return InputError(f"{kept.folder}: made with {what} {theirs}, this run has {mine}; expected the same")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out


def _made_with(plan: Plan, request: Request) -> dict[str, Any]:
    kind = plan.kinds[0]
    names = {"image_backbone": request.image_backbone, "point_backbone": request.point_backbone}
    backbones = {
        side: None if backbone is None else {"name": names[side], "identity": backbone_identity(backbone)}
        for side, backbone in plan.backbones(kind).items()
    }
    return {"kind": kind, "clean": request.clean, "units": request.units, **backbones}


def origin_of(loaded: Inputs, plan: Plan, request: Request, shape: Mapping[str, Any]) -> dict[str, Any]:
    """The origin of a new store; ``shape`` holds ``grid_hw`` and ``levels`` of the features.

    The side of the window around the object becomes a part of the configuration: later scans are cut alike.
    """
    crop = loaded.prepared[0].frame.crop
    window = {"window": "whole"} if crop is None else {"window_side": crop[2]}
    config = dataclasses.replace(plan.config, input=dataclasses.replace(plan.config.input, **window))
    sizes = {"config": config, "map_size": loaded.config.input.map_size, **shape}
    made = {**_made_with(plan, request), **sizes, "version": package_version()}
    return json.loads(json.dumps(plain(made)))


def contents_of(loaded: Inputs) -> list[str]:
    """SHA-256 of each scan at working size: its image, its cloud."""
    out = []
    import jax

    for i in range(len(loaded.dataset.scans)):
        image = None if loaded.images is None else np.asarray(loaded.images[i : i + 1])
        cloud = [None] if loaded.clouds is None else jax.tree.leaves(loaded.clouds[i])
        out.append(content_digest(image, *cloud))
    return out
