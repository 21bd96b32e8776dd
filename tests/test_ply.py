"""PLY files of every form, and headers that lie."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax.datasets.ply import decode_ply
from tests import layouts

FORMS = ("ascii", "binary_little_endian", "binary_big_endian")
POINTS = np.array([[0.5, -1.25, 3.0], [1e-3, 2.0, -7.5], [0, 0, 0.25]])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("scalar", ["float", "double", "short", "uchar", "int"])
def test_forms(tmp_path, form, extra, scalar):
    points = POINTS if scalar in ("float", "double") else np.array([[1, 2, 3], [0, 100, 7]])
    layouts.write_ply(tmp_path / "a.ply", points, form=form, scalar=scalar, extra=extra)
    got = decode_ply((tmp_path / "a.ply").read_bytes())
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, points.astype(np.float32) if scalar == "float" else points)


def test_lines_may_end_as_they_like(tmp_path):
    layouts.write_ply(tmp_path / "a.ply", POINTS, form="ascii", scalar="double", extra=True)
    content = (tmp_path / "a.ply").read_bytes()
    np.testing.assert_array_equal(decode_ply(content.replace(b"\n", b"\r\n")), POINTS)
    np.testing.assert_array_equal(decode_ply(content.rstrip()), POINTS)


def header(*lines, form="binary_little_endian", rows=b""):
    return "\n".join(["ply", f"format {form} 1.0", *lines, "end_header\n"]).encode() + rows


XYZ = ("property float x", "property float y", "property float z")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "no PLY header"),
        (b"ply\nformat ascii 1.0\n", "no PLY header"),
        (header("element vertex 1", *XYZ, form="binary_middle_endian"), "binary_middle_endian"),
        (b"ply\nelement vertex 1\nproperty float x\nend_header\n", "names no format"),
        (header("element vertex 0", *XYZ[:2]), "no x, y and z"),
        (header("element face 0"), "no vertex element"),
        (header("element vertex -1", *XYZ), "element vertex -1"),
        (header("element vertex 1", "property float128 x"), "float128"),
        (header("property float x"), "property float x"),
        (header("element vertex 2", *XYZ, rows=bytes(23)), "2 vertices"),
        (
            header("element face 2", "property list uchar int v", "element vertex 0", *XYZ, rows=b"\x05"),
            "rows of",
        ),
        (header("element vertex 1", *XYZ, "property list uchar int n", rows=bytes(99)), "lists"),
        (header("element vertex 2", *XYZ, form="ascii", rows=b"1 2 3\n44 55\n"), "2 of 3 values"),
        (header("element vertex 2", *XYZ, form="ascii", rows=b"1 2 3000000\n\n"), "holds 1"),
        (header("element vertex 1", *XYZ, form="ascii", rows=b"1 2 x\n"), "could not convert"),
    ],
)
def test_what_is_no_cloud(content, text):
    with pytest.raises(ValueError, match=text):
        decode_ply(content)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", ["67000000", "999999999999999999999", "4000000"])
def test_absurd_sizes_are_refused_before_anything_is_made(form, count):
    content = header(f"element vertex {count}", *XYZ, form=form, rows=bytes(100))
    tracemalloc.start()
    with pytest.raises(ValueError, match="claims"):
        decode_ply(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@given(
    st.sampled_from(FORMS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
)
def test_damage_is_a_value_error_or_points(tmp_path_factory, form, damage, share):
    path = tmp_path_factory.mktemp("ply") / "a.ply"
    layouts.write_ply(path, np.repeat(POINTS, 5, axis=0), form=form, extra=True)
    content = bytearray(path.read_bytes())
    for at, value in damage:
        content[at % len(content)] = value
    try:
        got = decode_ply(bytes(content[: int(share * len(content))]))
    except (ValueError, OverflowError):
        return
    assert got.ndim == 2
    assert got.shape[1] == 3
