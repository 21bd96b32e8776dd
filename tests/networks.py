"""The networks of the golden arrays, converted from their recorded state dictionaries."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from muscjax.backbones import registry
from weights_convert import convert


def state_dict(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key[3:]: np.ascontiguousarray(value) for key, value in arrays.items() if key.startswith("sd/")}


def golden_vit(arrays: dict[str, np.ndarray], folder: Path):
    """The recorded ViT as a backbone for images that are normalised already."""
    save_file(state_dict(arrays), folder / "vit.safetensors")
    convert(folder / "vit.safetensors", folder / "vit-flax.safetensors", family="dino", heads=3)
    backbone = registry.load_image_backbone(folder / "vit-flax.safetensors", image_size=112, taps=(3, 7, 11))
    spec = dataclasses.replace(backbone.spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return dataclasses.replace(backbone, spec=spec)


def golden_point_mae(arrays: dict[str, np.ndarray], folder: Path):
    save_file(state_dict(arrays), folder / "mae.safetensors")
    convert(folder / "mae.safetensors", folder / "mae-flax.safetensors", family="point_mae", heads=3)
    return registry.load_point_backbone(folder / "mae-flax.safetensors", taps=(3, 7, 11))
