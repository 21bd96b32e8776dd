"""A square around the object of each scan, of one size for the whole set.

A part that covers a sixth of the picture leaves five sixths of a network's patches to the background. Cut to
the part, the same network with as many patches sees it larger. One size for all scans, because
patches are compared between scans: what is zoomed differently looks different.

NumPy only, so that processes without JAX can do it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Extent = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right are not inside
Crop = tuple[int, int, int, int]  # top, left, height, width, as ``Frame.crop``

_WORTHWHILE = 0.95  # a window of nearly the whole side gains nothing


def extent(mask: np.ndarray) -> Extent | None:
    """The smallest upright rectangle around what is True: (H, W) bool; None where nothing is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def common_side(extents: Sequence[Extent | None], margin: float) -> int:
    """Side of a square that holds every one of the rectangles with ``margin`` to spare; 0 without any.

    The widest one decides. A scan without an object, None, has no say.
    """
    widest = max((max(e[1] - e[0], e[3] - e[2]) for e in extents if e is not None), default=0)
    return math.ceil(widest * (1 + margin))


def window(inside: Extent | None, side: int, hw: tuple[int, int]) -> Crop | None:
    """The square of that side around the middle of ``inside``, moved to lie within the picture.

    Args:
      inside: what it is to hold; None takes the middle of the picture.
      side: as ``common_side`` says.
      hw: of the picture.

    Returns:
      Top, left, height and width; None where the square is hardly smaller than the picture, or nothing.
    """
    if not 0 < side < _WORTHWHILE * min(hw):
        return None
    top, bottom, left, right = inside or (0, hw[0], 0, hw[1])
    corner = (
        min(max((first + last - side) // 2, 0), size - side)
        for first, last, size in zip((top, left), (bottom, right), hw, strict=True)
    )
    return (*corner, side, side)  # pyright: ignore[reportReturnType]
