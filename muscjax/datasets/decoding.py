"""Bytes to arrays, never larger than a header may claim: images, NumPy files, TIFF. Threads may call it.

What a header claims is held against the limits here, and against the size of its file, before anything of
that size is made. Whatever is wrong with a file becomes one ``InputError`` line that names it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from muscjax import texts
from muscjax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

MOST_PIXELS = 160_000_000  # of an image or a map: the largest sensors have 151 million
MOST_POINTS = 1 << 26  # of a cloud or an XYZ map: beyond any sensor
MOST_BYTES = 1 << 31  # of a file that is read whole: as many points in double precision
# A byte of deflate or LZW stands for 1,400 at most, which may be eight pixels of one bit each.
_EXPANSION = 2048
_PER_BYTE = 8 * _EXPANSION
_FREE = 1 << 20  # bytes (pixels) that any file may claim
# What the layouts name; any other decoder of Pillow's could be reached by a name that lies, and the one of
# PostScript starts a program.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")

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
        reason = lines[0][:300] if lines else type(error).__name__
        if "imagecodecs" in reason:
            reason = f"its compression needs the package imagecodecs (pip install imagecodecs): {reason}"
        raise InputError(f"{path}: not a readable {kind}: {reason}") from None


def read_bytes(path: Path) -> bytes:
    """The file as it is; InputError where it cannot be read, is no file, or exceeds ``MOST_BYTES``."""
    return texts.read_bytes(path, most=MOST_BYTES)


def open_image(path: Path, content: bytes | None = None, *, kind: str = "image") -> PillowImage:
    """The image at ``path``, decoded; ``content`` is what was read from there already.

    Raises:
      InputError: unreadable, of another format than the layouts name, or a header that claims more than
        ``MOST_PIXELS`` pixels, or more than any such file could hold.
    """
    content = read_bytes(path) if content is None else content
    # From memory: Pillow asks a file for as many bytes as a PNG chunk claims to have, up to 4 GiB.
    with _opened(path, io.BytesIO(content), len(content), kind) as image:
        image.load()
        return image


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image, from its header alone; InputError as ``open_image``."""
    with readable(path, "image"):
        size = path.stat().st_size
    with _opened(path, path, size, "image") as image:
        return image.size


@contextlib.contextmanager
def _opened(path: Path, source: Path | BinaryIO, size: int, kind: str) -> Iterator[PillowImage]:
    """An image whose header is read and makes sense."""
    from PIL import Image, UnidentifiedImageError

    try:
        with readable(path, kind), Image.open(source, formats=_FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MOST_PIXELS:
                raise ValueError(f"its header claims {pixels} pixels, more than {MOST_PIXELS}")
            # one number stands for a whole WebP image of one colour
            if image.format != "WEBP" and pixels > _FREE + _PER_BYTE * size:
                raise ValueError(f"its header claims {pixels} pixels, its {size} bytes hold fewer")
            yield image
    except InputError as error:
        if isinstance(error.__context__, UnidentifiedImageError):  # its message would name the buffer
            raise InputError(f"{path}: not a readable {kind}: found no image of a known format") from None
        raise


def npy_header(file: BinaryIO, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, column order and type of a NumPy file of ``size`` bytes; the file is left where its data begin.

    Raises:
      ValueError: no such file, Python objects in it, or a header that claims more than the file holds.
    """
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"it has version {version[0]}.{version[1]}, expected 1.0 or 2.0")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, expected numbers")
    if any(not isinstance(n, int) or n < 0 for n in shape) or len(shape) > 32:
        raise ValueError("its header has no usable shape")
    claimed, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if claimed > held:
        raise ValueError(f"its header claims {claimed} bytes, it holds {held}")
    return shape, fortran, dtype


def decode_npy(content: bytes) -> np.ndarray:
    """The array of a NumPy file; ValueError as ``npy_header``. Nothing is ever unpickled."""
    file = io.BytesIO(content)
    shape, fortran, dtype = npy_header(file, len(content))
    values = np.frombuffer(content, dtype, count=math.prod(shape), offset=file.tell())
    return values.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))


def npy_shape(path: Path) -> tuple[int, ...]:
    """The shape of a NumPy file, from its header; InputError as ``npy_header``."""
    with readable(path, "NumPy file"), path.open("rb") as file:
        return npy_header(file, path.stat().st_size)[0]


def decode_tiff(content: bytes, check: Callable[[tuple[int, ...]], None]) -> np.ndarray:
    """The first series of a TIFF file.

    check: is given its shape before anything of that size is made, and raises what it does not accept.

    Raises:
      ValueError, and nearly anything else: no such file, more than ``MOST_PIXELS`` values in three channels,
        or a header that claims more than any such file could hold.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        check(series.shape)
        values, claimed = math.prod(series.shape), series.nbytes
        if values > 3 * MOST_PIXELS or claimed > _FREE + _EXPANSION * len(content):
            raise ValueError(f"its header claims {values} values, its {len(content)} bytes hold fewer")
        # one worker: the caller's threads are parallel over files
        return series.asarray(maxworkers=1)
