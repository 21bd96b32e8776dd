"""The XYZ map of a scan, whatever files it is made of: organised maps, clouds with a camera, depth images.

Everything here ends in an organised map (h, w, 3) float32 in metres, 0 where there is no depth. Measured
points never have a coordinate that is exactly 0 (``camera.NOT_ZERO``), as that would mean no depth; maps
that were stored as such are left as they are.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np

from muscjax.camera import not_zero, organise, organise_from_above
from muscjax.datasets.cameras import decode_camera, mapping, rigid
from muscjax.datasets.decoding import MOST_POINTS, decode_npy, npy_shape, open_image, read_bytes, readable
from muscjax.datasets.loading import (
    FARTHEST,
    Units,
    check_coordinates,
    check_units,
    decode_xyz,
    image_hw,
    in_millimetres,
    map_in_metres,
    xyz_hw,
)
from muscjax.datasets.ply import decode_ply
from muscjax.datasets.tree import Scan
from muscjax.errors import InputError, shown

EYECANDIES_FOCAL_LENGTH = 711.11  # pixels, the same for every image; centre at half the size


def load_scan_xyz(scan: Scan, *, units: Units = "auto") -> np.ndarray:
    """The organised XYZ map of a scan, (h, w, 3) float32 in metres, 0 where there is no depth.

    * TIFF or ``.npy`` of shape (h, w, 3): ``loading.load_xyz``, in the frame of the file.
    * ``.ply`` or ``.npy`` of shape (P, 3) with ``scan.camera``: ``camera.organise``, in the camera's frame.
      Vertices that are all zero or all NaN are no points.
    * The same without a camera and without an image: ``camera.organise_from_above``.
    * A depth image with ``scan.depth_info`` and ``scan.pose``: ``eyecandies_xyz``.

    Raises:
      InputError: a file that cannot be used, a cloud that needs a camera, or no point at all.
    """
    check_units(units)
    path = _xyz_path(scan)
    held = {file: read_bytes(file) for file in scan.xyz_files}
    content = held[path]
    if scan.depth_info is not None:
        return _from_depth(held, scan, units)
    suffix = path.suffix.lower()
    if suffix == ".ply":
        with readable(path, "PLY file"):
            stored = decode_ply(content)
        return _from_points(stored, held, scan, units)
    if suffix == ".npy":
        with readable(path, "XYZ map"):
            stored = decode_npy(content)
        if stored.ndim == 2 and stored.shape[1] == 3 and stored.dtype.kind in "fiu":
            return _from_points(stored, held, scan, units)
        return map_in_metres(stored, path, units=units)
    return decode_xyz(content, path, units=units)


def scan_xyz_hw(scan: Scan) -> tuple[int, int]:
    """(height, width) of ``load_scan_xyz``: from the header alone, but for clouds without a grid.

    Raises:
      InputError: no XYZ map, or one that cannot be recognised.
    """
    path = _xyz_path(scan)
    if scan.depth_info is not None:
        return image_hw(path)
    if path.suffix.lower() == ".ply" or is_unorganised(path):
        with readable(path, "point cloud"):
            state = tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in scan.xyz_files)
        return _organised_hw(scan, state)
    return xyz_hw(path)


@functools.lru_cache(maxsize=1 << 14)
def _organised_hw(scan: Scan, state: tuple) -> tuple[int, int]:
    """Remembered, as a run asks for it several times; ``state`` of the files makes it forget."""
    height, width = load_scan_xyz(scan).shape[:2]
    return height, width


def _xyz_path(scan: Scan) -> Path:
    if scan.xyz is None:
        raise InputError(f"{scan.image or scan.name}: found no XYZ map to pair with")
    return scan.xyz


def is_unorganised(path: Path) -> bool:
    """Does this ``.npy`` hold (P, 3) points without a grid? From its header; False where it is unreadable."""
    if path.suffix.lower() != ".npy":
        return False
    try:
        shape = npy_shape(path)
    except InputError:
        return False
    return len(shape) == 2 and shape[1] == 3


def _from_points(stored: np.ndarray, held: dict[Path, bytes], scan: Scan, units: Units) -> np.ndarray:
    """The organised map of points (P, 3) as stored."""
    path = scan.xyz
    if len(stored) > MOST_POINTS:
        raise InputError(f"{path}: found {len(stored)} points, expected at most {MOST_POINTS}")
    assert path is not None
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        points = stored.astype(np.float64)
    points = points[~(np.isnan(points).all(axis=1) | (points == 0).all(axis=1))]
    check_coordinates(points, path, "points")
    if len(points) == 0:
        raise InputError(f"{path}: found no point, expected a cloud")
    if scan.camera is None:
        if scan.image is not None:
            raise InputError(
                f"{path}: found a cloud without a grid, and no camera to pair it with {scan.image.name}, "
                "expected a file camera.json beside it"
            )
        scale = 1e-3 if in_millimetres(points, units) else 1.0
        return organise_from_above(points * scale)
    xyz = organise(points, decode_camera(held[scan.camera], scan.camera))
    present = (xyz != 0).all(axis=-1)
    if not present.any():
        raise InputError(f"{path}: found no point in the view of {scan.camera}, expected its camera")
    if not in_millimetres(xyz[present], units):
        return xyz
    return np.where(present[..., None], not_zero(xyz * np.float32(1e-3)), np.float32(0))


def _from_depth(held: dict[Path, bytes], scan: Scan, units: Units) -> np.ndarray:
    path, info, pose_path = scan.xyz, scan.depth_info, scan.pose
    assert path is not None
    assert info is not None
    if pose_path is None:
        raise InputError(f"{path}: found no pose of its camera, expected a _pose.txt beside it")
    stored = np.asarray(open_image(path, held[path], kind="depth image"))
    if stored.ndim != 2 or stored.dtype.kind not in "iu" or stored.dtype.itemsize < 2:
        raise InputError(f"{path}: found {stored.dtype} of shape {stored.shape}, expected grey of 16 bits")
    low, high = _bounds(held[info], info)
    with readable(pose_path, "camera pose"):
        pose = np.loadtxt(io.BytesIO(held[pose_path]), ndmin=2)
    xyz = eyecandies_xyz(stored, low=low, high=high, pose=rigid(pose, pose_path, "pose"))
    if not xyz.any():
        raise InputError(f"{path}: found no point, expected an image with depth")
    return xyz * np.float32(0.001) if units == "mm" else xyz


def eyecandies_xyz(stored: np.ndarray, *, low: float, high: float, pose: np.ndarray) -> np.ndarray:
    """The XYZ map of an Eyecandies depth image (METHOD section 9), (h, w, 3) float32 metres.

    Args:
      stored: (h, w) of 16 bits; the depth is stored / 65535 · (high - low) + low, along the optical axis.
      low, high: metres.
      pose: (4, 4); the points turned by its inverse have the axes in which the data set's authors, and the
        released code, give them (y down to the ground). Their origin stays at the camera, as descriptors
        turn normals towards it; the released code shifts it by the pose as well, which nothing depends on.
    """
    height, width = stored.shape
    depth = stored.astype(np.float64) / 65535.0 * (high - low) + low
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    x = (columns - width / 2) / EYECANDIES_FOCAL_LENGTH
    y = (rows - height / 2) / EYECANDIES_FOCAL_LENGTH
    rays = np.stack([x, y, np.ones_like(x)], axis=-1)
    points = rays * depth[..., None] @ pose[:3, :3]  # each row times the inverse's transpose
    points = not_zero(points.astype(np.float32))
    return np.where((depth > 0)[..., None], points, np.float32(0))


def _bounds(content: bytes, path: Path) -> tuple[float, float]:
    """(min, max) in metres of ``normalization`` in an ``info_depth.yaml``."""
    found = mapping(content, path).get("normalization")
    values = [found.get(name) if isinstance(found, dict) else None for name in ("min", "max")]
    low, high = (v if isinstance(v, (int, float)) and not isinstance(v, bool) else np.nan for v in values)
    if not (abs(low) < FARTHEST and abs(high) < FARTHEST and low < high):
        raise InputError(
            f"{path}: normalization: found min {shown(values[0])} and max {shown(values[1])}, expected "
            "numbers, min < max"
        )
    return float(low), float(high)
