"""A plain folder: images, clouds, or both, flat or nested; labels and masks where there are any.

* An image and a cloud (``.tiff``, ``.npy`` or ``.ply``) belong together by their stem: in one folder
  (``a.png``, ``a.tiff``), or in two beside each other, one with a name of ``IMAGE_FOLDERS`` and one of
  ``CLOUD_FOLDERS`` (``rgb/a.png``, ``xyz/a.tiff``).
* A ``.tiff`` is a cloud in a folder with a name of ``CLOUD_FOLDERS``, beside an image of the same stem and
  another format, or where points are asked for and there is no other image; otherwise it is an image.
* A ``.ply``, or a ``.npy`` of shape (P, 3), has no grid. A camera file (``cameras.NAMES``) in its folder or
  one above pairs it with an image; without it the clouds are used alone.
* ``labels.csv`` with the columns ``path`` and ``label``: path of the image or the cloud relative to the
  folder, with or without ending; 0, good, ok or normal, and 1, bad, ko, ng, defective or anomaly.
* ``masks/`` with the same folders and stems, or stems with ``_mask``. Without ``labels.csv`` a scan with a
  mask is defective and one without is good; where all have one, empty masks are those of good scans.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from muscjax.datasets import cameras, sources
from muscjax.datasets.tree import (
    CLOUD_SUFFIXES,
    IMAGE_SUFFIXES,
    Dataset,
    Modality,
    Problems,
    Scan,
    attach_masks,
    by_stem,
    files,
    has_defect,
    images_only,
    read_csv,
    require_pairs,
    subfolders,
)
from muscjax.errors import InputError

NAME = "folder"
EXPECTED = "images or clouds (.tiff, .npy, .ply), in the folder or below it"
MOST_FOLDERS = 20_000
RESULTS = "run.json"  # what a run leaves in its output folder
LABELS = "labels.csv"
MASKS = ("masks", "mask")
IMAGE_FOLDERS = frozenset({"rgb", "image", "images", "color", "colour", "photo", "photos"})
CLOUD_FOLDERS = frozenset({"xyz", "points", "cloud", "clouds", "pointcloud", "pointclouds", "pcd", "ply"})
_INSIDE = frozenset({"rgb", "xyz", "gt", "ground_truth"})  # of the other layouts
_AMBIGUOUS = frozenset({".tif", ".tiff"})
_GOOD = frozenset({"0", "good", "ok", "normal"})
_BAD = frozenset({"1", "bad", "ko", "ng", "defective", "defect", "anomaly", "anomalous"})


def folders(path: Path) -> list[Path]:
    """``path`` and what lies below it, less the masks and the results of earlier runs."""
    return _below(path, [path / name for name in MASKS])


def _below(path: Path, left_out: list[Path]) -> list[Path]:
    """Each folder once, by the first of its names: links may lead in circles, or double at every level."""
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        about = folder.stat()
        place = about.st_dev, about.st_ino
        if place in seen or folder in left_out or (folder / RESULTS).is_file():
            continue
        seen.add(place)
        found.append(folder)
        if len(found) > MOST_FOLDERS:
            raise InputError(f"{path}: found more than {MOST_FOLDERS} folders, expected a data set")
        waiting += reversed(subfolders(folder))
    return found


def matches(path: Path) -> bool:
    """Is there any image or cloud in or below ``path``, and is it not the inside of another layout?"""
    every = folders(path)
    if path.resolve().name in _INSIDE or any(
        folder.name in _INSIDE and not (folder.parent == path and folder.name in ("rgb", "xyz"))
        for folder in every[1:]
    ):
        return False
    if (path / "Images").is_dir() and (path / "Masks").is_dir():  # of VisA
        return False
    found = [file for folder in every for file in files(folder, IMAGE_SUFFIXES | CLOUD_SUFFIXES | {".yaml"})]
    if any(file.name.endswith("_info_depth.yaml") for file in found):  # of Eyecandies
        return False
    return any(file.suffix.lower() != ".yaml" for file in found)


def read(
    path: Path, *, category: str | None = None, split: str = "test", modality: Modality = "auto"
) -> list[Dataset]:
    """One data set of everything, ordered by relative path; ``split`` has no meaning here.

    The folder's own name is the category, the path between folder and file takes the place of the defect.

    Raises:
      InputError: nothing in it, another ``category`` than the folder, or ``modality`` asks for clouds that
        are not there.
    """
    name = path.resolve().name
    if category not in (None, "all", name):
        raise InputError(f"category: found {category!r}, expected {name} or all (layout {NAME})")
    problems = Problems()
    scans = _pair(path, name, modality, problems)
    if not any(scan.xyz for scan in scans):
        images_only(path, modality, NAME)
    if modality in ("image", "points"):
        scans = [s for s in scans if (s.image if modality == "image" else s.xyz) is not None]
    if not scans:
        raise InputError(f"{path}: found no image, expected {EXPECTED}")
    scans = _with_cameras(path, scans, modality, problems)
    both = any(scan.image for scan in scans) and any(scan.xyz for scan in scans)
    if modality == "both" or (modality == "auto" and both):
        require_pairs(scans, problems, image="image {stem}", xyz="cloud {stem}")
    scans = _with_truth(path, scans, problems)
    return [problems.dataset(path, NAME, name, scans)]


def _pair(path: Path, name: str, modality: Modality, problems: Problems) -> list[Scan]:
    """All scans, image and cloud together where they have one stem."""
    images: dict[Path, dict[str, Path]] = {}
    clouds: dict[Path, dict[str, Path]] = {}
    for folder in folders(path):
        here = _sorted_out(folder, points=modality == "points")
        for kind, found, names in (
            ("image", images, IMAGE_FOLDERS),
            ("cloud", clouds, CLOUD_FOLDERS),
        ):
            stems = by_stem(here[kind], problems)
            if not stems:
                continue
            place = _common(folder, path) if folder.name in names else folder
            if place in found:
                problems.fatal.append(f"{folder}: found a second folder of {kind}s in {place}, expected one")
            else:
                found[place] = stems
    scans = []
    for place in sorted({*images, *clouds}):
        defect = "" if place == path else place.relative_to(path).as_posix()
        pictures, points = images.get(place, {}), clouds.get(place, {})
        scans += [
            Scan(name, "", defect, stem, pictures.get(stem), points.get(stem))
            for stem in sorted({*pictures, *points})
        ]
    return scans


def _common(folder: Path, top: Path) -> Path:
    """Where the scans of ``rgb/`` or ``xyz/`` belong: the folder above, if it holds the partner as well."""
    beside = {child.name for child in subfolders(folder.parent)} if folder != top else set()
    return folder.parent if beside & IMAGE_FOLDERS and beside & CLOUD_FOLDERS else folder


def _sorted_out(folder: Path, *, points: bool) -> dict[str, list[Path]]:
    """The images and the clouds of one folder."""
    images = files(folder, IMAGE_SUFFIXES - _AMBIGUOUS)
    clouds = files(folder, CLOUD_SUFFIXES - _AMBIGUOUS)
    unclear = files(folder, _AMBIGUOUS)
    stems = {image.stem for image in images}
    named = (points and not clouds) or folder.name in CLOUD_FOLDERS
    if any(file.stem in stems for file in unclear) or (named and not images):
        clouds = sorted(clouds + unclear)
    else:
        images = sorted(images + unclear)
    return {"image": images, "cloud": clouds}


def _with_cameras(path: Path, scans: list[Scan], modality: Modality, problems: Problems) -> list[Scan]:
    """Clouds without a grid get their camera, or lose their image."""
    arrays = [scan.xyz for scan in scans if scan.xyz is not None and scan.xyz.suffix.lower() == ".npy"]
    # the first one speaks for all: files are opened when they are loaded
    gridless = {".ply", ".npy"} if arrays and sources.is_unorganised(arrays[0]) else {".ply"}
    result, alone = [], []
    for scan in scans:
        if modality == "image" or scan.xyz is None or scan.xyz.suffix.lower() not in gridless:
            result.append(scan)
            continue
        camera = _camera(scan.xyz.parent, path, problems)
        if camera is None and scan.image is not None:
            alone.append(scan)
        # its edge is the part's own: a plane there is no ground
        cleaning = "none" if camera is None else "plane"
        image = scan.image if camera is not None else None
        result.append(dataclasses.replace(scan, camera=camera, cleaning=cleaning, image=image))
    if alone:
        text = (
            f"{alone[0].xyz}: found a cloud without a grid, no {cameras.NAMES[0]} to pair it with an image"
            + (f", as {len(alone) - 1} others" if len(alone) > 1 else "")
        )
        if modality == "both":
            problems.fatal.append(f"{text}, expected a camera file beside the clouds or above them")
            return scans
        problems.minor.append(f"{text}; points only, the images are left out")
    if any(scan.xyz and scan.image is None and scan.camera is None for scan in result) and alone:
        result = [scan for scan in result if scan.xyz is not None]
    return result


def _camera(folder: Path, top: Path, problems: Problems) -> Path | None:
    """The camera file of the nearest folder, from ``folder`` up to ``top``."""
    while True:
        found = [folder / name for name in cameras.NAMES if (folder / name).is_file()]
        if len(found) > 1:
            line = f"{found[1]}: found a second camera beside {found[0].name}, expected one"
            if line not in problems.fatal:
                problems.fatal.append(line)
        if found or folder == top or folder == folder.parent:
            return found[0] if found else None
        folder = folder.parent


def _with_truth(path: Path, scans: list[Scan], problems: Problems) -> list[Scan]:
    """Labels of ``labels.csv`` and masks of ``masks/``."""
    table = path / LABELS
    top = next((path / name for name in MASKS if (path / name).is_dir()), None)
    masks: dict[tuple[str, str], Path] = {}
    for folder in _below(top, []) if top is not None else ():
        assert top is not None
        defect = "" if folder == top else folder.relative_to(top).as_posix()
        truth = by_stem(files(folder, IMAGE_SUFFIXES), problems, strip="_mask")
        masks |= {(defect, stem): mask for stem, mask in truth.items()}
    if table.is_file():
        scans = _labelled(table, scans, problems)
    elif masks:
        held = [masks.get((scan.defect, scan.stem)) for scan in scans]
        every = all(mask is not None for mask in held)
        scans = [
            dataclasses.replace(scan, label=_from_mask(mask, problems) if every else int(mask is not None))
            for scan, mask in zip(scans, held, strict=True)
        ]
    if top is None:
        return scans
    scans = attach_masks(scans, masks, problems, where=top)
    # a mask has the pixels of an image, and a cloud without a grid has none
    return [dataclasses.replace(s, mask=None) if s.cleaning == "none" else s for s in scans]


def _from_mask(mask: Path | None, problems: Problems) -> int | None:
    if mask is None:
        return None
    try:
        return int(has_defect(mask))
    except InputError as error:
        problems.fatal.append(str(error))
        return None


def _labelled(table: Path, scans: list[Scan], problems: Problems) -> list[Scan]:
    """The scans with the labels of a table; rows without a scan and scans without a row are problems."""
    place = {f"{scan.defect}/{scan.stem}".lstrip("/"): i for i, scan in enumerate(scans)}
    for i, scan in enumerate(scans):
        for file in (scan.image, scan.xyz):
            if file is not None:
                relative = file.relative_to(table.parent)
                place |= {relative.as_posix(): i, relative.with_suffix("").as_posix(): i}
    labels: dict[int, int] = {}
    for line, row in read_csv(table, ("path", "label"), problems) or ():
        where, said = row["path"].replace("\\", "/").removeprefix("./"), row["label"].lower()
        i = place.get(where)
        if i is None:
            problems.minor.append(f"{table}: line {line}: found {row['path']!r}, which is no scan here")
        elif i in labels:
            problems.fatal.append(f"{table}: line {line}: found {row['path']!r} a second time")
        elif said in _GOOD | _BAD:
            labels[i] = int(said in _BAD)
        elif said:
            problems.fatal.append(f"{table}: line {line}: label: found {row['label']!r}, expected 0 or 1")
    missing = [scan for i, scan in enumerate(scans) if i not in labels]
    if missing:
        first = missing[0].image or missing[0].xyz
        problems.minor.append(
            f"{table}: found no label of {len(missing)} of {len(scans)} scans (the first is {first})"
        )
    return [dataclasses.replace(scan, label=labels.get(i)) for i, scan in enumerate(scans)]
