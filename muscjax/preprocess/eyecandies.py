"""The object of an Eyecandies scan (METHOD section 9): off the ground, the brightest cluster."""

from __future__ import annotations

import dataclasses

import numpy as np

from muscjax.preprocess.cluster import clusters
from muscjax.preprocess.ground import valid_points
from muscjax.preprocess.scan import Foreground

WITHOUT_GROUND = frozenset({"GummyBear", "LicoriceSandwich", "Marshmallow"})  # their ground is left in


@dataclasses.dataclass(frozen=True)
class EyecandiesConfig:
    """Numbers of the Eyecandies preprocessing, in the units of the map; ``version`` as in ``CleanConfig``."""

    ground: float = 0.99  # height from which y, scaled to [0, 1] over the scan, is the ground
    eps: float = 0.03
    min_points: int = 30
    version: int = 1


def find_foreground(
    xyz: np.ndarray,
    rgb: np.ndarray | None,
    *,
    ground: bool = True,
    config: EyecandiesConfig = EyecandiesConfig(),
) -> Foreground:
    """The object of a rendered organised scan.

    Args:
      xyz: (H, W, 3), 0 where there is no depth.
      rgb: (H, W, 3) uint8, the image at the map's own size, or None.
      ground: whether the scan shows a ground; ``WITHOUT_GROUND`` names the categories where the original
        preprocessing takes none away.
      config: thresholds.

    Returns:
      The mask (H, W) and a note. Points whose y, scaled to [0, 1] over the points of the scan, exceeds
      ``config.ground`` go; of the clusters of the rest the one with the highest mean of R, G and B stays,
      the first of equals. Without an image that is the one with the most points, and where every point is
      isolated all are kept; the note says so.
    """
    mask = valid_points(xyz)
    if ground and mask.any():
        y = xyz[..., 1].astype(np.float64)
        low, high = y[mask].min(), y[mask].max()
        mask &= y - low <= config.ground * (high - low)
    if not mask.any():
        return Foreground(mask, "no point is off the ground")
    label = clusters(xyz[mask], eps=config.eps, min_points=config.min_points)
    if (label < 0).all():
        return Foreground(mask, "brightest cluster skipped: the points off the ground are all isolated")
    sizes = np.bincount(label[label >= 0])
    if rgb is None:
        chosen, note = np.argmax(sizes), "no image to tell the brightest cluster by: the largest is kept"
    else:
        brightness = rgb[mask].sum(axis=-1, dtype=np.int64)
        chosen = np.argmax(np.bincount(label[label >= 0], brightness[label >= 0]) / sizes)
        note = ""
    mask[mask] = label == chosen
    return Foreground(mask, note)
