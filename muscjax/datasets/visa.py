"""VisA: the raw download with its CSV split, and the converted tree of the one-class setup.

* raw: ``<object>/Data/Images/{Normal,Anomaly}/NNNN.JPG``, ``<object>/Data/Masks/Anomaly/NNN.png`` and, beside
  the objects, ``split_csv/1cls.csv`` with the columns object, split, label, image, mask;
* converted ("1cls", "visa_pytorch"): the tree of MVTec AD with ``test/{good,bad}`` and ``ground_truth/bad``
  (some copies: ``ok`` and ``ko``), told apart by the names of the objects.

Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer, "SPot-the-Difference Self-Supervised Pre-training for
Anomaly Detection and Segmentation", ECCV 2022.
"""

from __future__ import annotations

from pathlib import Path

from muscjax.datasets import mvtec
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
    read_csv,
    subfolders,
)

NAME = "visa"
EXPECTED = (
    "<object>/Data/Images/{Normal,Anomaly}/NNNN.JPG with split_csv/1cls.csv beside the objects, or "
    "<object>/test/{good,bad}/NNNN.JPG with <object>/ground_truth/bad/NNN.png"
)
OBJECTS = frozenset(
    {"candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"}
    | {"pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"}
)
SPLIT = Path("split_csv", "1cls.csv")
BESIDE = frozenset({"split_csv", "visa_pytorch", "1cls"})  # folders next to raw objects that are none
_LABELS = {"Normal": 0, "Anomaly": 1}


def is_raw(path: Path) -> bool:
    """Does ``path`` hold one object as it was downloaded?"""
    return any(files(path / "Data" / "Images" / name, IMAGE_SUFFIXES) for name in _LABELS)


def _is_converted(path: Path) -> bool:
    folders = {child.name for child in subfolders(path / "test")}
    known = folders <= {"good", "bad"} or folders <= {"ok", "ko"}
    return path.resolve().name in OBJECTS and bool(folders) and known and mvtec.is_category(path)


def matches(path: Path) -> bool:
    """Is ``path`` an object in either form, or a folder of objects and nothing else of that form?"""
    if is_raw(path) or any(is_raw(child) for child in subfolders(path)):
        return True
    categories = [child for child in subfolders(path) if mvtec.is_category(child)]
    return _is_converted(path) or (bool(categories) and all(_is_converted(child) for child in categories))


def read(
    path: Path, *, category: str | None = None, split: str = "test", modality: Modality = "auto"
) -> list[Dataset]:
    """One data set per object; scans ordered by folder and stem.

    Of the raw download the scans that ``1cls.csv`` gives to ``split``; without that file all of them, which
    is told as a problem. Defects have no types: they are ``Anomaly`` (``bad`` in the converted tree).

    Raises:
      InputError: ``path`` has another layout, no such object, or ``modality`` asks for points.
    """
    images_only(path, modality, NAME)
    if is_raw(path) or any(is_raw(child) for child in subfolders(path)):
        folders = category_folders(path, is_raw, category=category, layout=NAME, expected=EXPECTED)
        return [_read_raw(folder, split) for folder in folders]
    return mvtec.read_tree(
        path,
        mvtec.is_category,
        category=category,
        split=split,
        modality=modality,
        layout=NAME,
        expected=EXPECTED,
        good=("good", "ok"),
    )


def _read_raw(root: Path, split: str) -> Dataset:
    problems = Problems()
    name = root.resolve().name
    table = root.resolve().parent / SPLIT
    chosen = _chosen(table, name, split, problems) if table.is_file() else None
    if chosen is None:
        problems.minor.append(f"{table}: no such file; all scans of {name} are used, whatever their split")
    scans: list[Scan] = []
    masks: dict[tuple[str, str], Path] = {}
    held: set[str] = set()
    for folder, label in sorted(_LABELS.items()):
        images = by_stem(files(root / "Data" / "Images" / folder, IMAGE_SUFFIXES), problems)
        truth = by_stem(files(root / "Data" / "Masks" / folder, IMAGE_SUFFIXES), problems, strip="_mask")
        for stem, image in images.items():
            key = f"{folder}/{stem}"
            held.add(key)
            if chosen is not None and key not in chosen:
                truth.pop(stem, None)
                continue
            stated = label if chosen is None else chosen[key]
            if stated != label:
                problems.fatal.append(f"{table}: found {image.name} of {name}/{folder} under the other label")
            scans.append(Scan(name, split if chosen is not None else "", folder, stem, image, label=label))
        masks.update({(folder, stem): mask for stem, mask in truth.items()})
    problems.fatal += [
        f"{root}: found no image {key} of {table.name}" for key in sorted(set(chosen or ()) - held)
    ]
    scans = attach_masks(scans, masks, problems, where=root / "Data" / "Masks")
    return problems.dataset(root, NAME, name, scans)


def _chosen(table: Path, name: str, split: str, problems: Problems) -> dict[str, int]:
    """``Normal/0000`` and the like of an object and split, with the label; none of an unusable file."""
    chosen: dict[str, int] = {}
    for line, row in read_csv(table, ("object", "split", "label", "image"), problems) or ():
        if row["object"] != name or row["split"] != split:
            continue
        image = Path(row["image"].replace("\\", "/"))
        label = {"normal": 0, "anomaly": 1}.get(row["label"].lower())
        key = f"{image.parent.name}/{image.stem}"
        if label is None:
            problems.fatal.append(
                f"{table}: line {line}: label: found {row['label']!r}, expected normal or anomaly"
            )
        elif key in chosen:
            problems.fatal.append(f"{table}: line {line}: found {row['image']} a second time")
        else:
            chosen[key] = label
    return chosen
