"""muscjax.datasets.decoding: what a header may claim, and which decoders are reached."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from muscjax.datasets import decoding, folder, load_image, load_mask, load_xyz, open_dataset
from muscjax.errors import InputError
from muscjax.evaluate import load_map
from tests.layouts import rgb_scan, save_image


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG of 8-bit grey whose header says so."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(body, 9))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(40_000, 25_000), (31_623, 31_623), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("load", [load_image, load_mask, load_map])
def test_an_image_of_a_billion_pixels_is_refused_by_its_header(tmp_path, load, width, height):
    path = tmp_path / "a.png"
    path.write_bytes(png(width, height))
    with pytest.raises(InputError, match=r"a\.png: not a readable .*(pixels|exceeds limit)"):
        load(path)


def test_a_header_is_held_against_its_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(9_000, 9_000))
    with pytest.raises(InputError, match=r"claims 81000000 pixels, its \d+ bytes hold fewer"):
        load_image(path)
    blank = tmp_path / "blank.png"  # the emptiest real image is read
    Image.new("1", (4_000, 4_000)).save(blank, optimize=True)
    assert load_mask(blank).shape == (4_000, 4_000)
    tifffile.imwrite(
        tmp_path / "blank.tiff", np.full((700, 700, 3), 0.5, "f4"), photometric="rgb", compression="zlib"
    )
    assert load_xyz(tmp_path / "blank.tiff").shape == (700, 700, 3)


def test_a_chunk_that_claims_four_gigabytes_takes_none(tmp_path):
    """Pillow asks its file for all of what a chunk claims to hold."""
    content = bytearray(png(3, 3, b"\0\1\2\3" * 3))
    at = content.index(b"IDAT")
    content[at - 4 : at] = b"\xff\xff\xff\xff"
    path = tmp_path / "a.png"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        assert load_image(path).shape == (3, 3, 3)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_postscript_under_another_name_starts_no_program(tmp_path, monkeypatch, ending):
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(InputError, match="found no image of a known format"):
        load_image(path)


@pytest.mark.parametrize(
    ("shape", "kind", "text"),
    [
        ("(1000000000,)", "'<f4'", "claims 4000000000 bytes, it holds 8"),
        ("(10, 10, 3)", "'|O'", "holds Python objects"),
        ("(-1, 3)", "'<f4'", "no usable shape"),
        ("(2,)", "[('a', '|O')]", "holds Python objects"),
    ],
)
def test_a_numpy_file_holds_what_its_header_says(tmp_path, shape, kind, text):
    head = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(8))
    for load in (load_xyz, load_map):
        with pytest.raises(InputError, match=text):
            load(path)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f8", ">i2", "|u1", "|b1"])
def test_numpy_files_are_read_as_numpy_reads_them(kind, order):
    array = np.asarray(np.random.default_rng(0).integers(0, 2, (4, 5, 3)), kind, order=order)
    file = io.BytesIO()
    np.save(file, array)
    found = decoding.decode_npy(file.getvalue())
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("=")


def test_folders_that_lead_in_circles_or_double_are_walked_once(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", rgb_scan())
    save_image(tmp_path / "d" / "b.png", rgb_scan(seed=1))
    for name in ("x", "y", "z"):
        (tmp_path / name).symlink_to(".")
        (tmp_path / "d" / name).symlink_to("..")
    (found,) = open_dataset(tmp_path, layout="folder")
    assert [scan.stem for scan in found.scans] == ["a", "b"]
    monkeypatch.setattr(folder, "MOST_FOLDERS", 1)
    with pytest.raises(InputError, match="found more than 1 folders, expected a data set"):
        open_dataset(tmp_path, layout="folder")
