"""Clouds, farthest points and nearest neighbours.

Everything that takes ``jax.Array`` is pure and written for one cloud; batch it with ``jax.vmap`` or
``jax.lax.map``. ``cloud_from_xyz`` and its helpers run on the host in NumPy.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from muscjax.camera import Camera, in_camera, pixel_of
from muscjax.errors import InputError
from muscjax.grids import resample_index, resample_nearest
from muscjax.neighbours import nearest
from muscjax.types import Cloud, Surface

__all__ = [
    "bucket_size",
    "cloud_from_xyz",
    "farthest_points",
    "foreground_of",
    "nearest",
    "normalise",
    "project",
    "resample_index",
    "resample_nearest",
]

_ORIGIN_RADIUS_SQ = 1e-3  # of the CUDA operator that the released code calls


def bucket_size(count: int, *, minimum: int = 256) -> int:
    """The padded size of a cloud: four steps per octave (4096, 5120, 6144, 7168, 8192, ...).

    A run whose clouds differ in size compiles one program per bucket. Padding costs at most 25 %.

    >>> [bucket_size(n) for n in (0, 257, 7100, 8193)]
    [256, 320, 7168, 10240]
    """
    if count <= minimum:
        return minimum
    step = max(1, (1 << ((count - 1).bit_length() - 1)) // 4)
    return -(-count // step) * step


def foreground_of(xyz_m: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """(H, W) bool: all three raw coordinates differ from 0 (METHOD section 0), and the mask where given."""
    present = (xyz_m != 0).all(axis=-1)
    return present if mask is None else present & mask.astype(bool)


def normalise(points: np.ndarray) -> np.ndarray:
    """(P, 3) to centroid 0 and farthest point at distance 1, float32; identical points all go to 0."""
    if len(points) == 0:
        return np.zeros((0, 3), np.float32)
    offsets = points.astype(np.float64) - points.astype(np.float64).mean(axis=0)
    radius = np.sqrt((offsets**2).sum(axis=1).max())
    # Below the rounding of the coordinates themselves the radius is noise, not a scale.
    if radius <= np.finfo(np.float32).eps * np.abs(points).max():
        return np.zeros(points.shape, np.float32)
    return (offsets / radius).astype(np.float32)


def cloud_from_xyz(
    xyz_m: np.ndarray,
    *,
    foreground: np.ndarray | None = None,
    size: int | None = None,
    sensor_xyz_m: np.ndarray | None = None,
    sensor_foreground: np.ndarray | None = None,
    sensor_size: int | None = None,
) -> Cloud:
    """The cloud of one organised scan, in raster order, padded (host side, NumPy leaves).

    Args:
      xyz_m: (H, W, 3) float, metres, camera frame, at working size; missing points are 0.
      foreground: (H, W) bool, the object; None: every present point.
      size: rows of the padded cloud; None: ``bucket_size`` of the foreground.
      sensor_xyz_m: (h, w, 3), the grid that ``xyz_m`` is the nearest resampling of. When given, the cloud
        carries a ``Surface``.
      sensor_foreground: (h, w) bool, likewise.
      sensor_size: rows of the padded surface; None: ``bucket_size``.

    Returns:
      A ``Cloud``; without foreground it has no valid point.

    Raises:
      InputError: a shape that does not fit, a coordinate that is not finite, a size that is too small, or a
        working point that the sensor's foreground lacks.
    """
    points_m, pixel = _present_points("xyz_m", xyz_m, foreground)
    count = len(points_m)
    size = bucket_size(count) if size is None else size
    if count > size:
        raise InputError(f"size: found {size}, expected at least the {count} foreground points")
    surface = None
    if sensor_xyz_m is not None:
        hw = xyz_m.shape[0], xyz_m.shape[1]
        surface = _surface(sensor_xyz_m, sensor_foreground, sensor_size, pixel=pixel, hw=hw, size=size)
    return Cloud(
        points_m=_pad(points_m, size),
        points=_pad(normalise(points_m), size),
        valid=_first(count, size),
        pixel=_pad(pixel, size),
        surface=surface,
    )


def _surface(
    xyz_m: np.ndarray,
    foreground: np.ndarray | None,
    padded: int | None,
    *,
    pixel: np.ndarray,
    hw: tuple[int, int],
    size: int,
) -> Surface:
    """The sensor grid's foreground, and the row in it of each working point (``pixel`` of an ``hw`` grid)."""
    points_m, sensor_pixel = _present_points("sensor_xyz_m", xyz_m, foreground)
    count = len(points_m)
    padded = bucket_size(count) if padded is None else padded
    if count > padded:
        raise InputError(f"sensor_size: found {padded}, expected at least the {count} foreground points")
    height, width = xyz_m.shape[:2]
    rows, columns = np.divmod(pixel, hw[1])
    source = resample_index(height, hw[0])[rows] * width + resample_index(width, hw[1])[columns]
    row = np.searchsorted(sensor_pixel, source).astype(np.int32)
    lost = np.count_nonzero(sensor_pixel[np.minimum(row, count - 1)] != source) if count else len(source)
    if lost:
        raise InputError(f"sensor_xyz_m: found no foreground at {lost} of the {len(source)} working points")
    return Surface(
        points_m=_pad(points_m, padded),
        valid=_first(count, padded),
        pixel=_pad(sensor_pixel, padded),
        row=_pad(row, size),
    )


def _present_points(name: str, xyz_m: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Foreground points (P, 3) float32 and their flat pixels (P,) int32, in raster order."""
    if xyz_m.ndim != 3 or xyz_m.shape[2] != 3:
        raise InputError(f"{name}: found shape {xyz_m.shape}, expected (H, W, 3)")
    if mask is not None and mask.shape != xyz_m.shape[:2]:
        raise InputError(f"{name}: found a foreground of shape {mask.shape}, expected {xyz_m.shape[:2]}")
    pixel = np.flatnonzero(foreground_of(xyz_m, mask))
    points = xyz_m.reshape(-1, 3)[pixel].astype(np.float32)
    bad = np.count_nonzero(~np.isfinite(points).all(axis=1))
    if bad:
        raise InputError(f"{name}: found {bad} foreground points that are not finite, expected finite metres")
    return points, pixel.astype(np.int32)


def _first(count: int, size: int) -> Any:  # Any: host arrays stand where types say jax.Array
    return np.arange(size) < count


def _pad(rows: np.ndarray, size: int) -> Any:
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


def project(points: jax.Array, camera: Camera) -> tuple[jax.Array, jax.Array]:
    """The pixel in which a camera sees each point of an unorganised cloud (Eq. 10).

    Args:
      points: (P, 3) float32, in the cloud's frame (``camera.extrinsic`` leads to the camera's).
      camera: static; its own size is the image's.

    Returns:
      pixel (P,) int32, flat, and seen (P,) bool: False, and pixel 0, behind the camera and outside of the
      image. Several points may have one pixel: ``camera.organise`` keeps the nearest.
    """
    chex.assert_shape(points, (None, 3))
    return pixel_of(in_camera(jnp.asarray(points), camera, jnp), camera, jnp)


@jax.named_scope("geometry.farthest_points")
def farthest_points(
    points: jax.Array, valid: jax.Array, count: int, *, skip_origin: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Farthest point sampling: each pick is farthest from those before it (section III-A).

    Starts at the first valid row; the first index wins among ties.

    Args:
      points: (P, 3) float32.
      valid: (P,) bool.
      count: G, static.
      skip_origin: never select a point with |p|² ≤ 1e-3 after the first, as the CUDA operator behind the
        released code does; off in the paper.

    Returns:
      index (G,) int32, and distinct (G,) bool: False where no further point at a positive distance exists;
      such slots repeat the first index.
    """
    chex.assert_shape(points, (None, 3))
    points, valid = jnp.asarray(points), jnp.asarray(valid)
    first = jnp.argmax(valid).astype(jnp.int32)
    allowed = valid
    if skip_origin:
        allowed = valid & (jnp.sum(points * points, axis=1) > jnp.float32(_ORIGIN_RADIUS_SQ))
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    row = jnp.arange(points.shape[0], dtype=jnp.int32)

    def step(carry, _):
        nearest_sq, last = carry
        dx, dy, dz = x - x[last], y - y[last], z - z[last]
        nearest_sq = jnp.minimum(nearest_sq, dx * dx + dy * dy + dz * dz)
        # Two plain reductions vectorise; argmax does not (twelve times slower on a CPU).
        farthest_sq = jnp.max(nearest_sq)
        pick = jnp.min(jnp.where(nearest_sq == farthest_sq, row, row.shape[0]))
        pick = jnp.where(farthest_sq > 0, pick, first)
        return (nearest_sq, pick), (pick, farthest_sq > 0)

    start = jnp.where(allowed, jnp.float32(jnp.inf), jnp.float32(-1.0))
    _, (picks, further) = lax.scan(step, (start, first), None, length=count - 1)
    index = jnp.concatenate([first[None], picks])
    distinct = jnp.concatenate([jnp.any(valid)[None], further])
    return index, distinct
