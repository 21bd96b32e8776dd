"""Eyecandies: ``<Category>/<split>/data/NN_{image_0,depth,mask}.png`` with bounds and pose of the depth.

Rendered scans. The RGB image is ``image_0`` (all spotlights); the depth image becomes an organised XYZ map by
``NN_info_depth.yaml`` and ``NN_pose.txt`` (``sources.eyecandies_xyz``). ``test_public`` has masks and labels,
``test_private`` has neither.

L. Bonfiglioli, M. Toschi, D. Silvestri, N. Fioraio, D. De Gregorio, "The Eyecandies Dataset for Unsupervised
Multimodal Anomaly Detection and Localization", ACCV 2022.
"""

from __future__ import annotations

from pathlib import Path

from muscjax.datasets.tree import (
    Dataset,
    Modality,
    Problems,
    Scan,
    attach_masks,
    category_folders,
    files,
    has_defect,
    require_pairs,
    subfolders,
)
from muscjax.errors import InputError
from muscjax.texts import MOST_SETTINGS, read_bytes

NAME = "eyecandies"
EXPECTED = "<Category>/test_public/data/NN_{image_0.png,depth.png,info_depth.yaml,pose.txt,mask.png}"
SPLITS = ("test_public", "test_private", "val", "train")
DEFECTS = ("bumps", "colors", "dents", "normals")  # flags in NN_metadata.yaml
IMAGE, DEPTH, MASK, POSE = "_image_0.png", "_depth.png", "_mask.png", "_pose.txt"
INFO = ("_info_depth.yaml", "_info_depth.yml")
METADATA = ("_metadata.yaml", "_metadata.yml")


def _data(root: Path, split: str) -> Path:
    return root / split / "data"


def _is_category(path: Path) -> bool:
    return any(_parts(_data(path, split), IMAGE) or _parts(_data(path, split), DEPTH) for split in SPLITS)


def matches(path: Path) -> bool:
    """Is ``path`` a category of this layout, or a folder of such categories?"""
    return _is_category(path) or any(_is_category(child) for child in subfolders(path))


def read(
    path: Path, *, category: str | None = None, split: str = "test", modality: Modality = "auto"
) -> list[Dataset]:
    """One data set per category; scans ordered by defect and number.

    ``split`` "test" is ``test_public``. Labels and kinds of defects come from ``NN_metadata.yaml``, or from
    whether the mask is empty; where neither is there they are unknown. A scan without its partner, and a
    depth image without bounds or pose, is a fatal problem, unless ``modality`` is "image".

    Raises:
      InputError: ``path`` has another layout, or no such category.
    """
    split = "test_public" if split == "test" else split
    folders = category_folders(path, _is_category, category=category, layout=NAME, expected=EXPECTED)
    return [_read_category(folder, split, modality) for folder in folders]


def _parts(folder: Path, *endings: str) -> dict[str, Path]:
    """Files with one of the endings, by the number in front of it."""
    found: dict[str, Path] = {}
    for path in files(folder, frozenset(Path(ending).suffix for ending in endings)):
        for ending in endings:
            number = path.name.removesuffix(ending)
            if number != path.name and "_" not in number:  # NN_bumps_mask.png is not NN_mask.png
                found[number] = path
    return found


def _read_category(root: Path, split: str, modality: Modality) -> Dataset:
    problems = Problems()
    category, folder = root.resolve().name, _data(root, split)
    images, depths = _parts(folder, IMAGE), _parts(folder, DEPTH)
    infos, poses, metadata = _parts(folder, *INFO), _parts(folder, POSE), _parts(folder, *METADATA)
    masks = _parts(folder, MASK)
    stems = {"image": set(images), "points": set(depths)}.get(modality, set(images) | set(depths))
    scans: list[Scan] = []
    truth: dict[tuple[str, str], Path] = {}
    for stem in sorted(stems):
        label, defect = _label(metadata.get(stem), masks.get(stem), problems)
        if stem in masks:
            truth[defect, stem] = masks[stem]
        scans.append(
            Scan(
                category=category,
                split=split,
                defect=defect,
                stem=stem,
                image=images.get(stem),
                xyz=depths.get(stem),
                label=label,
                cleaning="eyecandies",
                depth_info=infos.get(stem),
                pose=poses.get(stem),
            )
        )
    both = bool(images) and bool(depths)
    if modality == "both" or (modality == "auto" and both):
        require_pairs(scans, problems, image="{stem}" + IMAGE, xyz="{stem}" + DEPTH)
    if modality != "image":
        for scan in scans:
            for part, ending in ((scan.depth_info, INFO[0]), (scan.pose, POSE)):
                if scan.xyz is not None and part is None:
                    problems.fatal.append(f"{scan.xyz}: found no {scan.stem}{ending} that belongs to it")
    truth |= {("", stem): mask for stem, mask in masks.items() if stem not in stems}
    scans = attach_masks(sorted(scans, key=lambda s: (s.defect, s.stem)), truth, problems, where=folder)
    return problems.dataset(root, NAME, category, scans)


def _label(metadata: Path | None, mask: Path | None, problems: Problems) -> tuple[int | None, str]:
    """0, 1 or None, and "good", the kinds of defects, or "" where nothing is known."""
    from muscjax.datasets.cameras import mapping

    if metadata is not None:
        try:
            said = mapping(read_bytes(metadata, most=MOST_SETTINGS), metadata)
        except InputError as error:
            problems.fatal.append(str(error))
            return None, ""
        kinds = [name for name in DEFECTS if said.get(name)]
        if "anomalous" in said or kinds:
            label = int(bool(said.get("anomalous", True)))
            return label, ("_".join(kinds) or "bad") if label else "good"
        problems.minor.append(f"{metadata}: found no entry anomalous; the mask tells the label")
    if mask is not None:
        try:
            label = int(has_defect(mask))
        except InputError as error:
            problems.fatal.append(str(error))
            return None, ""
        return label, "bad" if label else "good"
    return None, ""
