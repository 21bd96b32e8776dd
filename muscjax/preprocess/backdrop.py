"""The object of a photograph that lies on a plain backdrop: what differs from the colour of the border.

A table, a conveyor or a light box shows one colour, brighter here and darker there, all along the border of
the picture. That colour is fitted there and looked for everywhere. A texture or a product that fills the
frame has no such border, and nothing is said about it.

NumPy and SciPy only, so that processes without JAX can do it.
"""

from __future__ import annotations

import numpy as np

VERSION = 2  # changes when the same picture comes out otherwise
NO_BACKDROP = "no plain backdrop along the border of the photograph"  # what is said where there is None

_BORDER = 0.02  # width of the border, a share of the shorter side: a part in the middle stays out of it
_THINNEST = 2  # pixels of that width: one row alone may be a camera's black edge
_PLAIN = 8.0  # grey levels within which a plain border stays; grain of a matt table does, a texture does not
_PLAIN_SHARE = 0.8  # of the border's pixels that must: a part may reach over the edge of the picture
_UNEVEN = 32.0  # grey levels that a lens darkens its corners by; a part beside the table differs by more
_CLOSE = 2.0  # grey levels to which a fit explains a median of backdrop: what it bends for a part it misses
_OBJECT = 10.0  # grey levels by which the object differs at least: above ``_PLAIN``, or its grain would too
_SPREADS = 5.0  # standard deviations of the border that noise hardly ever exceeds
_PER_MAD = 1.4826  # standard deviations of a normal distribution, in its median absolute deviations
_LEAST_SHARE = 0.0005  # of the picture: dust and hot pixels are smaller, debris that matters is not
_STIFF = 1e-3  # of the weight of the border's places: where they leave a bend open, there is none
_STEPS = 30  # of the fit, which moves by less than a grey level long before


def object_mask(rgb: np.ndarray) -> np.ndarray | None:
    """Which pixels show something else than the backdrop.

    Args:
      rgb: (H, W, 3) uint8.

    Returns:
      (H, W) bool, nowhere True where there is nothing but backdrop; None where the border is not of one
      colour, or the picture too small to have one.

    * The colour of the backdrop is a quadratic surface per channel, fitted robustly to medians along the
      border: light from one side leaves no object behind, nor does a lens that darkens the corners by the
      fourth power of the cosine, up to 30 % of a bright backdrop; one that takes 40 % does.
    * The border is plain where ``_PLAIN_SHARE`` of its pixels are within ``_PLAIN`` levels of it in all
      channels. Those of a camera's black edge (``_inward``) do not count.
    * The object differs in a channel by more than ``_OBJECT`` levels and more than ``_SPREADS`` standard
      deviations of the border. A shadow does so too. Before, a median of 3×3 pixels takes sensor noise away;
      afterwards, the black edge goes, and groups of adjacent pixels below ``_LEAST_SHARE`` of the picture.
    """
    from scipy.ndimage import label, median_filter

    hw = rgb.shape[:2]
    band = max(_THINNEST, round(_BORDER * min(hw)))
    if min(hw) <= 4 * band:
        return None
    border = np.ones(hw, bool)
    border[band:-band, band:-band] = False
    differs = np.zeros(hw, bool)
    plain = np.ones(np.count_nonzero(border), bool)
    for channel in range(3):
        smooth = median_filter(rgb[:, :, channel], size=3, mode="nearest")
        away = np.abs(smooth - _surface(smooth, band))
        along = away[border]
        plain &= along <= _PLAIN
        spread = _PER_MAD * np.median(along)
        differs |= away > max(_OBJECT, _SPREADS * spread)
    everything, differs = differs, _inward(differs)
    told = (everything == differs)[border]  # a black edge says nothing about the backdrop
    if np.count_nonzero(plain & told) < _PLAIN_SHARE * max(np.count_nonzero(told), 1):
        return None
    groups = np.empty(hw, np.int32)
    label(differs, structure=np.ones((3, 3), bool), output=groups)
    kept = np.bincount(groups.ravel()) >= _LEAST_SHARE * differs.size
    kept[0] = False  # the backdrop itself
    return kept[groups]


def _inward(differs: np.ndarray) -> np.ndarray:
    """(H, W) bool without what the outermost ``_THINNEST`` rows and columns alone show: a black edge.

    They keep what goes on in the pixel next to them, of an object that reaches over the border. An edge that
    touches such an object is told from it too, which groups of adjacent pixels would not.
    """
    inner = differs[_THINNEST:-_THINNEST, _THINNEST:-_THINNEST]
    return differs & np.pad(inner, _THINNEST, mode="edge")


def _surface(grey: np.ndarray, band: int) -> np.ndarray:
    """The backdrop under the whole picture: (H, W) uint8 -> (H, W) float32 grey levels.

    A plane first, because a part that covers a side of the border bends a quadratic surface; then that
    surface, through the places of the border that are near the plane, and the plane again where it explains
    more of the border. A part that covers two sides leaves the bend between the others open: none is taken.
    """
    height, width = grey.shape
    value, y, x = _cells(grey, band)
    design = np.stack([np.ones_like(x), y, x, y * y, y * x, x * x], axis=1)
    plane = np.pad(_robust(design[:, :3], value), (0, 3))
    near = np.abs(value - design @ plane) <= _UNEVEN
    fits = [_robust(design[near], value[near]), plane] if near.mean() > 0.5 else [plane]
    best = max(fits, key=lambda fit: np.count_nonzero(np.abs(value - design @ fit) <= _CLOSE))
    c, by_y, by_x, by_yy, by_yx, by_xx = best.astype(np.float32)
    y = _along(np.arange(height), height).astype(np.float32)[:, None]
    x = _along(np.arange(width), width).astype(np.float32)[None, :]
    return (c + y * (by_y + by_yy * y)) + x * (by_x + by_xx * x) + by_yx * y * x


def _cells(grey: np.ndarray, band: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Medians of the border in squares of side ``band``, and the rows and columns of their middles, in -1..1.

    Three float64 arrays of one length; what remains at the end of a side is left out.
    """
    height, width = grey.shape
    sides = ((grey[:band], 0), (grey[-band:], height - band), (grey[:, :band].T, 0), (grey[:, -band:].T, 0))
    values, rows, columns = [], [], []
    for place, (strip, first) in enumerate(sides):
        count = strip.shape[1] // band
        squares = strip[:, : count * band].reshape(band, count, band)
        values.append(np.median(squares, axis=(0, 2)))
        along = np.arange(count) * band + (band - 1) / 2
        across = np.full(count, first + (band - 1) / 2)
        if place < 2:
            rows.append(_along(across, height))
            columns.append(_along(along, width))
        else:
            rows.append(_along(along, height))
            columns.append(_along(across + (width - band) * (place == 3), width))
    return np.concatenate(values), np.concatenate(rows), np.concatenate(columns)


def _along(position: np.ndarray, side: int) -> np.ndarray:
    """Pixel numbers 0 .. side - 1 as -1 .. 1."""
    return 2 * position / (side - 1) - 1


def _robust(design: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Coefficients (k,) of the least absolute deviation, (n, k) and (n,) float64; squares below one level.

    Least squares with the weights of the last step, from the median on. ``_STIFF`` draws the coefficients
    beyond the plane's three towards zero.
    """
    count = design.shape[1]
    found = np.zeros(count)
    found[0] = np.median(value)
    stiff = np.diag(_STIFF * len(value) * (np.arange(count) >= 3))
    for _ in range(_STEPS):
        weighted = design / np.maximum(np.abs(value - design @ found), 1.0)[:, None]
        found = np.linalg.solve(weighted.T @ design + stiff, weighted.T @ value)
    return found
