"""Building blocks of surfaces: noise windows, soft steps, box blurs and a stroke font (NumPy, float32).

Lengths are millimetres. Noise comes from periodic tiles that are computed once per process and cut at a
random place, so a scan pays for an index, not for a Fourier transform.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np

Field = np.ndarray  # (n, n) float32


@lru_cache(maxsize=64)
def _tile(side: int, cell: float, scale: float, beta: float) -> Field:
    """A periodic (side, side) noise tile of mean 0 and standard deviation 1."""
    frequency = np.fft.fftfreq(side, cell)
    squared = frequency[:, None] ** 2 + np.fft.rfftfreq(side, cell)[None, :] ** 2
    gain = (1.0 + squared * scale**2) ** (-beta / 2)
    gain[0, 0] = 0.0
    # A fixed key: the tile is material; what varies between scans is the window that is cut from it.
    white = np.random.default_rng(20251110).standard_normal((side, side))
    tile = np.fft.irfft2(np.fft.rfft2(white) * gain, s=(side, side))
    return (tile / tile.std()).astype(np.float32)


def noise(shape: tuple[int, int], cell: float, rng, *, scale: float, beta: float = 4.0) -> Field:
    """Isotropic noise of mean 0 and standard deviation about 1, cut from a random place of a tile.

    ``cell`` is the grid's pitch and ``scale`` the wavelength (same unit) from which the spectrum falls as
    wavelength^beta: patches of about that size.
    """
    side = 1 << (max(shape) - 1).bit_length()
    tile = _tile(side, round(cell, 6), scale, beta)
    row, column = (int(i) for i in rng.integers(0, side, 2))
    rows = (row + np.arange(shape[0])) % side
    columns = (column + np.arange(shape[1])) % side
    return tile[rows][:, columns]


def smoothstep(low: float, high: float, x: Field) -> Field:
    """0 at ``low``, 1 at ``high`` (which may be the smaller), with zero slope at both."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def box_blur(field: Field, radius: int, passes: int = 1) -> Field:
    """Mean over (2·radius + 1)² cells by running sums; the border value is repeated."""
    if radius < 1:
        return field
    width = 2 * radius + 1
    for _ in range(passes):
        for axis in (0, 1):
            pad = [(0, 0), (0, 0)]
            pad[axis] = (radius + 1, radius)
            # Running sums in float64: float32 loses a bit per row.
            total = np.cumsum(np.pad(field, pad, mode="edge"), axis=axis, dtype=np.float64)
            upper = total[width:] if axis == 0 else total[:, width:]
            lower = total[:-width] if axis == 0 else total[:, :-width]
            field = ((upper - lower) / width).astype(np.float32)
    return field


def plateau(inside: Field, height: float, edge: float) -> Field:
    """A flat top of the given height with a rounded edge; ``inside`` is the distance into the outline."""
    t = np.clip(1.0 - inside / edge, 0.0, 1.0)
    return np.where(inside > 0, height - edge * (1.0 - np.sqrt(1.0 - t * t)), 0.0).astype(np.float32)


def smooth_max(a: Field, b: Field, fillet: float) -> Field:
    """Union of two height fields with a fillet between them."""
    h = np.maximum(fillet - np.abs(a - b), 0.0) / fillet
    return np.maximum(a, b) + h * h * (fillet / 4)


def mix(a: Field, b, alpha: Field) -> Field:
    """``a`` towards ``b`` by ``alpha``; colours (n, n, 3) take an (n, n) alpha."""
    if a.ndim == 3:
        return a + alpha[..., None] * (np.asarray(b, np.float32) - a)
    return a + alpha * (b - a)


def paint(shape: tuple[int, int], colour: tuple[float, float, float]) -> np.ndarray:
    """A uniform (n, n, 3) linear albedo."""
    return np.broadcast_to(np.asarray(colour, np.float32), (*shape, 3)).copy()


# Strokes between the nodes of a 3×3 lattice (0 1 2 / 3 4 5 / 6 7 8); a word is one pen path.
_GLYPHS = {
    "A": "63158 35", "B": "60153 6853", "C": "2068", "D": "01576 06", "E": "2068 35", "F": "206 35",
    "G": "206854", "H": "06 28 35", "I": "17", "K": "06 248 34", "L": "068", "M": "60428", "N": "6082",
    "O": "02860", "P": "60253", "R": "60253 48", "S": "203586", "T": "02 17", "U": "0682", "V": "072",
    "X": "08 26", "Z": "0268", "0": "02860 26", "1": "317", "2": "025368", "3": "0286 35", "4": "035 28",
    "5": "203586", "6": "206853", "7": "027", "8": "02860 35", "9": "530286", "-": "35", "/": "26",
    ">": "0736 157", " ": "",
}  # fmt: skip
DIGITS = "0123456789"  # what random codes are made of: no chance word
_PIXELS = 32  # raster lines per glyph height


def text_width(text: str) -> float:
    """Width of a text in glyph heights."""
    return 0.85 * len(text)


@lru_cache(maxsize=256)
def _text_distance(text: str) -> Field:
    """Distance to the nearest stroke in glyph heights; rows run downwards, half a height of margin."""
    columns = round((text_width(text) + 1.0) * _PIXELS)
    y, x = np.meshgrid(
        (np.arange(2 * _PIXELS, dtype=np.float32) + 0.5) / _PIXELS - 0.5,
        (np.arange(columns, dtype=np.float32) + 0.5) / _PIXELS - 0.5,
        indexing="ij",
    )
    distance = np.full(x.shape, 1.0, np.float32)
    for place, letter in enumerate(text):
        for path in _GLYPHS[letter].split():
            nodes = [(0.12 + 0.3 * (int(n) % 3) + 0.85 * place, 0.5 * (int(n) // 3)) for n in path]
            for (x0, y0), (x1, y1) in pairwise(nodes):
                along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
                along = np.clip(along, 0.0, 1.0)
                gap = np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
                np.minimum(distance, gap, out=distance)
    return distance


def text_distance(text: str, along: Field, down: Field, height: float) -> Field:
    """Distance (mm) to the strokes of a text centred on the origin of (``along``, ``down``).

    Beyond half a glyph height around the text the distance is ``height``.
    """
    raster = _text_distance(text)
    column = np.floor((along / height + text_width(text) / 2 + 0.5) * _PIXELS).astype(np.int32)
    row = np.floor((down / height + 1.0) * _PIXELS).astype(np.int32)
    known = (column >= 0) & (column < raster.shape[1]) & (row >= 0) & (row < raster.shape[0])
    flat = np.where(known, row * raster.shape[1] + column, 0)
    return np.where(known, raster.ravel()[flat] * height, height).astype(np.float32)
