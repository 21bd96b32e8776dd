"""MVTec 3D-AD: ``<category>/<split>/<defect>/{rgb,xyz,gt}/NNN.*``, organised XYZ maps in metres.

P. Bergmann, X. Jin, D. Sattlegger, C. Steger, "The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly
Detection and Localization", VISAPP 2022.
"""

from __future__ import annotations

from pathlib import Path

from muscjax.datasets.tree import (
    IMAGE_SUFFIXES,
    XYZ_SUFFIXES,
    Dataset,
    Modality,
    Problems,
    Scan,
    attach_masks,
    by_stem,
    category_folders,
    files,
    require_pairs,
    subfolders,
)

NAME = "mvtec3d"
EXPECTED = "<category>/test/<defect>/{rgb,xyz,gt}/NNN.{png,tiff,png}"
SPLITS = ("test", "train", "validation")


def _is_category(path: Path) -> bool:
    return any(
        (defect / kind).is_dir()
        for split in SPLITS
        for defect in subfolders(path / split)
        for kind in ("rgb", "xyz")
    )


def matches(path: Path) -> bool:
    """Is ``path`` a category of this layout, or a folder of such categories?"""
    return _is_category(path) or any(_is_category(child) for child in subfolders(path))


def read(
    path: Path, *, category: str | None = None, split: str = "test", modality: Modality = "auto"
) -> list[Dataset]:
    """One data set per category; scans ordered by defect and stem.

    Image and XYZ pair by stem. Where a category holds both, a scan without its partner is a fatal problem,
    unless ``modality`` asks for one of them only.

    Raises:
      InputError: ``path`` has another layout, or no such category.
    """
    folders = category_folders(path, _is_category, category=category, layout=NAME, expected=EXPECTED)
    return [_read_category(folder, split, modality) for folder in folders]


def _read_category(root: Path, split: str, modality: Modality) -> Dataset:
    problems = Problems()
    category = root.resolve().name
    scans: list[Scan] = []
    masks: dict[tuple[str, str], Path] = {}
    for defect in subfolders(root / split):
        images = by_stem(files(defect / "rgb", IMAGE_SUFFIXES), problems)
        clouds = by_stem(files(defect / "xyz", XYZ_SUFFIXES), problems)
        truth = by_stem(files(defect / "gt", IMAGE_SUFFIXES), problems)
        masks.update({(defect.name, stem): mask for stem, mask in truth.items()})
        stems = {"image": set(images), "points": set(clouds)}.get(modality, set(images) | set(clouds))
        scans.extend(
            Scan(
                category=category,
                split=split,
                defect=defect.name,
                stem=stem,
                image=images.get(stem),
                xyz=clouds.get(stem),
                label=0 if defect.name == "good" else 1,
            )
            for stem in sorted(stems)
        )
    if modality == "both" or (
        modality == "auto" and any(s.image for s in scans) and any(s.xyz for s in scans)
    ):
        require_pairs(scans, problems, image="rgb/{stem}.png", xyz="xyz/{stem}.tiff")
    scans = attach_masks(scans, masks, problems, where=root / split)
    return problems.dataset(root, NAME, category, scans)
