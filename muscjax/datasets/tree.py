"""What every layout shares: scans, data sets, and looking at folders without opening a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from muscjax.errors import InputError, one_line
from muscjax.texts import read_table

Modality = Literal["auto", "image", "points", "both"]
Cleaning = Literal["plane", "eyecandies", "none"]  # how ``preprocess`` finds the object in an XYZ map

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
XYZ_SUFFIXES = frozenset({".tif", ".tiff", ".npy"})
CLOUD_SUFFIXES = XYZ_SUFFIXES | {".ply"}


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scan on disk; nothing of it is loaded."""

    category: str
    split: str  # "" where the layout has none
    defect: str  # folder of the defect type, "" where the layout has none
    stem: str
    image: Path | None = None
    xyz: Path | None = None
    mask: Path | None = None
    label: int | None = None  # 0 good, 1 defective, None unknown
    cleaning: Cleaning = "plane"
    camera: Path | None = None  # JSON or YAML, of the unorganised cloud in ``xyz``
    depth_info: Path | None = None  # YAML, the bounds of the depth image in ``xyz`` (Eyecandies)
    pose: Path | None = None  # 4×4 text, of the camera behind that depth image

    @property
    def xyz_files(self) -> tuple[Path, ...]:
        """All files that determine the XYZ map, ``xyz`` first; none where there is no map."""
        return tuple(path for path in (self.xyz, self.camera, self.depth_info, self.pose) if path is not None)

    @property
    def name(self) -> str:
        """A relative path without suffix, unique in the data set: ``cable_gland/test/bent/000``."""
        return "/".join(part for part in (self.category, self.split, self.defect, self.stem) if part)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The scans of one category, in a fixed order, and everything that is wrong with their files."""

    root: Path
    layout: str
    category: str
    scans: tuple[Scan, ...]
    problems: tuple[str, ...] = ()  # one line each, fatal ones first
    fatal: tuple[str, ...] = ()  # those of ``problems`` with which no run is possible

    @property
    def has_images(self) -> bool:
        return all(scan.image is not None for scan in self.scans)

    @property
    def has_points(self) -> bool:
        return all(scan.xyz is not None for scan in self.scans)


def with_fewest(dataset: Dataset, fewest: int) -> Dataset:
    """The data set, with a fatal problem where it has fewer scans than that."""
    if len(dataset.scans) >= fewest:
        return dataset
    found = "1 scan" if dataset.scans else "no scan"
    why = ": they are scored against each other" if fewest > 1 else ""
    fatal = (*dataset.fatal, f"{dataset.root}: found {found}, expected at least {fewest}{why}")
    minor = dataset.problems[len(dataset.fatal) :]
    return dataclasses.replace(dataset, problems=(*fatal, *minor), fatal=fatal)


class Problems:
    """Collects what is wrong while a layout is read, so that the user hears of all of it at once."""

    def __init__(self) -> None:
        self.fatal: list[str] = []
        self.minor: list[str] = []

    def dataset(self, root: Path, layout: str, category: str, scans: Iterable[Scan]) -> Dataset:
        scans = tuple(scans)
        fatal, minor = (tuple(map(one_line, lines)) for lines in (self.fatal, self.minor))
        return Dataset(root, layout, category, scans, (*fatal, *minor), fatal)


def subfolders(path: Path) -> list[Path]:
    """Visible folders in ``path``, sorted by name; none where ``path`` is no folder."""
    if not path.is_dir():
        return []
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def files(path: Path, suffixes: frozenset[str]) -> list[Path]:
    """Visible files in ``path`` with one of the suffixes, in any case, sorted by name."""
    if not path.is_dir():
        return []
    return sorted(
        child
        for child in path.iterdir()
        if child.suffix.lower() in suffixes and not child.name.startswith(".") and child.is_file()
    )


def by_stem(paths: Iterable[Path], problems: Problems, *, strip: str = "") -> dict[str, Path]:
    """Files by stem, less the ending ``strip``; a second file of the same stem is a fatal problem."""
    found: dict[str, Path] = {}
    for path in paths:
        stem = path.stem.removesuffix(strip) if strip else path.stem
        if stem in found:
            problems.fatal.append(
                f"{path}: found the same stem as {found[stem].name}, expected one file per stem"
            )
        else:
            found[stem] = path
    return found


def images_only(path: Path, modality: Modality, layout: str) -> None:
    """InputError where ``modality`` asks for points of a layout (or a folder) that has none."""
    if modality in ("points", "both"):
        raise InputError(
            f"{path}: found images only (layout {layout}), expected XYZ maps for modality {modality}"
        )


def read_csv(
    path: Path, columns: Sequence[str], problems: Problems
) -> list[tuple[int, dict[str, str]]] | None:
    """The rows of a small CSV file with a header, each with its line number; or None and a fatal problem.

    ``columns`` must be there; more may be. Values are stripped, missing ones are "".
    """
    try:
        names, rows = read_table(path)
    except InputError as error:
        problems.fatal.append(str(error))
        return None
    if not set(columns) <= {name.strip().lower() for name in names}:
        found = ",".join(names)[:80]
        problems.fatal.append(f"{path}: found the columns {found!r}, expected {','.join(columns)}")
        return None
    return [
        (line, {name.strip().lower(): value.strip() for name, value in row.items()}) for line, row in rows
    ]


def has_defect(mask: Path) -> bool:
    """Is any pixel of a mask set? Reads the file; InputError where that fails."""
    from muscjax.datasets.loading import load_mask

    return bool(load_mask(mask).any())


def require_pairs(scans: Iterable[Scan], problems: Problems, *, image: str, xyz: str) -> None:
    """A fatal problem for each scan without its partner; ``{stem}`` stands in the names of the missing."""
    for scan in scans:
        if scan.xyz is None:
            name = xyz.format(stem=scan.stem)
            problems.fatal.append(f"{scan.image}: found no {name} to pair with")
        if scan.image is None:
            name = image.format(stem=scan.stem)
            problems.fatal.append(f"{scan.xyz}: found no {name} to pair with")


def attach_masks(
    scans: list[Scan], masks: dict[tuple[str, str], Path], problems: Problems, *, where: Path
) -> list[Scan]:
    """Scans with their masks, by (defect, stem); missing and left-over masks are problems, not fatal."""
    masks = dict(masks)
    matched = [dataclasses.replace(scan, mask=masks.pop((scan.defect, scan.stem), None)) for scan in scans]
    missing = [scan for scan in matched if scan.label == 1 and scan.mask is None]
    if missing and not any(scan.mask for scan in matched):
        problems.minor.append(f"{where}: found no masks; pixel metrics are left out")
    else:
        for scan in missing:
            problems.minor.append(f"{scan.image or scan.xyz}: found no mask of this defective scan")
    problems.minor.extend(f"{path}: found a mask without a scan" for path in masks.values())
    return matched


def category_folders(
    path: Path, is_category: Callable[[Path], bool], *, category: str | None, layout: str, expected: str
) -> list[Path]:
    """``path`` itself, or its children that are categories; ``category`` (not None, not "all") picks one.

    Raises:
      InputError: nothing under ``path`` has this layout, or ``category`` is not among what has.
    """
    folders = [path] if is_category(path) else [child for child in subfolders(path) if is_category(child)]
    if not folders:
        raise InputError(f"{path}: found no data set of layout {layout}, expected {expected}")
    if category is None or category == "all":
        return folders
    chosen = [folder for folder in folders if folder.resolve().name == category]
    if not chosen:
        names = ", ".join(folder.resolve().name for folder in folders)
        raise InputError(f"category: found {category!r}, expected one of: {names}, all")
    return chosen
