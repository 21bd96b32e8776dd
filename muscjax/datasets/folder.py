"""A plain folder of images, flat or nested; nothing is known about them."""

from __future__ import annotations

from pathlib import Path

from muscjax.datasets.tree import (
    IMAGE_SUFFIXES,
    Dataset,
    Modality,
    Problems,
    Scan,
    by_stem,
    files,
    subfolders,
)
from muscjax.errors import InputError

NAME = "folder"
EXPECTED = "images, in the folder or below it"
RESULTS = "run.json"  # what a run leaves in its output folder


def _folders(path: Path) -> list[Path]:
    """``path`` and what lies below it, less the results of earlier runs."""
    if (path / RESULTS).is_file():
        return []
    return [path, *(below for child in subfolders(path) for below in _folders(child))]


def matches(path: Path) -> bool:
    """Is there any image in or below ``path``, and is it not the inside of another layout?"""
    folders = _folders(path)
    if any(folder.name in ("rgb", "xyz", "gt", "ground_truth") for folder in folders):
        return False
    return any(files(folder, IMAGE_SUFFIXES) for folder in folders)


def read(
    path: Path, *, category: str | None = None, split: str = "test", modality: Modality = "auto"
) -> list[Dataset]:
    """One data set of all images, labels unknown, ordered by relative path; ``split`` has no meaning here.

    The folder's own name is the category, the path between folder and image takes the place of the defect.

    Raises:
      InputError: no image at all, another ``category`` than the folder, or ``modality`` asks for points.
    """
    name = path.resolve().name
    if modality in ("points", "both"):
        raise InputError(
            f"{path}: found images only (layout {NAME}), expected XYZ maps for modality {modality}"
        )
    if category not in (None, "all", name):
        raise InputError(f"category: found {category!r}, expected {name} or all (layout {NAME})")
    problems = Problems()
    scans: list[Scan] = []
    for folder in _folders(path):
        defect = "" if folder == path else folder.relative_to(path).as_posix()
        images = by_stem(files(folder, IMAGE_SUFFIXES), problems)
        scans.extend(Scan(name, "", defect, stem, image) for stem, image in images.items())
    if not scans:
        raise InputError(f"{path}: found no image, expected {EXPECTED}")
    return [problems.dataset(path, NAME, name, scans)]
