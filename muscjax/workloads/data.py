"""Inputs of the workloads, made in NumPy: features with neighbours, organised scans, groups, images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from muscjax.errors import InputError

if TYPE_CHECKING:
    from muscjax.types import Cloud, PointGroups

_MATERIALS = 24
_NOISE = 0.3  # of a feature, beside its unit norm: nearest patches lie about 0.4 apart
_DEFECTIVE = 0.2  # share of the samples


def features(n: int, patches: int, channels: int, *, seed: int = 0) -> np.ndarray:
    """(N, M, C) float32 of unit norm with neighbours across the samples."""
    rng = np.random.default_rng(seed)
    materials = rng.standard_normal((_MATERIALS, channels), dtype=np.float32)
    place = np.linspace(0, _MATERIALS - 1, patches)
    below = np.minimum(place.astype(int), _MATERIALS - 2)
    share = (place - below)[:, None].astype(np.float32)
    base = _unit((1 - share) * materials[below] + share * materials[below + 1])
    out = np.empty((n, patches, channels), np.float32)
    for i in range(n):
        noise = rng.standard_normal((patches, channels), dtype=np.float32)
        sample = np.roll(base, int(rng.integers(-2, 3)), axis=0) + noise * (_NOISE / math.sqrt(channels))
        if rng.random() < _DEFECTIVE:
            start, size = int(rng.integers(patches)), max(1, patches // 50)
            sample[start : start + size] = noise[start : start + size] / math.sqrt(channels)
        out[i] = _unit(sample)
    return out


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def disc(side: int, count: int) -> np.ndarray:
    """(side, side) bool: the ``count`` pixels nearest to the centre."""
    axis = np.arange(side) - (side - 1) / 2
    distance = (axis[:, None] ** 2 + 1.1 * axis[None] ** 2).ravel()
    mask = np.zeros(side * side, bool)
    mask[np.argsort(distance, kind="stable")[:count]] = True
    return mask.reshape(side, side)


def organised_scan(count: int, side: int, *, seed: int = 0) -> np.ndarray:
    """(side, side, 3) float32 metres with exactly ``count`` present points; the others are 0.

    A dome 0.4 m from the camera with ridges on one half and a tenth of a millimetre of noise.
    """
    if count > side * side:
        raise InputError(f"{count} points: expected at most {side}·{side}")
    rng = np.random.default_rng(seed)
    axis = (np.arange(side) - (side - 1) / 2 + 0.25) / side  # never exactly 0, which means missing
    v, u = np.meshgrid(axis, axis, indexing="ij")
    depth = 0.4 - 0.03 * np.sqrt(np.maximum(0, 1 - 2 * (u * u + v * v)))
    depth += 0.003 * np.maximum(0, np.sin(90 * u + rng.random())) * (v > 0.05 * rng.standard_normal())
    depth += 1e-4 * rng.standard_normal(depth.shape)
    xyz = np.stack([u * depth / 2, v * depth / 2, depth], axis=-1).astype(np.float32)
    return np.where(disc(side, count)[..., None], xyz, np.float32(0))


def cloud(count: int, side: int, *, seed: int = 0, padded: bool = True) -> Cloud:
    """An ``organised_scan`` as a ``Cloud`` of ``count`` valid points, padded to its bucket or not."""
    from muscjax.geometry import cloud_from_xyz

    return cloud_from_xyz(organised_scan(count, side, seed=seed), size=None if padded else count)


def nearest_groups(scan: Cloud, groups: int, group_size: int, *, seed: int = 0) -> PointGroups:
    """Groups of the nearest points around random centres; a third of them count as curved."""
    from scipy.spatial import KDTree

    from muscjax.types import PointGroups

    rng = np.random.default_rng(seed)
    points = np.asarray(scan.points)[np.asarray(scan.valid)]
    chosen = np.sort(rng.choice(len(points), groups, replace=False))
    _, index = KDTree(points).query(points[chosen], k=group_size)
    curvature = np.where(rng.random(groups) < 1 / 3, 0.02, 0.001)
    given: Any = {
        "indices": np.asarray(index, np.int32).reshape(groups, group_size),
        "centers": points[chosen],
        "center_index": chosen.astype(np.int32),
        "curvature": curvature.astype(np.float32),
        "pixel": np.asarray(scan.pixel)[chosen],
        "valid": np.ones(groups, bool),
    }
    return PointGroups(**given)


def images(n: int, side: int, *, seed: int = 0) -> np.ndarray:
    """(N, side, side, 3) uint8: one coarse pattern with noise, some with a bright square."""
    rng = np.random.default_rng(seed)
    cells = -(-side // 8)
    pattern = rng.integers(60, 180, (cells, cells, 3), np.uint8).repeat(8, 0).repeat(8, 1)[:side, :side]
    out = np.empty((n, side, side, 3), np.uint8)
    for i in range(n):
        out[i] = pattern + rng.integers(0, 24, pattern.shape, np.uint8)
        if rng.random() < _DEFECTIVE:
            y, x = rng.integers(0, max(1, side - side // 8), 2)
            out[i, y : y + side // 8, x : x + side // 8] = 230
    return out
