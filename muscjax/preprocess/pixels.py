"""Which pixels of the image go with the object, and padding to a square."""

from __future__ import annotations

import numpy as np


def removed_pixels(valid: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixels to blacken in the image of a cleaned scan: (H, W) bool, (H, W) bool -> (H, W) bool.

    Args:
      valid: where the scan has depth.
      mask: where it has the object.

    What has depth and is not the object goes. A pixel without depth follows the nearest one with depth: the
    shadows of the ground go with the ground, the holes of the object stay. The original preprocessing keeps
    all of them, which leaves islands of the ground around the object.
    """
    from scipy.ndimage import distance_transform_edt

    if valid.all() or not valid.any():
        return valid & ~mask
    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return ~mask[tuple(np.asarray(nearest))]


def pad_to_square(hw: tuple[int, int], *, multiple: int = 100) -> tuple[int, int, int, int]:
    """Zeros to add at (top, bottom, left, right) for a centred square whose side is a multiple.

    A square stays as it is, whatever its side: rounding it up would only add a black frame, and no
    square category of MVTec 3D-AD has a side that is not a multiple of 100.
    """
    height, width = hw
    if height == width:
        return (0, 0, 0, 0)
    side = -(-max(hw) // multiple) * multiple
    top, left = (side - height) // 2, (side - width) // 2
    return (top, side - height - top, left, side - width - left)
