"""Vertices of PLY files: ASCII and binary of either byte order; all but x, y and z is skipped.

The format is Greg Turk's "The PLY Polygon File Format" (1994).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from muscjax.datasets.decoding import MOST_POINTS

_LONGEST_HEADER = 1 << 16
_SCALARS = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclasses.dataclass(frozen=True)
class _Property:
    name: str
    kind: str  # of the value, or of a list's values
    count_kind: str = ""  # of a list's length; "" where it is a scalar


@dataclasses.dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = dataclasses.field(default_factory=list)

    @property
    def has_lists(self) -> bool:
        return any(p.count_kind for p in self.properties)

    def least(self, order: str) -> int:
        """Bytes that a row takes at least; in ASCII a digit and a separator per value."""
        if not order:
            return 2 * len(self.properties)
        return sum(np.dtype(p.count_kind or p.kind).itemsize for p in self.properties)


def decode_ply(content: bytes) -> np.ndarray:
    """The vertices of a PLY file: (P, 3) float64, as stored.

    Raises:
      ValueError: no PLY file, no vertex with x, y and z, or a header that promises more than the file holds.
    """
    order, elements, at = _header(content)
    for element in elements:
        # before anything of that size is made
        if element.count > MOST_POINTS:
            raise ValueError(
                f"its header claims {element.count} rows of {element.name}, more than any sensor"
            )
        if element.name == "vertex" and element.count * element.least(order) > len(content) - at + 1:
            raise ValueError(
                f"its header claims {element.count} vertices, its {len(content) - at} bytes hold fewer"
            )
    names = [element.name for element in elements]
    if "vertex" not in names:
        raise ValueError("found no vertex element")
    before, vertex = elements[: names.index("vertex")], elements[names.index("vertex")]
    if not {"x", "y", "z"} <= {p.name for p in vertex.properties if not p.count_kind}:
        raise ValueError("its vertices have no x, y and z")
    if not order:
        return _ascii(content[at:], sum(element.count for element in before), vertex)
    for element in before:
        at = _skip(content, at, element, order)
    return _binary(content, at, vertex, order)


def _header(content: bytes) -> tuple[str, list[_Element], int]:
    """Byte order, elements, and where the rows begin."""
    end = content.find(b"end_header", 0, _LONGEST_HEADER)
    newline = content.find(b"\n", end)
    if not content.startswith(b"ply") or end < 0 or newline < 0:
        raise ValueError("found no PLY header")
    order: str | None = None
    elements: list[_Element] = []
    for line in content[:end].decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        try:
            match words:
                case ["format", kind, _]:
                    order = _ORDERS[kind]
                case ["element", name, count]:
                    if not count.isdecimal():
                        raise ValueError
                    elements.append(_Element(name, int(count)))
                case ["property", "list", length, kind, name]:
                    elements[-1].properties.append(_Property(name, _SCALARS[kind], _SCALARS[length]))
                case ["property", kind, name]:
                    elements[-1].properties.append(_Property(name, _SCALARS[kind]))
                case [] | ["comment" | "obj_info", *_]:
                    pass
                case _:
                    raise ValueError
        except (ValueError, KeyError, IndexError):
            raise ValueError(f"its header has the line {line[:80]!r}") from None
    if order is None:
        raise ValueError("its header names no format")
    return order, elements, newline + 1


def _ascii(rows: bytes, skipped: int, vertex: _Element) -> np.ndarray:
    if vertex.has_lists:
        raise ValueError("its vertices hold lists, expected numbers")
    lines = [line for line in rows.splitlines() if line.strip()][skipped : skipped + vertex.count]
    if len(lines) < vertex.count:
        raise ValueError(f"its header claims {vertex.count} vertices, it holds {len(lines)}")
    names = [p.name for p in vertex.properties]
    columns = [names.index(axis) for axis in "xyz"]
    points = np.empty((len(lines), 3))
    for i, line in enumerate(lines):
        values = line.split()
        if len(values) < len(names):
            raise ValueError(f"vertex {i} has {len(values)} of {len(names)} values")
        points[i] = [float(values[column]) for column in columns]
    return points


def _binary(content: bytes, at: int, vertex: _Element, order: str) -> np.ndarray:
    if vertex.has_lists:
        raise ValueError("its vertices hold lists, expected numbers")
    # numbered names: a file may give two properties one name
    row = np.dtype([(f"{i}", order + p.kind) for i, p in enumerate(vertex.properties)])
    held = max(0, len(content) - at) // row.itemsize
    if held < vertex.count:
        raise ValueError(f"its header claims {vertex.count} vertices, it holds {held}")
    stored = np.frombuffer(content, row, count=vertex.count, offset=at)
    names = [p.name for p in vertex.properties]
    return np.stack([stored[str(names.index(axis))].astype(np.float64) for axis in "xyz"], axis=1)


def _skip(content: bytes, at: int, element: _Element, order: str) -> int:
    """Where the next element begins."""
    if not element.has_lists:
        return at + element.count * element.least(order)
    for _ in range(element.count):
        for p in element.properties:
            size = np.dtype(p.kind).itemsize
            if p.count_kind:
                length = np.dtype(order + p.count_kind)
                if at + length.itemsize > len(content):
                    raise ValueError(f"it ends within its rows of {element.name}")
                size *= max(0, int(np.frombuffer(content, length, 1, at)[0]))
                at += length.itemsize
            at += size
    return at
