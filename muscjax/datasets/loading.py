"""One file to one array, checked: images, XYZ maps, masks. Safe to call from threads.

Whatever is wrong with a file becomes one ``InputError`` line that names it.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from muscjax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from muscjax.types import Frame

Units = Literal["m", "mm", "auto"]
FAR = 10.0  # a median distance above it is read as millimetres: no sensor works at 10 m, none at 10 mm
MOST_POINTS = 1 << 26  # beyond any sensor; a damaged header may claim gigabytes

# The decoders also log what they raise; without a handler that would go to stderr, in many lines
for _name in ("tifffile", "PIL"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


@contextlib.contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Whatever a decoder raises within becomes one line about ``path``.

    Decoders of damaged files raise nearly any type: OSError, SyntaxError, TypeError, struct.error, ...
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        if "imagecodecs" in reason:
            reason = f"its compression needs the package imagecodecs (pip install imagecodecs): {reason}"
        raise InputError(f"{path}: not a readable {kind}: {reason}") from None


def _open_image(path: Path, *, decode: bool) -> PillowImage:
    """The image at ``path``; the file is closed again. Only its header is read unless ``decode``."""
    from PIL import Image

    try:
        with readable(path, "image"), Image.open(path) as image:
            if decode:
                image.load()
            return image
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
    width, height = _open_image(path, decode=False).size
    return height, width


def load_image(path: Path) -> np.ndarray:
    """(h, w, 3) uint8 RGB. Grey is repeated, palettes are looked up, alpha is dropped, 16 bits become 8.

    Raises:
      InputError: missing, truncated or of floating point.
    """
    image = _open_image(path, decode=True)
    if image.mode == "F":
        raise InputError(f"{path}: found a floating-point image, expected 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError(f"{path}: found grey values {grey.min()}..{grey.max()}, expected 8 or 16 bits")
        grey = ((grey + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
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

    image = _open_image(path, decode=True)
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

    with readable(path, "XYZ map"):
        if path.suffix.lower() == ".npy":
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
        else:
            with tifffile.TiffFile(path) as file:
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


def read_bytes(path: Path) -> bytes:
    """The file as it is; InputError where it cannot be read."""
    with readable(path, "file"):
        return path.read_bytes()


def decode_xyz(content: bytes, path: Path, *, units: Units = "auto") -> np.ndarray:
    """``load_xyz`` of bytes that were read already; ``path`` names them and tells their format."""
    import tifffile

    check_units(units)
    with readable(path, "XYZ map"):
        if path.suffix.lower() == ".npy":
            stored = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            with tifffile.TiffFile(io.BytesIO(content)) as file:
                _check_shape(path, file.series[0].shape)
                # one worker: the caller's threads are parallel over files
                stored = file.series[0].asarray(maxworkers=1)
    return map_in_metres(stored, path, units=units)


def map_in_metres(stored: np.ndarray, path: Path, *, units: Units) -> np.ndarray:
    """``load_xyz`` of an array that was decoded already; ``path`` names it."""
    _check_shape(path, stored.shape)
    if stored.dtype.kind not in "fiu":
        raise InputError(f"{path}: found an XYZ map of type {stored.dtype}, expected real numbers")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite and is reported next
        xyz = stored.astype(np.float32)
    bad = np.count_nonzero(~np.isfinite(xyz).all(axis=-1))
    if bad:
        raise InputError(
            f"{path}: found NaN or infinite coordinates in {bad} pixels, expected 0 where there is no depth"
        )
    present = (xyz != 0).all(axis=-1)
    if not present.any():
        raise InputError(f"{path}: found no point, all coordinates are zero; expected an XYZ map with depth")
    return xyz * np.float32(0.001) if in_millimetres(xyz[present], units) else xyz


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
