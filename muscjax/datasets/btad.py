"""BTAD: ``<01|02|03>/test/{ok,ko}/NNNN.{bmp,png}``, ``ground_truth/ko/NNNN.{png,bmp}``.

Product 01 has BMP images and PNG masks, 02 PNG and PNG, 03 BMP and BMP; image and mask share a stem. Copies
that name the masks as MVTec AD does, ``NNNN_mask.png``, are read as well.

P. Mishra, R. Verk, D. Fornasier, C. Piciarelli, G. L. Foresti, "VT-ADL: A Vision Transformer Network for
Image Anomaly Detection and Localization", ISIE 2021.
"""

from __future__ import annotations

from pathlib import Path

from muscjax.datasets import mvtec
from muscjax.datasets.tree import IMAGE_SUFFIXES, Dataset, Modality, files, subfolders

NAME = "btad"
EXPECTED = "<01|02|03>/test/{ok,ko}/NNNN.{bmp,png} and <01|02|03>/ground_truth/ko/NNNN.{png,bmp}"
GOOD = ("ok",)


def _is_product(path: Path) -> bool:
    defects = {child.name for child in subfolders(path / "test")}
    images = any(files(path / "test" / name, IMAGE_SUFFIXES) for name in ("ok", "ko"))
    return bool(defects) and defects <= {"ok", "ko"} and images


def matches(path: Path) -> bool:
    """Is ``path`` a product of this layout, or a folder of such products?"""
    return _is_product(path) or any(_is_product(child) for child in subfolders(path))


def read(
    path: Path, *, category: str | None = None, split: str = "test", modality: Modality = "auto"
) -> list[Dataset]:
    """One data set per product; scans ordered by defect (``ko``, ``ok``) and stem.

    Raises:
      InputError: ``path`` has another layout, no such product, or ``modality`` asks for points.
    """
    return mvtec.read_tree(
        path,
        _is_product,
        category=category,
        split=split,
        modality=modality,
        layout=NAME,
        expected=EXPECTED,
        good=GOOD,
    )
