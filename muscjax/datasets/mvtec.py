"""MVTec AD and its likes: ``<category>/test/<defect>/NNN.png``, ``ground_truth/<defect>/NNN_mask.png``."""

from __future__ import annotations

from pathlib import Path

from muscjax.datasets.tree import (
    IMAGE_SUFFIXES,
    Dataset,
    Modality,
    Problems,
    Scan,
    attach_masks,
    by_stem,
    category_folders,
    files,
    subfolders,
)
from muscjax.errors import InputError

NAME = "mvtec"
EXPECTED = "<category>/test/<defect>/NNN.png and <category>/ground_truth/<defect>/NNN_mask.png"


def _is_category(path: Path) -> bool:
    return any(files(defect, IMAGE_SUFFIXES) for defect in subfolders(path / "test"))


def matches(path: Path) -> bool:
    """Is ``path`` a category of this layout, or a folder of such categories?"""
    return _is_category(path) or any(_is_category(child) for child in subfolders(path))


def read(
    path: Path, *, category: str | None = None, split: str = "test", modality: Modality = "auto"
) -> list[Dataset]:
    """One data set per category; scans ordered by defect and stem. Masks may lack the ending ``_mask``.

    Raises:
      InputError: ``path`` has another layout, no such category, or ``modality`` asks for points.
    """
    if modality in ("points", "both"):
        raise InputError(
            f"{path}: found images only (layout {NAME}), expected XYZ maps for modality {modality}"
        )
    folders = category_folders(path, _is_category, category=category, layout=NAME, expected=EXPECTED)
    return [_read_category(folder, split) for folder in folders]


def _read_category(root: Path, split: str) -> Dataset:
    problems = Problems()
    category = root.resolve().name
    scans: list[Scan] = []
    masks: dict[tuple[str, str], Path] = {}
    for defect in subfolders(root / split):
        images = by_stem(files(defect, IMAGE_SUFFIXES), problems)
        truth = by_stem(files(root / "ground_truth" / defect.name, IMAGE_SUFFIXES), problems, strip="_mask")
        masks.update({(defect.name, stem): mask for stem, mask in truth.items()})
        label = 0 if defect.name == "good" else 1
        scans.extend(
            Scan(category, split, defect.name, stem, image, label=label) for stem, image in images.items()
        )
    scans = attach_masks(scans, masks, problems, where=root / "ground_truth")
    return problems.dataset(root, NAME, category, scans)
