"""One file to one array, checked: images, XYZ maps, masks. Safe to call from threads.

Whatever is wrong with a file becomes one ``InputError`` line that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from muscjax.datasets.decoding import (
    MOST_POINTS,
    decode_npy,
    decode_tiff,
    image_size,
    npy_shape,
    open_image,
    read_bytes,
    readable,
)
from muscjax.errors import InputError

if TYPE_CHECKING:
    from muscjax.types import Frame

Result = TypeVar("Result")
Units = Literal["m", "mm", "auto"]
FARTHEST = 1e9  # no coordinate in any unit; the squares of smaller ones are float32 numbers
FAR = 10.0  # a median distance above it is read as millimetres: no sensor works at 10 m, none at 10 mm


def _read(read: Callable[[Path], Result], path: Path) -> Result:
    """``read(path)``; an XYZ map that is taken for an image is told from other damage."""
    try:
        return read(path)
    except InputError as error:
        # Pillow has no mode for three channels of float32, which is what an XYZ map is
        if path.suffix.lower() in (".tif", ".tiff") and _is_xyz(path):
            raise InputError(f"{error}; it is an XYZ map: {_AS_POINTS}") from None
        raise


_AS_POINTS = "put it in a folder named xyz, or ask for --modality points"


def _is_xyz(path: Path) -> bool:
    try:
        xyz_hw(path)
    except InputError:
        return False
    return True


def image_hw(path: Path) -> tuple[int, int]:
    """(height, width) in pixels, from the header alone.

    Raises:
      InputError: no image can be recognised.
    """
    width, height = _read(image_size, path)
    return height, width


def load_image(path: Path) -> np.ndarray:
    """(h, w, 3) uint8 RGB. Grey is repeated, palettes are looked up, alpha is dropped, 16 bits become 8.

    Raises:
      InputError: missing, truncated or of floating point.
    """
    image = _read(open_image, path)
    if image.mode == "F":
        raise InputError(f"{path}: found a floating-point image, expected 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError(f"{path}: found grey values {grey.min()}..{grey.max()}, expected 8 or 16 bits")
        grey = ((grey + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    with readable(path, "image"):  # of a colour space that has no way to RGB
        if image.mode == "P":
            image = image.convert("RGBA")  # a palette with alpha cannot go to RGB directly
        return np.asarray(image.convert("RGB"))


def load_mask(path: Path, frame: Frame | None = None) -> np.ndarray:
    """Ground truth: any non-zero pixel is defect.

    Args:
      path: an image of one or more channels; with a palette or as labels, the stored numbers count.
      frame: None gives the mask as stored; otherwise it is padded, cropped and resized as the scan was, by
        Pillow's bilinear (antialiased) of 0 and 255, and is defect where the result exceeds one half.

    Returns:
      bool, (h, w) as stored or (H, W) of ``frame.working_hw``.

    Raises:
      InputError: unreadable, or of another size than the scan.
    """
    from PIL import Image

    image = _read(open_image, path)
    stored = np.asarray(image)
    colours = 1 if image.mode in ("LA", "La", "PA") else 3  # the rest is alpha
    mask = stored != 0 if stored.ndim == 2 else (stored[..., :colours] != 0).any(axis=-1)
    if frame is None:
        return mask
    if mask.shape != frame.source_hw:
        raise InputError(f"{path}: found a mask of {_by(mask.shape)} pixels, expected {_by(frame.source_hw)}")
    top, bottom, left, right = frame.pad
    mask = np.pad(mask, ((top, bottom), (left, right)))
    if frame.crop is not None:
        top, left, height, width = frame.crop
        mask = mask[top : top + height, left : left + width]
    height, width = frame.working_hw
    grey = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR)) > 127


def xyz_hw(path: Path) -> tuple[int, int]:
    """(height, width) of an XYZ map, from the header alone.

    Raises:
      InputError: no XYZ map of shape (h, w, 3) can be recognised.
    """
    import tifffile

    if path.suffix.lower() == ".npy":
        shape = npy_shape(path)
    else:
        with readable(path, "XYZ map"), tifffile.TiffFile(path) as file:
            shape = file.series[0].shape
    _check_shape(path, shape)
    return shape[0], shape[1]


def load_xyz(path: Path, *, units: Units = "auto") -> np.ndarray:
    """An organised XYZ map, (h, w, 3) float32 in metres, 0 where there is no depth.

    Args:
      path: TIFF or ``.npy`` of shape (h, w, 3), any real type.
      units: of the file. "auto": millimetres where the median distance of the points from the origin exceeds
        10, metres otherwise.

    Raises:
      InputError: unreadable, another shape, NaN or infinite coordinates, no point at all, or a compression
        that needs another package.
    """
    return decode_xyz(read_bytes(path), path, units=units)


def decode_xyz(content: bytes, path: Path, *, units: Units = "auto") -> np.ndarray:
    """``load_xyz`` of bytes that were read already; ``path`` names them and tells their format."""
    check_units(units)
    with readable(path, "XYZ map"):
        if path.suffix.lower() == ".npy":
            stored = decode_npy(content)
        else:
            stored = decode_tiff(content, lambda shape: _check_shape(path, shape))
    return map_in_metres(stored, path, units=units)


def map_in_metres(stored: np.ndarray, path: Path, *, units: Units) -> np.ndarray:
    """``load_xyz`` of an array that was decoded already; ``path`` names it."""
    _check_shape(path, stored.shape)
    if stored.dtype.kind not in "fiu":
        raise InputError(f"{path}: found an XYZ map of type {stored.dtype}, expected real numbers")
    check_coordinates(stored, path, "pixels")
    xyz = stored.astype(np.float32)
    present = (xyz != 0).all(axis=-1)
    if not present.any():
        raise InputError(f"{path}: found no point, all coordinates are zero; expected an XYZ map with depth")
    return xyz * np.float32(0.001) if in_millimetres(xyz[present], units) else xyz


def check_coordinates(stored: np.ndarray, path: Path, what: str) -> None:
    """InputError where any of (..., 3) coordinates is no number or beyond ``FARTHEST``."""
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        bad = np.count_nonzero(~((stored < FARTHEST) & (stored > -FARTHEST)).all(axis=-1))
    if bad:
        kind = (
            f"coordinates beyond {FARTHEST:g}" if np.isfinite(stored).all() else "NaN or infinite coordinates"
        )
        raise InputError(f"{path}: found {kind} in {bad} {what}, expected 0 where there is no depth")


def check_units(units: str) -> None:
    """Nothing, or InputError where it is none of ``Units``."""
    if units not in ("m", "mm", "auto"):
        raise InputError(f"units: found {units!r}, expected m, mm or auto")


def in_millimetres(points: np.ndarray, units: Units) -> bool:
    """Are these points, (P, 3) and at least one, in millimetres? "auto" judges by their median distance."""
    if units != "auto":
        return units == "mm"
    distance = np.sqrt(np.square(points.astype(np.float64)).sum(axis=-1))
    return bool(np.median(distance) > FAR)


def _check_shape(path: Path, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise InputError(f"{path}: found an XYZ map of shape {tuple(shape)}, expected (height, width, 3)")
    if shape[0] * shape[1] > MOST_POINTS:
        raise InputError(
            f"{path}: found an XYZ map of {_by(shape[:2])} points, expected at most {MOST_POINTS}"
        )


def _by(hw: tuple[int, ...]) -> str:
    return "×".join(map(str, hw))
