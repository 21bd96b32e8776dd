"""Heat on top of a picture: a colour table made from a few anchors, and the blend. Pure NumPy.

The table's lightness rises steadily (OKLab, B. Ottosson 2020), so hotter looks brighter on any screen and to
readers who do not tell red from green. The picture below is made paler and darker, so that the hottest colour
is brighter than the brightest part and a dark part still shows through.
"""

from __future__ import annotations

import functools

import numpy as np

# Lightness, chroma, hue in degrees: violet, crimson, orange, yellow, almost white.
_ANCHORS = (
    (0.34, 0.16, 300.0),
    (0.50, 0.20, 368.0),
    (0.66, 0.20, 402.0),
    (0.81, 0.17, 436.0),
    (0.96, 0.10, 466.0),
)
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)


@functools.cache
def heat_table() -> np.ndarray:
    """(256, 3) uint8 sRGB, from the coldest to the hottest colour."""
    at = np.linspace(0.0, 1.0, len(_ANCHORS))
    lightness, chroma, hue = (
        np.interp(np.linspace(0.0, 1.0, 256), at, column) for column in zip(*_ANCHORS, strict=True)
    )
    angle = np.deg2rad(hue)
    a, b = chroma * np.cos(angle), chroma * np.sin(angle)
    # OKLab to linear sRGB.
    l_ = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    m_ = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s_ = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * l_ - 3.3077115913 * m_ + 0.2309699292 * s_,
            -1.2684380046 * l_ + 2.6097574011 * m_ - 0.3413193965 * s_,
            -0.0041960863 * l_ - 0.7034186147 * m_ + 1.7076147010 * s_,
        ],
        axis=-1,
    )
    linear = np.clip(linear, 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table = np.round(encoded * 255.0).astype(np.uint8)
    table.flags.writeable = False
    return table


def heat(values: np.ndarray, *, limits: tuple[float, float]) -> np.ndarray:
    """Scores of any shape to 0...1 float32: 0 at or below ``limits[0]``, 1 at or above ``limits[1]``.

    Equal limits give 0 everywhere: a set in which nothing differs has nothing to show.
    """
    low, high = limits
    if not high > low:
        return np.zeros(np.shape(values), np.float32)
    return np.clip((np.asarray(values, np.float64) - low) / (high - low), 0.0, 1.0).astype(np.float32)


def overlay(image: np.ndarray, anomaly_map: np.ndarray, *, limits: tuple[float, float]) -> np.ndarray:
    """The picture with its heat: (H, W, 3) uint8.

    image: (H, W, 3) or (H, W) uint8. anomaly_map: (H, W). limits: the scores of no heat and of full heat, the
    same for a whole set (`heat_limits`), so that colours can be compared between scans. Raises ValueError for
    a picture that is not uint8 or not of the map's size.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.shape not in (anomaly_map.shape, (*anomaly_map.shape, 3)):
        raise ValueError(f"picture {image.shape} {image.dtype}, expected uint8 of size {anomaly_map.shape}")
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    level = heat(anomaly_map, limits=limits)
    grey = image.astype(np.float32) @ _LUMA
    pale = (0.6 * image + 0.4 * grey[..., None]) / 255.0
    # Lifted shadows and lowered lights: both ends of the table stay visible on it.
    below = 255.0 * (0.06 + 0.70 * pale**0.85)
    alpha = (0.92 * level**0.6 * np.minimum(1.0, level / 0.2))[..., None]
    hot = heat_table()[np.round(level * 255).astype(np.uint8)].astype(np.float32)
    return np.round(below + alpha * (hot - below)).clip(0, 255).astype(np.uint8)


def heat_limits(maps: np.ndarray | list[np.ndarray]) -> tuple[float, float]:
    """Scores of no heat and of full heat for a set of maps.

    No heat up to the 90th percentile of all pixels; full heat at the 99.9th, so that one extreme pixel
    does not turn every other scan cold. Both are lower for maps that are mostly exactly 0 (background): only
    the pixels above the set's minimum count.
    """
    values = np.concatenate([np.asarray(m, np.float32).ravel() for m in maps])
    values = values[values > values.min()]
    if values.size == 0:
        return 0.0, 0.0
    low, high = np.quantile(values, [0.9, 0.999])
    return float(low), float(high)


def depth_picture(xyz: np.ndarray) -> np.ndarray:
    """A picture for a scan without one: (H, W) uint8, lit from the upper left, background nearly black.

    xyz: (H, W, 3) organised points; a point whose three coordinates are 0 is background.
    """
    xyz = np.asarray(xyz, np.float64)
    seen = (xyz != 0).any(-1) & np.isfinite(xyz).all(-1)
    if not seen.any():
        return np.full(seen.shape, 16, np.uint8)
    z = np.where(seen, xyz[..., 2], np.median(xyz[..., 2][seen]))
    down, right = np.gradient(z)
    # Slopes in units of the usual one: the light is the same for a scan in metres and one in millimetres.
    slope = (down + right) / (np.median(np.abs(down + right)[seen]) + 1e-12)
    low, high = np.quantile(z[seen], [0.01, 0.99])
    nearness = np.clip((high - z) / (high - low + 1e-12), 0.0, 1.0)
    light = 90.0 + 85.0 * nearness + 40.0 * np.tanh(slope / 6.0)
    return np.where(seen, light.clip(0, 255), 16.0).round().astype(np.uint8)
