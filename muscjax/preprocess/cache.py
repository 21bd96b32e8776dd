"""Entries on disk, named by the content that they come from: small, checked, and bounded in number.

An entry holds arrays and a note. It appears whole or not at all, carries a checksum for its header and for
each array, and one that is damaged or gone counts as missing: it is computed again. Masks are bits; numbers
are stored byte by byte, column by column, which deflates better, and everything is deflated.

Measured on MVTec 3D-AD's cable_gland (source files 2.1 MB per scan): image and cloud take 78 kB at 224×224
and 0.28 MB at 518×518 with the sensor's 400×400 points; an uncut photograph takes half of its pixels'
bytes, 71 kB at 224×224. The default limit of 5 GB so holds 60,000 scans of the first kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from muscjax.errors import InputError
from muscjax.files import TEMPORARY, cache_root, replaced

DEFAULT_LIMIT = "5GB"
KEPT_S = 3600.0  # an entry used within the last hour stays, so that no run loses what it is working with
_MAGIC = b"muscjax1"
_START = len(_MAGIC) + 32 + 4  # magic, checksum of the header, its length
_SUFFIX = ".scan"
_MOST = 1 << 31  # of any number in a header


class Damaged(Exception):
    """An entry that is gone or does not carry its own checksum."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry that was found: its header is read, its arrays are read when they are asked for."""

    place: Path | bytes  # a file, or the entry itself where it could not be written
    note: str
    layout: Mapping[str, Mapping[str, Any]]  # by array: dtype, shape, start, size, sha256

    def __contains__(self, name: str) -> bool:
        return name in self.layout

    def array(self, name: str) -> np.ndarray:
        """The array of that name; ``Damaged`` where it cannot be had, KeyError where there never was one."""
        about = self.layout[name]
        body = _bytes(self.place, about["start"], about["size"])
        if hashlib.sha256(body).hexdigest() != about["sha256"]:
            raise Damaged(name)
        dtype, shape = np.dtype(about["dtype"]), tuple(about["shape"])
        size = _stored_bytes(dtype, shape)
        unpacker = zlib.decompressobj()
        try:
            # told its size, zlib does not grow its buffer step by step, nor beyond it
            content = unpacker.decompress(body, max(1, size))
        except zlib.error:
            raise Damaged(name) from None
        if len(content) != size or not unpacker.eof:
            raise Damaged(name)
        return _decoded(content, dtype, shape)


def folder(root: Path | None = None) -> Path:
    """Where entries lie below ``root``; None means ``files.cache_root()``."""
    return (root or cache_root()) / "scans"


def limit() -> int:
    """``$MUSCJAX_CACHE_LIMIT`` in bytes, such as 20GB, or 5 GB; 0 means that nothing is written.

    Raises:
      InputError: it is no number of bytes.
    """
    from muscjax.config import parse_bytes

    return parse_bytes(os.environ.get("MUSCJAX_CACHE_LIMIT") or DEFAULT_LIMIT, name="MUSCJAX_CACHE_LIMIT")


def pack(arrays: Mapping[str, np.ndarray], note: str = "") -> bytes:
    """An entry of bool, integer or float arrays of at least one axis."""
    layout: dict[str, dict[str, Any]] = {}
    bodies, start = [], 0
    for name, array in arrays.items():
        # level 1 reads as fast as any and writes ten times faster than the default for 1-20 % more bytes
        body = zlib.compress(_encoded(array), 1)
        layout[name] = {
            "dtype": array.dtype.str,
            "shape": array.shape,
            "start": start,
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        bodies.append(body)
        start += len(body)
    header = json.dumps({"note": note, "arrays": layout}).encode()
    said = len(header).to_bytes(4, "little")
    return b"".join([_MAGIC, hashlib.sha256(said + header).digest(), said, header, *bodies])


def unpack(place: Path | bytes) -> Entry:
    """The entry at ``place`` by its header; ``Damaged`` where there is none or it is not whole."""
    start = _bytes(place, 0, _START)
    said = start[-4:]
    size = int.from_bytes(said, "little")
    if not start.startswith(_MAGIC) or size > 1 << 20:
        raise Damaged("header")
    header = _bytes(place, _START, size)
    if hashlib.sha256(said + header).digest() != start[len(_MAGIC) : -4]:
        raise Damaged("header")
    try:
        note, layout = _described(json.loads(header))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise Damaged("header") from None
    for about in layout.values():
        about["start"] += _START + size
    entry = Entry(place, note, layout)
    end = max((about["start"] + about["size"] for about in entry.layout.values()), default=_START + size)
    if _size(place) != end:
        raise Damaged("length")
    return entry


def _described(known: Any) -> tuple[str, dict[str, dict[str, Any]]]:
    """The note and the layout of a header; nearly any exception where it is none that ``pack`` makes."""
    layout = {str(name): dict(about) for name, about in known["arrays"].items()}
    for about in layout.values():
        dtype, shape = np.dtype(about["dtype"]), about["shape"]
        numbers = [about["start"], about["size"], *shape]
        if not all(type(n) is int and 0 <= n <= _MOST for n in numbers) or math.prod(shape) > _MOST:
            raise ValueError("a number")
        if dtype.kind not in "biuf" or not 1 <= len(shape) <= 8 or not isinstance(about["sha256"], str):
            raise ValueError("an array")
    return str(known["note"]), layout


def _stored_bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Of an array as ``_encoded`` makes it."""
    count = math.prod(shape)
    return -(-count // 8) if dtype.kind == "b" else dtype.itemsize * count


def find(key: str, root: Path | None = None) -> Entry | None:
    """The entry of ``key``, marked as used; None where there is none that is whole."""
    path = _path(key, root)
    try:
        entry = unpack(path)
    except Damaged:
        return None
    with contextlib.suppress(OSError):  # a cache that is only readable serves as well
        os.utime(path)
    return entry


def keep(key: str, content: bytes, root: Path | None = None) -> tuple[Entry, str]:
    """Write what ``pack`` made; the entry, and why it was not written ("" otherwise).

    An entry that is not written is held in memory, as it is packed.
    """
    if limit() == 0:
        return unpack(content), ""
    path = _path(key, root)
    try:
        with replaced(path) as file:
            file.write(content)
        return unpack(path), ""
    except (InputError, Damaged) as error:
        return unpack(content), f"cache not written: {error or path}"


def prune(root: Path | None = None, *, keep_s: float = KEPT_S) -> int:
    """Delete the entries unused for longest until the rest fits ``limit()``; their number.

    Those used within the last ``keep_s`` seconds stay in any case, so the limit is met an hour late. Other
    runs may read, write and prune meanwhile: whoever misses an entry computes it. What killed processes left
    is swept away after a day.
    """
    bound, now = limit(), time.time()
    entries: list[tuple[float, int, Path]] = []
    for path in folder(root).glob("*/*"):
        with contextlib.suppress(OSError):
            about = path.stat()
            if path.suffix == TEMPORARY:
                if now - about.st_mtime > 24 * 3600:
                    path.unlink()
            elif path.suffix == _SUFFIX:
                entries.append((about.st_mtime, about.st_size, path))
    total, gone = sum(size for _, size, _ in entries), 0
    for used, size, path in sorted(entries):
        if total <= bound or now - used <= keep_s:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            gone += 1
        total -= size
    return gone


def _path(key: str, root: Path | None) -> Path:
    return folder(root) / key[:2] / f"{key}{_SUFFIX}"


def _bytes(place: Path | bytes, start: int, size: int) -> bytes:
    if isinstance(place, bytes):
        found = place[start : start + size]
    else:
        try:
            with place.open("rb") as file:
                file.seek(start)
                found = file.read(size)
        except OSError as error:
            raise Damaged(str(error)) from None
    if len(found) != size:
        raise Damaged("length")
    return found


def _size(place: Path | bytes) -> int:
    if isinstance(place, bytes):
        return len(place)
    try:
        return place.stat().st_size
    except OSError as error:
        raise Damaged(str(error)) from None


def _encoded(array: np.ndarray) -> bytes:
    if array.dtype.kind == "b":
        return np.packbits(array).tobytes()
    if array.dtype.itemsize == 1 or not array.size:
        return array.tobytes()
    columns = np.ascontiguousarray(array.reshape(len(array), -1).T)
    return columns.reshape(-1).view(np.uint8).reshape(-1, array.itemsize).T.tobytes()


def _decoded(content: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    stored = np.frombuffer(content, np.uint8)
    if dtype.kind == "b":
        return np.unpackbits(stored, count=int(np.prod(shape))).view(bool).reshape(shape)
    if dtype.itemsize == 1 or not len(stored):
        return stored.view(dtype).reshape(shape)
    values = np.ascontiguousarray(stored.reshape(dtype.itemsize, -1).T).view(dtype)
    return np.ascontiguousarray(values.reshape(-1, shape[0]).T).reshape(shape)
