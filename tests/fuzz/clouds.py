"""XYZ maps, clouds, cameras, and the parts of an Eyecandies scan."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import yaml
from hypothesis import strategies as st

from muscjax.datasets import load_scan_xyz, load_xyz, scan_xyz_hw, xyz_hw
from muscjax.datasets.tree import Scan
from tests.fuzz.engine import Reader
from tests.fuzz.images import repair_png, saved, tags, tiff

HW = (7, 5)
CAMERA = {"fx": 40.0, "fy": 40.0, "cx": 16.0, "cy": 16.0, "width": 32, "height": 32}
HALCON = {
    "focus": 0.02,
    "sx": 5e-4,
    "sy": 5e-4,
    "cx": 16.0,
    "cy": 16.0,
    "kappa": 100.0,
    "image_width": 32,
    "image_height": 32,
}
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 16, 32, 1e-320, 1e300, 1e308, 10**400, -0.0, 2**63, 16384, 10**9]),
    st.sampled_from([None, True, "32", float("inf"), float("nan"), [], {}]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-5, 70),
)


def points() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(35, 3)) * 0.05 + [0.01, 0.02, 0.5]).astype(np.float32)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def ply(form: str, array: np.ndarray, *, before: str = "", extra: bytes = b"") -> bytes:
    head = f"ply\nformat {form} 1.0\n{before}element vertex {len(array)}\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    if form == "ascii":
        rows = "".join(" ".join(f"{v:.5g}" for v in row) + "\n" for row in array).encode()
    else:
        rows = array.astype("<f4" if "little" in form else ">f4").tobytes()
    return head.encode() + extra + rows


COUNTS = st.sampled_from([0, 1, 3, 10**9, 2**63, -1, 1 << 26, (1 << 26) + 1])
KINDS = st.sampled_from(["float", "double", "uchar", "int8", "ushort", "int", "uint", "quad"])


@st.composite
def plys(draw) -> bytes:
    """Headers with any elements, lists and counts, over any bytes."""
    form = draw(st.sampled_from(["ascii", "binary_little_endian", "binary_big_endian", "binary"]))
    lines = ["ply", f"format {form} 1.0"]
    for name in draw(st.lists(st.sampled_from(["vertex", "face", "camera", "vertex"]), max_size=4)):
        lines.append(f"element {name} {draw(COUNTS)}")
        axes = draw(st.permutations(["x", "y", "z"])) if draw(st.booleans()) else ["x", "x", "r"]
        for axis in axes[: draw(st.integers(0, 3))]:
            if draw(st.integers(0, 3)) == 0:
                lines.append(f"property list {draw(KINDS)} {draw(KINDS)} {axis}")
            else:
                lines.append(f"property {draw(KINDS)} {axis}")
    lines.append(draw(st.sampled_from(["end_header", "end_header", "comment", ""])))
    body = draw(st.one_of(st.binary(max_size=90), st.just(points().tobytes()), st.just(b"1 2 3\n" * 9)))
    return "\n".join(lines).encode() + b"\n" + body


@st.composite
def npys(draw) -> bytes:
    """A NumPy header that says anything, over any bytes."""
    shape = draw(
        st.one_of(
            st.lists(st.sampled_from([0, 1, 3, 5, 7, 10**9, 2**63, -1, 35]), max_size=5).map(
                lambda n: "(" + "".join(f"{v}, " for v in n) + ")"
            ),
            st.sampled_from(["(7, 5, 3)", "(35, 3)", "(10**9,)", "()", "[7, 5, 3]", "(True, 3)", "(1.5,)"]),
        )
    )
    kind = draw(
        st.sampled_from(
            [
                "'<f4'",
                "'>f8'",
                "'|O'",
                "'<c8'",
                "'<U7'",
                "'|V0'",
                "'|S0'",
                "'<M8[ns]'",
                "'|b1'",
                "'<i8'",
                "[('x', '<f4'), ('y', '|O')]",
                "'f4, O'",
                "('<f4', (3,))",
                "'<f2'",
                "'>u2'",
                "'<f16'",
                "5",
            ]
        )
    )
    order = draw(st.sampled_from(["False", "True", "1", "None"]))
    text = "{'descr': %s, 'fortran_order': %s, 'shape': %s, }" % (kind, order, shape)  # noqa: UP031
    text = draw(st.sampled_from([text, text, text, "(" * 5000, text + "\0", "__import__('os').system('x')"]))
    head = text.encode() + b"\n"
    version = draw(st.sampled_from([(1, 0), (1, 0), (2, 0), (3, 0), (9, 9)]))
    wide = version[0] > 1
    length = draw(st.sampled_from([len(head), len(head), 65535, (1 << 32) - 1 if wide else 0]))
    return (
        b"\x93NUMPY"
        + bytes(version)
        + struct.pack("<I" if wide else "<H", length)
        + head
        + draw(st.sampled_from([b"", bytes(420), np.ones(105, "<f4").tobytes(), b"\x80\x04cos\nsystem\n."]))
    )


def check_map(xyz: np.ndarray) -> None:
    assert (xyz.dtype, xyz.ndim, xyz.shape[2]) == (np.float32, 3, 3)
    assert np.isfinite(xyz).all(), "not finite"
    assert (xyz != 0).any()


def read_map(path: Path) -> None:
    xyz = load_xyz(path)
    check_map(xyz)
    assert xyz_hw(path) == xyz.shape[:2]


def cloud(xyz: str, **files: str):
    """A reader of the scan made of these files; the case's own is among them."""

    def read(path: Path) -> None:
        place = path.parent
        scan = Scan("c", "", "", "a", xyz=place / xyz, **{k: place / v for k, v in files.items()})
        found = load_scan_xyz(scan)
        check_map(found)
        assert scan_xyz_hw(scan) == found.shape[:2]

    return read


def cameras(**changes) -> st.SearchStrategy[bytes]:
    """Cameras with strange numbers, as JSON or as YAML with references to itself."""
    fields = st.one_of(st.just(CAMERA), st.just(HALCON))
    matrix = st.one_of(
        st.none(), st.just(np.eye(4).tolist()), st.lists(st.lists(NUMBERS, max_size=5), max_size=5), NUMBERS
    )

    @st.composite
    def made(draw) -> bytes:
        found = dict(draw(fields))
        for name in draw(st.lists(st.sampled_from([*CAMERA, *HALCON, "extrinsic", "pose"]), max_size=3)):
            found[name] = draw(matrix if name in ("extrinsic", "pose") else NUMBERS)
        try:
            return json.dumps(found).encode()
        except ValueError:  # a number with more digits than may be printed
            return b"{}"

    return made()


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAMLS = st.sampled_from(
    [
        (LAUGHS + "normalization: {min: *i, max: *i}\n").encode(),
        (LAUGHS + "extrinsic: *i\nfx: *i\n").encode(),
        b"&a [*a]",
        b"normalization: &a {min: 0, max: 1, <<: *a}",
        b"!!python/object/apply:os.system ['true']",
        b"normalization: {min: 0.1, max: !!python/name:os.system }",
        b"normalization: {min: 0x" + b"f" * 30000 + b", max: 1}",
        b"normalization: {min: " + b"9" * 30000 + b", max: 1}",
        b"normalization: {min: " + b"1:" * 20000 + b"1, max: 1}",
        b"[" * 20000,
        b"{a: " * 9000,
        b"- " * 20000,
        b"a: b: c",
        b"normalization: {min: 2001-99-99, max: 1}",
        b"normalization: {min: .nan, max: .inf}",
        b"normalization: {max: 1e400, min: -1e400}",
        b"? [a, b]\n: c",
        b"? {a: b}\n: c",
        b"%YAML 9.9\n---\n{}",
        b"\xff\xfe",
        b"\0",
        b"#" * 70000,
        b"anomalous: [1]\nbumps: {a: 1}",
    ]
)


def beside_depth(folder: Path) -> None:
    depth, info, pose = eyecandies()
    (folder / "a_depth.png").write_bytes(depth)
    (folder / "a_info_depth.yaml").write_bytes(info)
    (folder / "a_pose.txt").write_bytes(pose)


def eyecandies() -> tuple[bytes, bytes, bytes]:
    stored = np.random.default_rng(0).integers(1, 65535, HW, dtype=np.uint16)
    info = yaml.safe_dump({"normalization": {"min": 0.4, "max": 1.3}}).encode()
    pose = io.StringIO()
    np.savetxt(pose, np.eye(4))
    return saved(stored, "PNG"), info, pose.getvalue().encode()


def _readers() -> list[Reader]:
    xyz = points().reshape(*HW, 3)
    held = ply("binary_little_endian", points())
    depth, info, pose = eyecandies()
    whole = {"depth_info": "a_info_depth.yaml", "pose": "a_pose.txt"}
    face = "element face 2\nproperty list uchar int v\n"
    rows = struct.pack("<Biii", 3, 0, 1, 2) * 2
    return [
        Reader(
            "XYZ as TIFF",
            "a.tiff",
            read_map,
            [
                tiff(xyz, photometric="minisblack"),
                tiff(xyz, photometric="minisblack", compression="zlib"),
                tiff((xyz * 1e3).astype(np.float64), photometric="minisblack", bigtiff=True),
            ],
            strategy=tags(),
        ),
        Reader(
            "XYZ as NPY",
            "a.npy",
            read_map,
            [npy(xyz), npy(np.asfortranarray(xyz * 1e3)), npy((xyz * 1e4).astype(">i2"))],
            strategy=npys(),
        ),
        Reader(
            "cloud as NPY",
            "a.npy",
            cloud("a.npy"),
            [npy(points()), npy(points().astype(">f8"))],
            strategy=npys(),
        ),
        Reader(
            "PLY",
            "a.ply",
            cloud("a.ply"),
            [
                held,
                ply("binary_big_endian", points()),
                ply("ascii", points()),
                ply("binary_little_endian", points(), before=face, extra=rows),
            ],
            strategy=plys(),
            tokens=(
                b"element vertex 1000000000\n",
                b"property list uint double x\n",
                b"end_header\n",
                b"nan ",
            ),
        ),
        Reader(
            "camera as JSON",
            "camera.json",
            cloud("a.ply", camera="camera.json"),
            [json.dumps(CAMERA).encode(), json.dumps(HALCON).encode()],
            beside=lambda folder: (folder / "a.ply").write_bytes(held) and None,
            strategy=cameras(),
        ),
        Reader(
            "camera as YAML",
            "camera.yaml",
            cloud("a.ply", camera="camera.yaml"),
            [yaml.safe_dump(CAMERA | {"extrinsic": np.eye(4).tolist()}).encode()],
            beside=lambda folder: (folder / "a.ply").write_bytes(held) and None,
            strategy=st.one_of(cameras(), YAMLS),
        ),
        Reader(
            "depth image",
            "a_depth.png",
            cloud("a_depth.png", **whole),
            [depth],
            beside=beside_depth,
            repair=repair_png,
        ),
        Reader(
            "depth bounds as YAML",
            "a_info_depth.yaml",
            cloud("a_depth.png", **whole),
            [info],
            beside=beside_depth,
            strategy=YAMLS,
        ),
        Reader(
            "pose",
            "a_pose.txt",
            cloud("a_depth.png", **whole),
            [pose],
            beside=beside_depth,
            strategy=st.lists(st.lists(NUMBERS.map(lambda v: str(v)[:40]), max_size=5), max_size=5).map(
                lambda rows: "\n".join(" ".join(row) for row in rows).encode()
            ),
        ),
    ]


READERS = _readers()
