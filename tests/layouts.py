"""Writes tiny, faithful copies of the layouts that muscjax reads; for tests only.

The scans are made up here: a tilted ground plane, a box that stands on it, holes in the depth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
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
