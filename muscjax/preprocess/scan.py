"""The object of an MVTec 3D-AD scan: off the ground plane, largest cluster (METHOD section 0)."""

from __future__ import annotations

import dataclasses

import numpy as np

from muscjax.preprocess.cluster import largest_cluster
from muscjax.preprocess.ground import MVTEC3D, CleanConfig, plane, valid_points


@dataclasses.dataclass(frozen=True)
class Foreground:
    """What ``find_foreground`` says about one scan."""

    mask: np.ndarray  # (H, W) bool, pixels of the object
    note: str  # "" or why a step was skipped, one line


def find_foreground(xyz: np.ndarray, *, config: CleanConfig = MVTEC3D) -> Foreground:
    """The object of a raw organised scan: points off the ground plane, largest cluster.

    Args:
      xyz: (H, W, 3) metres, 0 where there is no depth.
      config: distances in metres; the defaults are those of the MVTec 3D-AD preprocessing.

    Returns:
      The mask (H, W) and a note. A border without a plane means that the scan is clean already, or no
      scan of something on a ground: then every valid point is foreground and the note says why. Where
      the points off the plane form no cluster at all they are kept as they are.
    """
    valid = valid_points(xyz)
    equation, reason = plane(xyz, config=config)
    if equation is None:
        return Foreground(valid, f"plane removal skipped: {reason}")
    normal = equation[:3].astype(np.float32)
    mask = valid & (np.abs(xyz @ normal + np.float32(equation[3])) >= config.plane_m)
    if not mask.any():
        return Foreground(mask, f"no point is more than {1000 * config.plane_m:g} mm off the ground plane")
    member = largest_cluster(xyz[mask], eps=config.eps_m, min_points=config.min_points)
    if not member.any():
        return Foreground(mask, "largest cluster skipped: the points off the ground plane are all isolated")
    mask[mask] = member
    return Foreground(mask, "")


def foreground(xyz: np.ndarray, *, config: CleanConfig = MVTEC3D) -> np.ndarray:
    """The mask of ``find_foreground``: (H, W, 3) metres -> (H, W) bool."""
    return find_foreground(xyz, config=config).mask
