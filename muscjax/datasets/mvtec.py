"""MVTec AD and its likes: ``<category>/test/<defect>/NNN.png``, ``ground_truth/<defect>/NNN_mask.png``.

P. Bergmann, M. Fauser, D. Sattlegger, C. Steger, "MVTec AD: A Comprehensive Real-World Dataset for
Unsupervised Anomaly Detection", CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
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
    images_only,
    subfolders,
)

NAME = "mvtec"
EXPECTED = "<category>/test/<defect>/NNN.png and <category>/ground_truth/<defect>/NNN_mask.png"
GOOD = ("good",)  # folders of scans without a defect


def is_category(path: Path) -> bool:
    """Does ``path`` hold images in folders of ``test``?"""
    return any(files(defect, IMAGE_SUFFIXES) for defect in subfolders(path / "test"))


def matches(path: Path) -> bool:
    """Is ``path`` a category of this layout, or a folder of such categories?"""
    return is_category(path) or any(is_category(child) for child in subfolders(path))


def read(
    path: Path, *, category: str | None = None, split: str = "test", modality: Modality = "auto"
) -> list[Dataset]:
    """One data set per category; scans ordered by defect and stem. Masks may lack the ending ``_mask``.

    Raises:
      InputError: ``path`` has another layout, no such category, or ``modality`` asks for points.
    """
    return read_tree(
        path, is_category, category=category, split=split, modality=modality, layout=NAME, expected=EXPECTED
    )


def read_tree(
    path: Path,
    belongs: Callable[[Path], bool],
    *,
    category: str | None,
    split: str,
    modality: Modality,
    layout: str,
    expected: str,
    good: Collection[str] = GOOD,
) -> list[Dataset]:
    """``read`` for all layouts of this tree: ``belongs`` tells categories, ``good`` names normal ones."""
    images_only(path, modality, layout)
    folders = category_folders(path, belongs, category=category, layout=layout, expected=expected)
    return [read_category(folder, split, layout=layout, good=good) for folder in folders]


def read_category(root: Path, split: str, *, layout: str, good: Collection[str] = GOOD) -> Dataset:
    """The data set of one category, unlabelled masks and scans told as problems."""
    problems = Problems()
    category = root.resolve().name
    scans: list[Scan] = []
    masks: dict[tuple[str, str], Path] = {}
    for defect in subfolders(root / split):
        images = by_stem(files(defect, IMAGE_SUFFIXES), problems)
        truth = by_stem(files(root / "ground_truth" / defect.name, IMAGE_SUFFIXES), problems, strip="_mask")
        masks.update({(defect.name, stem): mask for stem, mask in truth.items()})
        label = int(defect.name not in good)
        scans.extend(
            Scan(category, split, defect.name, stem, image, label=label) for stem, image in images.items()
        )
    scans = attach_masks(scans, masks, problems, where=root / "ground_truth")
    return problems.dataset(root, layout, category, scans)
