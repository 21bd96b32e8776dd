"""Pictures: PNG, JPEG, BMP, TIFF and WebP as images and as masks, and maps that anyone made."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile
from hypothesis import strategies as st
from PIL import Image

from muscjax import evaluate
from muscjax.datasets import loading
from muscjax.frame import Frame
from tests.fuzz.engine import Reader

HW = (13, 9)
PNG = b"\x89PNG\r\n\x1a\n"


def saved(array: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "rgb": rng.integers(0, 256, (*HW, 3), dtype=np.uint8),
        "rgba": rng.integers(0, 256, (*HW, 4), dtype=np.uint8),
        "grey": rng.integers(0, 256, HW, dtype=np.uint8),
        "deep": rng.integers(0, 65536, HW, dtype=np.uint16),
        "bits": rng.random(HW) > 0.5,
    }


def palette() -> bytes:
    file = io.BytesIO()
    Image.fromarray(arrays()["rgb"]).quantize(7).save(file, "PNG", transparency=b"\x00\xff\x80")
    return file.getvalue()


def repair_png(content: bytes) -> bytes:
    """The same chunks with checksums that fit, so that damage reaches the decoder."""
    out, at = [content[:8]], 8
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        body = content[at + 4 : at + 8 + length]
        if len(body) < 4 + length:
            break
        out.append(content[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big"))
        at += 12 + length
    return b"".join(out) + content[at:]


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


SIDES = st.one_of(
    st.sampled_from([0, 1, 9, 13, 4096, 16384, 65535, 10**5, 10**9, 2**31 - 1, 2**32 - 1]),
    st.integers(0, 40),
)

BODIES = [zlib.compress(bytes(count), 9) for count in (0, 40, 117, 400, 1 << 22)]
TEXTS = [zlib.compress(bytes(count), 9) for count in (3, 1 << 20, 1 << 25)]


@st.composite
def pngs(draw) -> bytes:
    """Any header before a body that does not care, with strange chunks in between and bombs in them."""
    head = struct.pack(
        ">IIBBBBB",
        draw(SIDES),
        draw(SIDES),
        draw(st.sampled_from([1, 2, 4, 8, 16, 3, 0])),
        draw(st.sampled_from([0, 2, 3, 4, 6, 1, 7])),
        0,
        0,
        draw(st.sampled_from([0, 0, 0, 1, 2])),
    )
    body, text = draw(st.sampled_from(BODIES)), draw(st.sampled_from(TEXTS))
    extra = draw(
        st.lists(
            st.sampled_from(
                [
                    chunk(b"PLTE", bytes(draw(st.integers(0, 800)))),
                    chunk(b"tRNS", bytes(draw(st.integers(0, 300)))),
                    chunk(b"zTXt", b"a\0\0" + text),
                    chunk(b"iTXt", b"a\0\1\0\0\0" + text),
                    chunk(b"iCCP", b"a\0\0" + text),
                    chunk(b"acTL", struct.pack(">II", draw(SIDES), 0)),
                    chunk(b"fcTL", bytes(26)),
                    chunk(b"eXIf", draw(st.binary(max_size=40))),
                ]
            ),
            max_size=3,
        )
    )
    return PNG + chunk(b"IHDR", head) + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@st.composite
def bitmaps(draw) -> bytes:
    """Headers of Windows bitmaps of any depth and compression."""
    depth = draw(st.sampled_from([1, 4, 8, 16, 24, 32, 0, 7]))
    size = draw(st.sampled_from([12, 40, 52, 108, 124, 7]))
    head = struct.pack(
        "<IiiHHIIiiII",
        size,
        draw(SIDES) - 2**31 if draw(st.booleans()) else min(draw(SIDES), 2**31 - 1),
        draw(st.sampled_from([13, -13, 10**9, -(2**31), 0])),
        1,
        depth,
        draw(st.sampled_from([0, 1, 2, 3, 9])),
        draw(SIDES),
        0,
        0,
        draw(SIDES),
        0,
    )
    data = draw(st.binary(max_size=600))
    offset = draw(st.sampled_from([14 + size, 54, 0, 2**32 - 1]))
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(data), 0, 0, offset) + head + data


@st.composite
def tags(draw) -> bytes:
    """A TIFF whose directory says anything."""
    order = draw(st.sampled_from(["<", ">"]))
    tag = st.sampled_from(
        [254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 320, 338, 339, 700]
    )
    values = st.one_of(
        st.sampled_from([0, 1, 2, 3, 5, 8, 16, 32, 64, 8, 10**9, 2**32 - 1]), st.integers(0, 300)
    )
    entries = draw(
        st.lists(st.tuples(tag, st.sampled_from([1, 2, 3, 4, 5, 11, 12, 16]), values, values), max_size=14)
    )
    base = {256: 9, 257: 13, 258: 32, 259: 1, 262: 1, 273: 200, 277: 3, 278: 13, 279: 1404, 339: 3}
    rows = {t: (4, 1, v) for t, v in base.items()} if draw(st.booleans()) else {}
    for t, kind, count, value in entries:
        rows[t] = (kind, draw(st.sampled_from([1, count])), value)
    body = b"".join(
        struct.pack(order + "HHII", t, kind, count, value) for t, (kind, count, value) in sorted(rows.items())
    )
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    following = draw(st.sampled_from([0, 0, 8, 2**32 - 1]))
    directory = struct.pack(order + "H", len(rows)) + body + struct.pack(order + "I", following)
    return (start + directory).ljust(200, b"\0") + bytes(draw(st.sampled_from([0, 100, 1404])))


def tiff(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def read_image(path: Path) -> None:
    loading.image_hw(path)
    image = loading.load_image(path)
    assert image.dtype == np.uint8, image.dtype
    assert image.ndim == 3, image.shape
    assert image.shape == (*loading.image_hw(path), 3), image.shape


FRAME = Frame(source_hw=HW, working_hw=(8, 8), pad=(0, 0, 2, 2), crop=None)


def read_mask(path: Path) -> None:
    whole = loading.load_mask(path)
    assert (whole.dtype, whole.ndim) == (bool, 2)
    fitted = loading.load_mask(path, FRAME)
    assert (fitted.dtype, fitted.shape) == (bool, (8, 8))


def read_map(path: Path) -> None:
    values = evaluate.load_map(path)
    assert values.ndim == 2, values.shape
    assert values.dtype.kind == "f", values.dtype
    assert np.isfinite(values).all()
    evaluate.fit_map(values, (8, 8))


def _readers() -> list[Reader]:
    made = arrays()
    png = [saved(made[name], "PNG") for name in ("rgb", "rgba", "grey", "deep", "bits")] + [palette()]
    jpeg = [
        saved(made["rgb"], "JPEG"),
        saved(made["grey"], "JPEG", progressive=True),
        saved(made["rgb"], "JPEG", exif=Image.Exif()),
    ]
    bmp = [saved(made[name], "BMP") for name in ("rgb", "grey", "bits")]
    webp = [saved(made["rgb"], "WEBP", lossless=True), saved(made["rgb"], "WEBP")]
    tif = [tiff(made["rgb"]), tiff(made["deep"]), tiff(made["grey"], compression="zlib")]
    tif += [saved(made["rgb"], "TIFF", compression=kind) for kind in ("tiff_lzw", "packbits", "jpeg")]
    mask = [saved(np.where(made["bits"], np.uint8(255), np.uint8(0)), "PNG"), png[4], png[3]]
    scores = np.random.default_rng(1).random(HW).astype(np.float32)
    npy = io.BytesIO()
    np.save(npy, scores)
    npy64 = io.BytesIO()
    np.save(npy64, scores.astype(np.float64)[None])
    return [
        Reader("PNG image", "a.png", read_image, png, strategy=pngs(), repair=repair_png),
        Reader("JPEG image", "a.jpg", read_image, jpeg),
        Reader("BMP image", "a.bmp", read_image, bmp, strategy=bitmaps()),
        Reader("TIFF image", "a.tiff", read_image, tif, strategy=tags()),
        Reader("WebP image", "a.webp", read_image, webp),
        Reader("mask", "a.png", read_mask, mask, strategy=pngs(), repair=repair_png),
        Reader(
            "map as TIFF",
            "a.tiff",
            read_map,
            [tiff(scores), tiff(scores, compression="zlib")],
            strategy=tags(),
        ),
        Reader("map as NPY", "a.npy", read_map, [npy.getvalue(), npy64.getvalue()]),
        Reader("map as PNG", "a.png", read_map, [png[2], png[3]], strategy=pngs(), repair=repair_png),
    ]


READERS = _readers()
