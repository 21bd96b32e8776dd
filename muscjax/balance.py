"""Both modalities on one scale before their maps are joined.

Distances between image tokens and between point descriptors have nothing in common but their unit norm; in
the released sum the image's are several times as large, and whether the points count at all hangs on the
descriptor. Here the unit of each is what its calm scans reach: how far the highest score on the object
exceeds the median score, of the scan that nine of ten exceed. A modality whose normal scores have long tails,
such as points at the edges of a part, thereby raises no more false alarms than the other; a unit of the
scores' usual spread would let it drown the other one. Up to nine of ten scans may be defective.

What exceeds the median is joined as independent evidence is, by the root of the sum of squares: a defect that
only one modality sees stands out as it does there, and is not drowned in the other's noise as in a sum.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import maps
from muscjax.types import Array, PointGroups

_CALM = 0.1  # share of the scans whose highest score lies below what counts as calm


class Units(NamedTuple):
    """What is usual on the object, of the image and of the points."""

    centre: tuple[np.float32, np.float32]  # the median score
    reach: tuple[np.float32, np.float32]  # of a calm scan's highest score above it; 1 where none is above


def units(
    image: np.ndarray,
    points: np.ndarray,
    groups: PointGroups,
    *,
    grid_hw: tuple[int, int],
    map_hw: tuple[int, int],
) -> Units:
    """The units of a set's patch scores, on the host.

    Of the image the patches that hold a group's centre count, of the points the groups that are valid.

    Args:
        image: (N, M) float32. points: (N, G) float32.
        groups: of the N samples; pixel and validity are read.
        grid_hw, map_hw: as in ``pipeline.score``.
    """
    held = held_patches(groups, grid_hw=grid_hw, map_hw=map_hw)
    sides = [_usual(image, held), _usual(points, np.asarray(groups.valid))]
    return Units((sides[0][0], sides[1][0]), (sides[0][1], sides[1][1]))


def held_patches(groups: PointGroups, *, grid_hw: tuple[int, int], map_hw: tuple[int, int]) -> np.ndarray:
    """(N, h·w) bool: the image patches that hold the centre of a valid group. Arguments as in ``units``."""
    valid = np.asarray(groups.valid)
    patch = np.asarray(maps.patch_of_pixel(jnp.asarray(groups.pixel), map_hw, grid_hw))
    scans = np.broadcast_to(np.arange(len(valid))[:, None], valid.shape)
    held = np.zeros((len(valid), grid_hw[0] * grid_hw[1]), bool)
    held[scans[valid], patch[valid]] = True
    return held


def _usual(scores: np.ndarray, counted: np.ndarray) -> tuple[np.float32, np.float32]:
    """Median of the scores that count, (N, M) each, and the reach of the calm scans.

    Two kinds of scans say nothing of calm ones and are left out: those stored twice, whose every score may
    be 0, and those of which next to nothing was scanned.
    """
    if not counted.any():
        return np.float32(0), np.float32(1)
    centre = np.median(scores[counted])
    held = counted.sum(axis=1)
    highest = np.where(counted, scores, -np.inf).max(axis=1)
    highest = highest[(highest > centre) & (2 * held >= np.median(held[held > 0]))]
    reach = np.quantile(highest, _CALM) - centre if len(highest) else 1
    return np.float32(centre), np.float32(reach)


def excess(map: Array, centre: Array | np.float32, reach: Array | np.float32) -> Array:
    """By how many reaches a map exceeds what is usual; 0 where it does not: (H, W) float32 to the same."""
    return jnp.maximum((map - centre) / reach, 0)


@jax.named_scope("balance.join")
def join(image: Array, points: Array, units: Units) -> Array:
    """The root of the sum of both maps' squared ``excess``: (H, W) float32 each to (H, W)."""
    sides = [
        excess(map, centre, reach)
        for map, centre, reach in zip((image, points), units.centre, units.reach, strict=True)
    ]
    return jnp.sqrt(sides[0] * sides[0] + sides[1] * sides[1])
