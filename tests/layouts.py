"""Writes tiny, faithful copies of the layouts that muscjax reads; for tests only.

The scans are made up here: a tilted ground plane, a box that stands on it, holes in the depth.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import tifffile
import yaml
from PIL import Image

SIDE = 64  # points along a side, 1 mm apart
BOX = (slice(20, 42), slice(24, 46))  # rows and columns of the object


def xyz_scan(side: int = SIDE, *, seed: int = 0, width: int | None = None) -> np.ndarray:
    """(side, width, 3) float32 metres: plane, a box 20 mm high, an outlier, 5 % of the depth missing."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, : (width or side)]
    x, y = (columns - 0.37) * 1e-3, (rows - 0.41) * 1e-3
    z = 0.65 - 0.1 * x + 0.35 * y + rng.normal(0, 2e-4, x.shape)
    z[BOX] -= 0.02
    z[2, 2] -= 0.3
    xyz = np.stack([x, y, z], axis=-1).astype(np.float32)
    xyz[rng.random(x.shape) < 0.05] = 0
    return xyz


def box_mask(side: int = SIDE, width: int | None = None) -> np.ndarray:
    """(side, width) bool, where ``xyz_scan`` has its box."""
    mask = np.zeros((side, width or side), bool)
    mask[BOX] = True
    return mask


def rgb_scan(height: int = SIDE, width: int | None = None, *, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 noise without any zero."""
    return np.random.default_rng(seed).integers(1, 256, (height, width or height, 3), dtype=np.uint8)


def defect_mask(height: int = SIDE, width: int | None = None, *, value: int = 255) -> np.ndarray:
    mask = np.zeros((height, width or height), np.uint8)
    mask[24:30, 26:34] = value
    return mask


def save_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def save_xyz(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig", **options)


def write_mvtec3d(
    root: Path,
    *,
    categories: tuple[str, ...] = ("part",),
    counts: tuple[tuple[str, int], ...] = (("good", 2), ("bent", 2)),
    splits: tuple[str, ...] = ("train", "validation", "test"),
    rgb_hw: tuple[int, int] = (SIDE, SIDE),
    xyz_hw: tuple[int, int] = (SIDE, SIDE),
) -> Path:
    """``<category>/<split>/<defect>/{rgb,xyz,gt}/NNN.*`` with calibration, as MVTec 3D-AD is unpacked."""
    for category in categories:
        folder = root / category
        (folder / "calibration").mkdir(parents=True)
        (folder / "calibration" / "camera_parameters.json").write_text("{}")
        for split in splits:
            for defect, count in counts if split == "test" else (("good", 2),):
                for i in range(count):
                    place, stem = folder / split / defect, f"{i:03d}"
                    save_image(place / "rgb" / f"{stem}.png", rgb_scan(*rgb_hw, seed=i))
                    save_xyz(place / "xyz" / f"{stem}.tiff", xyz_scan(xyz_hw[0], width=xyz_hw[1], seed=i))
                    value = 0 if defect == "good" else 252 + i % 4
                    if split == "test":
                        save_image(place / "gt" / f"{stem}.png", defect_mask(*rgb_hw, value=value))
    return root


def write_mvtec(
    root: Path,
    *,
    categories: tuple[str, ...] = ("bottle",),
    counts: tuple[tuple[str, int], ...] = (("good", 2), ("broken", 2)),
    hw: tuple[int, int] = (48, 48),
) -> Path:
    """``<category>/test/<defect>/NNN.png`` and ``ground_truth/<defect>/NNN_mask.png``, as MVTec AD is."""
    for category in categories:
        folder = root / category
        for i in range(2):
            save_image(folder / "train" / "good" / f"{i:03d}.png", rgb_scan(*hw, seed=i))
        for defect, count in counts:
            for i in range(count):
                save_image(folder / "test" / defect / f"{i:03d}.png", rgb_scan(*hw, seed=i))
                if defect != "good":
                    save_image(folder / "ground_truth" / defect / f"{i:03d}_mask.png", defect_mask(*hw))
    return root


def write_folder(root: Path, *, names: tuple[str, ...] = ("a.png", "b.jpg", "line 2/c.PNG")) -> Path:
    """A plain folder of images, flat or nested, of different sizes."""
    for i, name in enumerate(names):
        save_image(root / name, rgb_scan(40 + i, 50, seed=i))
    return root


def write_mpdd(
    root: Path, *, categories: tuple[str, ...] = ("bracket_black", "tubes"), hw: tuple[int, int] = (48, 48)
) -> Path:
    """The tree of MVTec AD with the names of MPDD."""
    defects = {
        "bracket_black": ("hole", "scratches"),
        "tubes": ("anomalous",),
        "connector": ("parts_mismatch",),
    }
    for name in categories:
        counts = (("good", 2), *((defect, 2) for defect in defects[name]))
        write_mvtec(root, categories=(name,), counts=counts, hw=hw)
    return root


def write_btad(root: Path, *, products: tuple[str, ...] = ("01", "02", "03"), suffix: str = "") -> Path:
    """``<product>/{train,test}/{ok,ko}`` and ``ground_truth/ko`` with the formats of each product.

    ``suffix`` "_mask" names the masks as MVTec AD does.
    """
    formats = {"01": (".bmp", ".png"), "02": (".png", ".png"), "03": (".bmp", ".bmp")}
    for product in products:
        image, mask = formats[product]
        folder = root / product
        for place, count in (("train/ok", 2), ("test/ok", 2), ("test/ko", 3)):
            for i in range(count):
                save_image(folder / place / f"{i:04d}{image}", rgb_scan(40, 44, seed=i))
        for i in range(3):
            save_image(folder / "ground_truth" / "ko" / f"{i:04d}{suffix}{mask}", defect_mask(40, 44))
    return root


def write_visa(root: Path, *, objects: tuple[str, ...] = ("candle", "pcb1")) -> Path:
    """The raw VisA download: ``Data`` per object and ``split_csv/1cls.csv``; one Normal is for training."""
    rows = ["object,split,label,image,mask"]
    for name in objects:
        data = root / name / "Data"
        for i in range(3):
            image = f"{name}/Data/Images/Normal/{i:04d}.JPG"
            save_image(root / image, rgb_scan(40, 60, seed=i))
            rows.append(f"{name},{'train' if i == 0 else 'test'},normal,{image},")
        for i in range(2):
            image, mask = f"{name}/Data/Images/Anomaly/{i:03d}.JPG", f"{name}/Data/Masks/Anomaly/{i:03d}.png"
            save_image(root / image, rgb_scan(40, 60, seed=i))
            save_image(root / mask, defect_mask(40, 60, value=i + 1))  # the kind of the defect
            rows.append(f"{name},test,anomaly,{image},{mask}")
        (data.parent / "image_anno.csv").write_text("image,label,mask\n")
    (root / "split_csv").mkdir()
    for name in ("1cls", "2cls_fewshot", "2cls_highshot"):
        (root / "split_csv" / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return root


def write_visa_1cls(
    root: Path, *, objects: tuple[str, ...] = ("candle", "pcb1"), folders: tuple[str, str] = ("good", "bad")
) -> Path:
    """VisA as its authors' script converts it: ``test/{good,bad}`` and masks without an ending."""
    good, bad = folders
    for name in objects:
        for place, count in ((f"train/{good}", 2), (f"test/{good}", 2), (f"test/{bad}", 2)):
            for i in range(count):
                save_image(root / name / place / f"{i:04d}.JPG", rgb_scan(40, 60, seed=i))
        for i in range(2):
            save_image(root / name / "ground_truth" / bad / f"{i:04d}.png", defect_mask(40, 60))
    return root


FOCAL = 711.11
BALL = 0.04  # radius, in the units of the Eyecandies scene
GROUND = 1.5  # below the camera


@dataclasses.dataclass(frozen=True)
class Candy:
    """A ball on level ground under a tilted camera, and what Eyecandies stores of it."""

    depth: np.ndarray  # (h, w) float64 along the optical axis, exact
    ball: np.ndarray  # (h, w) bool
    stored: np.ndarray  # (h, w) uint16
    low: float
    high: float
    pose: np.ndarray  # (4, 4)


def candy(side: int = SIDE, *, tilt: float = 0.9) -> Candy:
    """World axes are x right, y down, z ahead; ``pose`` leads from them into the camera."""
    cos, sin = np.cos(tilt), np.sin(tilt)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    pose = np.eye(4)
    pose[:3, :3] = turn
    pose[:3, 3] = turn @ [0.3, -GROUND + 0.2, 0.7]
    v, u = np.mgrid[:side, :side]
    rays = np.stack([(u - side / 2) / FOCAL, (v - side / 2) / FOCAL, np.ones((side, side))], axis=-1) @ turn
    ground = GROUND / rays[..., 1]
    centre = np.array([0.0, GROUND - BALL, (GROUND - BALL) * cos / sin])
    a, b = (rays**2).sum(-1), -2 * rays @ centre
    inside = b**2 - 4 * a * (centre @ centre - BALL**2)
    ball = inside > 0
    depth = np.where(ball, (-b - np.sqrt(np.where(ball, inside, 0))) / (2 * a), ground)
    low, high = float(depth.min()) - 0.01, float(depth.max()) + 0.02
    stored = np.round((depth - low) / (high - low) * 65535).astype(np.uint16)
    return Candy(depth, ball, stored, low, high, pose)


def write_eyecandies(
    root: Path,
    *,
    categories: tuple[str, ...] = ("CandyCane", "Lollipop"),
    splits: tuple[str, ...] = ("train", "val", "test_public", "test_private"),
    side: int = SIDE,
) -> Path:
    """``<Category>/<split>/data/NN_*`` with all the files of a sample; the last two of four are defective."""
    scene = candy(side)
    for category in categories:
        for split in splits:
            folder = root / category / split / "data"
            for i in range(4 if split.startswith("test") else 2):
                name = f"{i:02d}" if split.startswith("test") else f"{i:03d}"
                bad = split.startswith("test") and i >= 2
                for light in range(6):
                    rgb = np.where(
                        scene.ball[..., None], np.uint8(200), rgb_scan(side, seed=i) // np.uint8(4)
                    )
                    save_image(folder / f"{name}_image_{light}.png", rgb)
                save_image(folder / f"{name}_normals.png", rgb_scan(side, seed=i))
                save_image(folder / f"{name}_depth.png", scene.stored)
                bounds = {"normalization": {"min": scene.low, "max": scene.high}}
                (folder / f"{name}_info_depth.yaml").write_text(yaml.safe_dump(bounds))
                np.savetxt(folder / f"{name}_pose.txt", scene.pose)
                if split == "test_private":
                    continue
                kinds = {"bumps": int(bad and i == 2), "colors": 0, "dents": int(bad), "normals": 0}
                said = yaml.safe_dump({"anomalous": int(bad), **kinds})
                (folder / f"{name}_metadata.yaml").write_text(said)
                (folder / f"{name}_obj_params.yaml").write_text("size: 1.0\n")
                for kind, there in {**kinds, "": bad}.items():
                    mask = defect_mask(side, value=255 if there else 0)
                    save_image(folder / f"{name}_{kind}_mask.png".replace("__", "_"), mask)
    return root


def write_ply(
    path: Path,
    points: np.ndarray,
    *,
    form: str = "binary_little_endian",
    scalar: str = "float",
    extra: bool = False,
) -> None:
    """A PLY file; ``extra`` puts colours between the coordinates and other elements around the vertices."""
    order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[form]
    kind = {"float": "f4", "double": "f8", "short": "i2", "uchar": "u1", "int": "i4"}[scalar]
    names = ["x", "red", "y", "z", "quality"] if extra else ["x", "y", "z"]
    kinds = ["u1" if name == "red" else "f8" if name == "quality" else kind for name in names]
    said = {"u1": "uchar", "f8": "double", kind: scalar}
    head = ["ply", f"format {form} 1.0", "comment made by hand"]
    before = after = b""
    if extra:
        head += ["element camera 2", "property float view", "property list uchar int seen"]
        for row in ((0.5, 3, 7, 8, 9), (0.25, 0)):
            if order:
                before += np.array(row[0], order + "f4").tobytes() + bytes([row[1]])
                before += np.array(row[2:], order + "i4").tobytes()
            else:
                before += (" ".join(map(str, row)) + "\n").encode()
    head += [f"element vertex {len(points)}"]
    head += [f"property {said[k]} {name}" for name, k in zip(names, kinds, strict=True)]
    if extra:
        head += ["element face 1", "property list uchar int vertex_indices"]
        after = bytes([1]) + np.array(0, order + "i4").tobytes() if order else b"1 0\n"
    rows = np.zeros(len(points), np.dtype([(n, order + k) for n, k in zip(names, kinds, strict=True)]))
    for axis, column in zip("xyz", points.T, strict=True):
        rows[axis] = column
    if extra:
        rows["red"], rows["quality"] = 201, 0.125
    body = rows.tobytes() if order else "".join(" ".join(map(str, r)) + "\n" for r in rows.tolist()).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([*head, "end_header\n"]).encode() + before + body + after)


CAMERA = {"fx": 90.0, "fy": 88.0, "cx": 23.5, "cy": 20.25, "width": 48, "height": 40}


def seen_cloud(*, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points (P, 3) on a box over ground, one near the centre of each pixel of ``CAMERA``, shuffled; and
    their map (40, 48, 3) float64."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:40, :48] + rng.uniform(-0.3, 0.3, (2, 40, 48))
    z = 0.5 + rng.normal(0, 1e-4, u.shape)
    z[12:28, 14:34] -= 0.05
    grid = np.stack(
        [(u - CAMERA["cx"]) / CAMERA["fx"] * z, (v - CAMERA["cy"]) / CAMERA["fy"] * z, z], axis=-1
    )
    return rng.permutation(grid.reshape(-1, 3)), grid


def write_clouds(
    root: Path, *, kind: str = ".tiff", count: int = 3, separate: bool = False, camera: bool = True
) -> Path:
    """A plain folder of images with clouds beside them, in one folder or in ``rgb/`` and ``xyz/``.

    ``kind`` is ".tiff" or ".npy" for organised maps, ".ply" or "points.npy" for clouds without a grid.
    """
    images, clouds = (root / "rgb", root / "xyz") if separate else (root, root)
    clouds.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        points, grid = seen_cloud(seed=i)
        save_image(images / f"{i:02d}.png", rgb_scan(40, 48, seed=i))
        if kind == ".tiff":
            save_xyz(clouds / f"{i:02d}.tiff", grid.astype(np.float32))
        elif kind == ".ply":
            write_ply(clouds / f"{i:02d}.ply", points)
        else:
            np.save(clouds / f"{i:02d}.npy", grid if kind == ".npy" else points)
    if camera and kind in (".ply", "points.npy"):
        (root / "camera.json").write_text(json.dumps(CAMERA))
    return root
