"""Zero-shot anomaly detection of industrial scans by mutual scoring (MuSc-V2), as pure JAX functions.

``muscjax.detect(images, clouds, ...)`` runs the whole method on arrays; the stages are modules of their own.
Nothing heavy is imported until it is used, and nothing touches a device at import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muscjax import (
        backbones,
        cae,
        config,
        explain,
        extract,
        geometry,
        ipg,
        kernels,
        maps,
        metrics,
        ordering,
        pipeline,
        rscon,
        scoring,
        snamd,
        types,
    )
    from muscjax.backbones.descriptors import fpfh
    from muscjax.backbones.registry import load_image_backbone, load_point_backbone
    from muscjax.config import Config, from_toml, override, paper, released
    from muscjax.errors import InputError
    from muscjax.geometry import cloud_from_xyz
    from muscjax.pipeline import detect
    from muscjax.types import Cloud, Detection, Features, Frame, PatchScores, PointGroups

_MODULES = (
    "backbones",
    "cae",
    "config",
    "explain",
    "extract",
    "geometry",
    "ipg",
    "kernels",
    "maps",
    "metrics",
    "ordering",
    "pipeline",
    "rscon",
    "scoring",
    "snamd",
    "types",
)
_NAMES = {
    "muscjax.backbones.descriptors": ("fpfh",),
    "muscjax.backbones.registry": ("load_image_backbone", "load_point_backbone"),
    "muscjax.config": ("Config", "from_toml", "override", "paper", "released"),
    "muscjax.errors": ("InputError",),
    "muscjax.geometry": ("cloud_from_xyz",),
    "muscjax.pipeline": ("detect",),
    "muscjax.types": ("Cloud", "Detection", "Features", "Frame", "PatchScores", "PointGroups"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Cloud",
    "Config",
    "Detection",
    "Features",
    "Frame",
    "InputError",
    "PatchScores",
    "PointGroups",
    "backbones",
    "cae",
    "cloud_from_xyz",
    "config",
    "detect",
    "explain",
    "extract",
    "fpfh",
    "from_toml",
    "geometry",
    "ipg",
    "kernels",
    "load_image_backbone",
    "load_point_backbone",
    "maps",
    "metrics",
    "ordering",
    "override",
    "paper",
    "pipeline",
    "released",
    "rscon",
    "scoring",
    "snamd",
    "types",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"muscjax.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'muscjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
