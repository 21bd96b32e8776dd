"""A weight-free image descriptor: what an image-only run uses where no network weights are at hand.

Circular Fourier HOG. Parts lie in any pose, so a histogram of gradient directions on a fixed grid tells poses
apart and not defects. Here the histogram around a place is a continuous signal of the angle, kept as Fourier
coefficients: fields a·exp(i·m·φ) of the gradient's direction φ and saturated magnitude a. Each field is
projected on circular harmonics of order k around every grid place. Turning the picture by α multiplies the
coefficient (m, k) by exp(i·(m + k)·α); so (m, -m) stays as it is, and so does the magnitude of every other.

Sources: Liu, Skibbe, Schmidt, Blein, Palme, Brox, Ronneberger, "Rotation-Invariant HOG Descriptors Using
Fourier Analysis in Polar and Spherical Coordinates", IJCV 106, 2014; Skibbe, Reisert, "Circular Fourier-HOG
Features for Rotation Invariant Object Detection in Biomedical Images", ISBI 2012, whose harmonics, complex
derivatives of a Gaussian, these are. Saturation, roots, colours and the floor are this module's own.
"""

from __future__ import annotations

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from muscjax.config import TextureConfig
from muscjax.types import Array

_REACH = 6  # standard deviations at which a harmonic of the orders used here has vanished
_DARK = 1.0  # sum of the three colours at which a colour counts half; noise of dark ground must not count
_SMALLEST_SLOPE = 1e-6  # brightness per standard deviation: below it a gradient has no direction


def describe(images: Array, *, config: TextureConfig) -> Array:
    """Rotation-invariant descriptors on a grid over each image; with ``config`` bound an ``ImageBackbone``.

    The grid's corners are the image's corner pixels, as ``maps.upsample_grid`` assumes. ``snamd.pool_grid``
    normalises every descriptor; its last channel is a constant, so that a patch without structure becomes
    that one direction and not the direction of its noise. ``config.gain`` sets how far apart descriptors are
    to SNAMD's weights exp(-distance); it cancels in the normalisation.

    Args:
      images: (B, H, W, 3) uint8, or floating point in [0, 1].
      config: all lengths in pixels of these images.

    Returns:
      (1, B, h·w, C) float32 with h = H / stride and w = W / stride, rounded, at least 1, in raster order;
      C = ``channels(config)``. Invariant to quarter turns up to rounding, to others up to sampling.
      For the shapes, brightness times s does what contrast divided by √s would do.
    """
    chex.assert_rank(images, 4)
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) * jnp.float32(1 / 255)
    return jax.vmap(functools.partial(_describe, config=config))(images.astype(jnp.float32))[None]


def channels(config: TextureConfig) -> int:
    """C: per window 1 + K + K·(2K + 2) invariants for orders up to K and 2 colours; and the floor."""
    order = config.orders
    return len(config.windows) * (1 + order + order * (2 * order + 2) + 2) + 1


def grid_shape(image_hw: tuple[int, int], config: TextureConfig) -> tuple[int, int]:
    """(h, w) of the descriptors of an image of that shape."""
    h, w = (max(1, round(side / config.stride)) for side in image_hw)
    return h, w


def _describe(image: Array, *, config: TextureConfig) -> Array:
    """(H, W, 3) float32 in [0, 1] to (h·w, C)."""
    height, width, _ = image.shape
    h, w = grid_shape((height, width), config)
    fields, colours = orientation_fields(jnp.mean(image, axis=-1), config), chromaticities(image)
    found = []
    for sigma in config.windows:
        values = jnp.stack(invariants(harmonics(fields, (h, w), sigma, config)))
        found.append(values * lax.rsqrt(jnp.abs(values) + jnp.float32(config.root)))
        rows, columns = _sampled(height, h, sigma, 0), _sampled(width, w, sigma, 0)
        found.append(jnp.float32(config.colour) * _separable(rows, colours, columns))
    found.append(jnp.full((1, h, w), config.floor, jnp.float32))
    values = jnp.concatenate(found) * jnp.float32(config.gain)
    return jnp.moveaxis(values, 0, -1).reshape(h * w, -1)


def chromaticities(image: Array) -> Array:
    """Red against green and blue against both, as shares of the light: (H, W, 3) to (2, H, W) float32."""
    red, green, blue = jnp.moveaxis(image, -1, 0)
    light = red + green + blue + jnp.float32(_DARK)
    return jnp.stack([red - green, blue - (red + green) * jnp.float32(0.5)]) / light[None]


def orientation_fields(gray: Array, config: TextureConfig) -> Array:
    """a·exp(i·m·φ) for m = 0..orders: (H, W) float32 to (orders + 1, H, W) complex64.

    φ and r are direction and magnitude of the gradient of √gray, Gaussian, times ``config.gradient``; a =
    r / (r + contrast). The root evens out bright and dark parts: light multiplies, it does not add.
    """
    root = jnp.sqrt(gray)
    smooth, slope = (
        [_sampled(side, side, config.gradient, n) for side in gray.shape] for n in (0, 1)
    )  # fmt: skip
    gx = _separable(smooth[0], root, slope[1])
    gy = _separable(slope[0], root, smooth[1])
    r = jnp.sqrt(gx * gx + gy * gy + jnp.float32(_SMALLEST_SLOPE**2))
    direction = lax.complex(gx / r, gy / r)
    powers = [lax.complex(r / (r + jnp.float32(config.contrast)), jnp.zeros_like(r))]
    for _ in range(config.orders):
        powers.append(powers[-1] * direction)
    return jnp.stack(powers)


def harmonics(
    fields: Array, grid_hw: tuple[int, int], sigma: float, config: TextureConfig
) -> tuple[Array, Array]:
    """Projections on the harmonics of order +k and -k, k = 0..orders, at every grid position.

    The harmonic of order k is (u + i·v)^k = r^k·exp(i·k·θ), of unit variance under a Gaussian window; u, v
    and r in its standard deviations. It is a sum of separable moments u^n·v^j, so a projection costs two
    products with narrow matrices.

    Args:
      fields: (F, H, W) complex64.

    Returns:
      Two arrays (F, orders + 1, h, w) complex64.
    """
    order = config.orders
    parts = jnp.stack([fields.real, fields.imag])
    rows, columns = (
        jnp.stack([_sampled(side, count, sigma, n) for n in range(order + 1)])
        for side, count in zip(fields.shape[1:], grid_hw, strict=True)
    )
    high = lax.Precision.HIGHEST
    across = jnp.einsum("pfyx,nwx->pfynw", parts, columns, precision=high)
    moments = jnp.einsum("mhy,pfynw->mnpfhw", rows, across, precision=high)
    plus, minus = [], []
    for k in range(order + 1):
        terms = [math.comb(k, j) / math.sqrt(2**k * math.factorial(k)) * moments[j, k - j]
                 for j in range(k + 1)]  # fmt: skip
        nothing = jnp.zeros_like(terms[0])
        real = sum((t * (1, 0, -1, 0)[j % 4] for j, t in enumerate(terms)), start=nothing)
        imaginary = sum((t * (0, 1, 0, -1)[j % 4] for j, t in enumerate(terms)), start=nothing)
        # Of the real part p and the imaginary part q of a field, each projected on real + i·imaginary.
        (pr, qr), (pi, qi) = real, imaginary
        plus.append(lax.complex(pr - qi, pi + qr))
        minus.append(lax.complex(pr + qi, qr - pi))
    return jnp.stack(plus, axis=1), jnp.stack(minus, axis=1)


def invariants(projected: tuple[Array, Array]) -> list[Array]:
    """What a rotation leaves alone in the projections of the fields m = 0..orders: real (h, w) each."""
    plus, minus = projected
    count = plus.shape[0]
    found = [plus[0, 0].real]
    found += [_magnitude(plus[0, k]) for k in range(1, count)]
    for m in range(1, count):
        found += [_magnitude(plus[m, k]) for k in range(count)]
        for k in range(1, count):
            found += [minus[m, k].real, minus[m, k].imag] if k == m else [_magnitude(minus[m, k])]
    return found


def _magnitude(z: Array) -> Array:
    return jnp.sqrt(z.real * z.real + z.imag * z.imag)


def _separable(rows: Array, image: Array, columns: Array) -> Array:
    return jnp.einsum("iy,...yx,jx->...ij", rows, image, columns, precision=lax.Precision.HIGHEST)


def _sampled(side: int, count: int, sigma: float, order: int) -> Array:
    return jnp.asarray(gaussian_moment(side, count, sigma, order))


@functools.lru_cache(maxsize=128)
def gaussian_moment(side: int, count: int, sigma: float, order: int) -> np.ndarray:
    """Moments u^order of a line of pixels in Gaussian windows at ``count`` places, as a matrix.

    The first moment is the derivative of the smoothed line, times σ.

    Places run evenly from the first pixel to the last; a single one is the middle. Beyond its ends the line
    is mirrored, the end pixels repeated.

    Returns:
      (count, side) float32, to be multiplied with the line.
    """
    places = np.linspace(0, side - 1, count) if count > 1 else np.array([(side - 1) / 2])
    reach = math.ceil(_REACH * sigma) + 1
    position = np.arange(-reach, side + reach)
    u = (position[None] - places[:, None]) / sigma
    weight = np.exp(-u * u / 2)
    weight *= u**order / weight.sum(axis=1, keepdims=True)
    period = position % (2 * side)
    matrix = np.zeros((count, side))
    np.add.at(matrix.T, np.where(period < side, period, 2 * side - 1 - period), weight.T)
    return matrix.astype(np.float32)
