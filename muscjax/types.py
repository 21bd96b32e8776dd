"""The data that flows between stages: frozen pytrees, shapes in the field comments.

Letters as in the paper and in every docstring of the package: ``N`` samples, ``S`` stages (tapped
backbone blocks), ``M`` 2D patches (an h·w grid), ``G`` 3D groups, ``K`` points in a group, ``P`` points
of a cloud, ``C`` channels, ``R`` reference samples, ``H, W`` the working size of maps, masks and XYZ.

A type is written for one sample. A batch is the same type whose leaves have a leading axis.
"""

from __future__ import annotations

import dataclasses
from typing import dataclass_transform

import jax
import numpy as np

from muscjax.camera import Camera as Camera
from muscjax.frame import Frame as Frame

Array = jax.Array


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def _pytree(cls):
    """A frozen dataclass that JAX traverses; a field is a leaf, ``None``, or said to be static."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    return jax.tree_util.register_dataclass(cls)


@_pytree
class Surface:
    """A cloud at the sensor's own resolution, for descriptors that want every point."""

    points_m: Array  # (Q, 3) float32, metres, camera frame; 0 where not valid
    valid: Array  # (Q,) bool
    pixel: Array  # (Q,) int32, flat pixel of the sensor grid, raster order
    row: Array  # (P,) int32, the surface point that each working point is


@_pytree
class Cloud:
    """The foreground of one scan at working size, in raster order, padded to a bucket of sizes."""

    points_m: Array  # (P, 3) float32, metres, camera frame; 0 where not valid
    points: Array  # (P, 3) float32, centroid at 0 and farthest point at distance 1; 0 where not valid
    valid: Array  # (P,) bool; valid points come first
    pixel: Array  # (P,) int32, flat pixel of the H·W working grid; 0 where not valid
    surface: Surface | None = None


@_pytree
class PointGroups:
    """Local groups of a cloud (section III-A): centres and the points around them."""

    indices: Array  # (G, K) int32, rows of the cloud; repeats are allowed
    centers: Array  # (G, 3) float32, normalised coordinates
    center_index: Array  # (G,) int32, row of the cloud
    curvature: Array  # (G,) float32, smallest eigenvalue share of the neighbourhood
    pixel: Array  # (G,) int32, flat working pixel of the centre
    valid: Array  # (G,) bool; False where the cloud had no further distinct point


@_pytree
class Features:
    """Pooled features of all samples, ready for mutual scoring; they may stay on the host."""

    image: Array | np.ndarray | None  # (S, N, M, C) float32
    points: Array | np.ndarray | None  # (S or 1, N, G, C) float32; one stage is used for every image stage
    # (image, points): S counts so many entries in a row for each tapped block, one per degree in LNAMD
    levels: tuple[int, int] = dataclasses.field(default=(1, 1), metadata={"static": True})


@_pytree
class PatchScores:
    """Stage means of the patch scores, and the feature of the most salient patch."""

    image: Array | None  # (N, M) float32
    points: Array | None  # (N, G) float32, 0 where the group is not valid
    salient: Array  # (N, D) float32, [2D | 3D] feature at the highest patch (group)


@_pytree
class Detection:
    """What a run says about each scan; field names follow anomalib's."""

    anomaly_map: Array  # (N, H, W) float32, higher is more anomalous
    pred_score: Array  # (N,) float32, after RsCon
    map_max: Array  # (N,) float32, the maximum of each map: the score before normalisation and RsCon
    patch_scores: PatchScores
    # None until `muscjax.decision.labelled`, or where it cannot decide
    pred_label: Array | np.ndarray | None = None  # (N,) bool
    pred_mask: Array | np.ndarray | None = None  # (N, H, W) bool, empty for scans called normal
