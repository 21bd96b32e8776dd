"""One scan from disk to working size: cleaned, padded, resized, and the frame that undoes it.

Image, XYZ and mask go through one geometry. The source of a frame is the image (its mask has the same
size); an XYZ map may be smaller or larger as long as its aspect ratio is the image's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from muscjax.datasets.images import Images
from muscjax.datasets.loading import (
    Units,
    decode_xyz,
    image_hw,
    load_image,
    load_mask,
    load_xyz,
    read_bytes,
    xyz_hw,
)
from muscjax.datasets.tree import Scan
from muscjax.errors import InputError
from muscjax.preprocess import cached_foreground, pad_to_square, removed_pixels, valid_points

if TYPE_CHECKING:
    from muscjax.config import Config
    from muscjax.types import Cloud, Frame

Kind = Literal["image", "points", "both"]  # what a run uses, once "auto" is settled
Fit = Literal["auto", "pad", "stretch"]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One scan at working size."""

    image: np.ndarray | None  # (s, s, 3) uint8
    cloud: Cloud | None  # NumPy leaves
    frame: Frame  # working_hw is the size of maps, masks and the cloud's grid
    mask: np.ndarray | None  # (H, W) bool; all False for a good scan, None where the truth is unknown
    foreground: np.ndarray | None  # (H, W) bool, pixels of the cloud
    notes: tuple[str, ...] = ()  # what was skipped, one line each


@dataclasses.dataclass(frozen=True)
class _Clean:
    """An XYZ map in metres, and which pixels of it are the object and which were cut away."""

    xyz: np.ndarray  # (h, w, 3) float32, 0 outside of the foreground
    foreground: np.ndarray  # (h, w) bool
    removed: np.ndarray  # (h, w) bool: the ground plane, outliers, and what lies in their shadow
    note: str


def source_hw(scan: Scan) -> tuple[int, int]:
    """The scan's own (height, width): the image's, else the mask's, else the XYZ map's; headers only."""
    for path in (scan.image, scan.mask):
        if path is not None:
            try:
                return image_hw(path)
            except InputError:
                if (
                    scan.xyz is None
                ):  # else a run that uses the image will say so, and one of points can go on
                    raise
    if scan.xyz is None:
        raise InputError(f"{scan.name}: found neither an image nor an XYZ map")
    return xyz_hw(scan.xyz)


def frame_of(scan: Scan, map_size: int, *, fit: Fit = "auto") -> Frame:
    """How ``scan`` comes to ``map_size``, from headers alone.

    ``fit`` "pad" centres it in a square of zeros (``preprocess.pad_to_square``), as the MVTec 3D-AD
    preprocessing does; "stretch" changes the aspect ratio, as the released code does with 2D data sets;
    "auto" pads where there is an XYZ map.
    """
    from muscjax.types import Frame

    hw = source_hw(scan)
    pad = fit == "pad" or (fit == "auto" and scan.xyz is not None)
    return Frame(
        source_hw=hw,
        working_hw=(map_size, map_size),
        pad=pad_to_square(hw) if pad else (0, 0, 0, 0),
        crop=None,
    )


def working_sizes(
    scans: Iterable[Scan], config: Config, *, modality: Kind, fit: Fit = "auto"
) -> tuple[int, int]:
    """(image side, map side) that all ``scans`` can have; headers of the XYZ maps only.

    The map side is ``map_size`` or ``image_size``, but never above the side of the smallest XYZ map: points
    are not duplicated.
    """
    image_size = _image_size(config)
    size = config.input.map_size or image_size
    if modality != "image":
        for scan in scans:
            hw = xyz_hw(_xyz_path(scan))
            size = min(size, _padded_xyz(frame_of(scan, size, fit=fit), hw, scan)[0])
    return image_size, size


def _image_size(config: Config) -> int:
    from muscjax.config import DEFAULT_IMAGE_SIZE

    return config.input.image_size or DEFAULT_IMAGE_SIZE


def prepare(
    scan: Scan,
    config: Config,
    *,
    modality: Kind,
    clean: bool = True,
    units: Units = "auto",
    cache_dir: Path | None = None,
    map_size: int | None = None,
    fit: Fit = "auto",
) -> Prepared:
    """Load one scan and bring it to working size (METHOD section 0).

    * Points: ground plane and outliers are removed (``clean``), the map is padded to a square and resized
      by nearest, source index floor(i · in / out).
    * Image: with points, pixels of the plane and of outliers become zero (``preprocess.removed_pixels``);
      alone, the image is left as it is. Then padded, and resized by Pillow's bicubic (antialiased) to 8 bits.
    * Mask: ``load_mask``.

    Args:
      scan: what to load.
      config: ``input`` holds the sizes; ``fpfh.full_resolution`` asks for the cloud's ``Surface``.
      modality: what to load; what is not asked for is not opened.
      clean: False takes every point with depth for the object.
      units: of the XYZ file.
      cache_dir: root of the cache of foreground masks; None means ``preprocess.cache_root()``.
      map_size: side of the maps; None means ``working_sizes`` of this scan alone.
      fit: see ``frame_of``.

    Raises:
      InputError: a file that cannot be used, a missing image or XYZ map, or sizes that do not pair.
    """
    if map_size is None:
        map_size = working_sizes([scan], config, modality=modality, fit=fit)[1]
    frame = frame_of(scan, map_size, fit=fit)
    points = None if modality == "image" else _load_clean(scan, clean=clean, units=units, cache_dir=cache_dir)
    image = None
    if modality != "points":
        image = _image(scan, frame, _image_size(config), removed=None if points is None else points.removed)
    cloud = foreground = None
    if points is not None:
        cloud, foreground = _cloud(scan, frame, points, config)
    return Prepared(
        image=image,
        cloud=cloud,
        frame=frame,
        mask=load_truth(scan, frame),
        foreground=foreground,
        notes=(points.note,) if points is not None and points.note else (),
    )


def prepare_image(
    scan: Scan,
    config: Config,
    *,
    modality: Literal["image", "both"],
    clean: bool = True,
    units: Units = "auto",
    cache_dir: Path | None = None,
    fit: Fit = "auto",
) -> np.ndarray:
    """``prepare(...).image`` alone, (s, s, 3) uint8; of the XYZ map only what the image needs is computed."""
    frame = frame_of(scan, _image_size(config), fit=fit)
    removed = None
    if modality == "both" and clean:
        removed = _load_clean(scan, clean=clean, units=units, cache_dir=cache_dir).removed
    return _image(scan, frame, _image_size(config), removed=removed)


def lazy_images(
    scans: Sequence[Scan],
    config: Config,
    *,
    modality: Literal["image", "both"],
    clean: bool = True,
    units: Units = "auto",
    cache_dir: Path | None = None,
    fit: Fit = "auto",
    workers: int = 2,
) -> Images:
    """All images of ``scans`` as ``Images``, each made by ``prepare_image`` when it is asked for."""

    def load(scan: Scan) -> np.ndarray:
        return prepare_image(
            scan, config, modality=modality, clean=clean, units=units, cache_dir=cache_dir, fit=fit
        )

    return Images(load, scans, workers=workers)


def load_truth(scan: Scan, frame: Frame | None = None) -> np.ndarray | None:
    """Ground truth at working size, or at the scan's own size where ``frame`` is None.

    (H, W) bool; all False for a good scan without a mask, None where nothing is known.
    """
    if scan.mask is not None:
        return load_mask(scan.mask, frame)
    if scan.label == 0:
        return np.zeros(source_hw(scan) if frame is None else frame.working_hw, bool)
    return None


def _xyz_path(scan: Scan) -> Path:
    if scan.xyz is None:
        raise InputError(f"{scan.image or scan.name}: found no XYZ map to pair with")
    return scan.xyz


def _load_clean(scan: Scan, *, clean: bool, units: Units, cache_dir: Path | None) -> _Clean:
    path = _xyz_path(scan)
    if not clean:
        xyz = load_xyz(path, units=units)
        valid = valid_points(xyz)
        return _Clean(np.where(valid[..., None], xyz, np.float32(0)), valid, np.zeros_like(valid), "")
    content = read_bytes(path)
    xyz = decode_xyz(content, path, units=units)
    found = cached_foreground(content, lambda: xyz, units=units, cache_dir=cache_dir)
    note = f"{path}: {found.note}" if found.note else ""
    removed = removed_pixels(valid_points(xyz), found.mask)
    return _Clean(np.where(found.mask[..., None], xyz, np.float32(0)), found.mask, removed, note)


def _image(scan: Scan, frame: Frame, size: int, *, removed: np.ndarray | None) -> np.ndarray:
    """(size, size, 3) uint8; ``removed`` (h, w), at the XYZ map's own size, becomes zero first."""
    from PIL import Image

    if scan.image is None:
        raise InputError(f"{scan.xyz or scan.name}: found no image to pair with")
    rgb = load_image(scan.image)
    if removed is not None and removed.any():
        _padded_xyz(frame, removed.shape, scan)
        rows = _nearest_sample(frame.source_hw[0], removed.shape[0])
        columns = _nearest_sample(frame.source_hw[1], removed.shape[1])
        rgb = np.where(removed[rows[:, None], columns, None], np.uint8(0), rgb)
    if any(frame.pad):
        top, bottom, left, right = frame.pad
        rgb = np.pad(rgb, ((top, bottom), (left, right), (0, 0)))
    return np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.BICUBIC))


def _nearest_sample(pixels: int, samples: int) -> np.ndarray:
    """For each pixel of a line the nearest of ``samples`` taken at floor(i · pixels / samples)."""
    return np.minimum((2 * np.arange(pixels) * samples + pixels) // (2 * pixels), samples - 1)


def _cloud(scan: Scan, frame: Frame, points: _Clean, config: Config) -> tuple[Cloud, np.ndarray]:
    """The cloud, and its pixels as a mask (H, W)."""
    from muscjax.geometry import cloud_from_xyz, resample_nearest

    _, pad = _padded_xyz(frame, points.foreground.shape, scan)
    sensor = np.pad(points.xyz, (*pad, (0, 0)))
    present = np.pad(points.foreground, pad)
    foreground = resample_nearest(present, frame.working_hw)
    cloud = cloud_from_xyz(
        resample_nearest(sensor, frame.working_hw),
        foreground=foreground,
        sensor_xyz_m=sensor if config.fpfh.full_resolution else None,
        sensor_foreground=present if config.fpfh.full_resolution else None,
    )
    return cloud, foreground


def _padded_xyz(
    frame: Frame, hw: tuple[int, ...], scan: Scan
) -> tuple[int, tuple[tuple[int, int], tuple[int, int]]]:
    """Smaller side of the padded XYZ map, and its padding: the frame's, in the XYZ map's own pixels.

    Raises:
      InputError: the aspect ratio of the map is not the source's, to within a pixel.
    """
    height, width = frame.source_hw
    if abs(hw[0] * width - hw[1] * height) > max(height, width):
        raise InputError(
            f"{scan.xyz}: found {hw[0]}×{hw[1]} points, expected the aspect ratio of {height}×{width}"
        )
    top, bottom, left, right = frame.pad
    rows = _scaled_pad(top, bottom, height, hw[0])
    columns = _scaled_pad(left, right, width, hw[1])
    if any(frame.pad):
        # rounding may leave the two sides a pixel apart
        side = max(sum(rows) + hw[0], sum(columns) + hw[1])
        rows = (rows[0], side - rows[0] - hw[0])
        columns = (columns[0], side - columns[0] - hw[1])
    return min(sum(rows) + hw[0], sum(columns) + hw[1]), (rows, columns)


def _scaled_pad(before: int, after: int, source: int, target: int) -> tuple[int, int]:
    return round(before * target / source), round(after * target / source)
