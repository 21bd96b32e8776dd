"""Every file of a data set, read once by a few threads: what is there and everything that is wrong with it.

Fatal is what ``muscjax detect`` would stop at; the rest it passes over or works around.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from muscjax import datasets
from muscjax.config import Config, InputConfig
from muscjax.datasets import LAYOUTS, Dataset, Scan, eyecandies, visa
from muscjax.datasets import folder as plain_folder
from muscjax.datasets.loading import Units
from muscjax.datasets.tree import CLOUD_SUFFIXES, IMAGE_SUFFIXES, XYZ_SUFFIXES, Modality, subfolders
from muscjax.errors import InputError

Progress = Callable[[str, int, int], None]  # stage, done, total
Size = tuple[int, int]  # height, width
Item = TypeVar("Item")

_ANY_SIZE = Config(input=InputConfig(map_size=1 << 20))  # of a map, so that the XYZ map alone bounds it
_NAMES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WebP",
    ".npy": "NumPy",
    ".ply": "PLY",
}
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\x93NUMPY", "NumPy"),
    (b"ply\n", "PLY"),
    (b"ply\r", "PLY"),
    (b"GIF8", "GIF"),
)


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that says nothing."""
    del stage, done, total


@dataclasses.dataclass(frozen=True)
class Category:
    """One category after its files were read."""

    root: Path
    layout: str
    name: str
    counts: dict[str, int]  # scans by folder of the defect
    images: int
    clouds: int
    masks: int
    image_sizes: dict[Size, int]  # images by (height, width)
    xyz_sizes: dict[Size, int]
    xyz_side: int | None  # the largest side that maps can have, from the smallest XYZ map
    fatal: tuple[str, ...]
    minor: tuple[str, ...]

    @property
    def scans(self) -> int:
        return sum(self.counts.values())


@dataclasses.dataclass
class _Findings:
    """What one scan's files say."""

    scan: Scan
    image_hw: Size | None = None
    xyz_hw: Size | None = None
    xyz_side: int | None = None
    fatal: list[str] = dataclasses.field(default_factory=list)
    minor: list[str] = dataclasses.field(default_factory=list)


def examine_category(
    dataset: Dataset,
    *,
    split: str = "test",
    modality: Modality = "auto",
    units: Units = "auto",
    progress: Progress = silent,
) -> Category:
    """Read every file of ``dataset``, which was opened with ``strict=False``.

    Args:
      split: folder of the scans, to look for empty folders and passed-over files.
      modality: of the run; "image" does not ask whether image and XYZ map fit each other. The rest is read
        all the same: pictures and the report show what the run leaves aside.
      units: of the XYZ files.
      progress: called as ("reading", done, total).
    """
    workers = min(8, os.cpu_count() or 2)
    found: list[_Findings] = []
    for item in datasets.prefetch(
        lambda scan: _examine_scan(scan, modality, units),
        dataset.scans,
        workers=workers,
        ahead=2 * workers,
    ):
        found.append(item)
        progress("reading", len(found), len(dataset.scans))
    images = {f.scan.image: f.image_hw for f in found if f.scan.image and f.image_hw}
    clouds = {f.scan.xyz: f.xyz_hw for f in found if f.scan.xyz and f.xyz_hw}
    grids = {f.scan.xyz: f.xyz_hw for f in found if f.scan.xyz and f.xyz_hw and _has_grid(f.scan)}
    minor = [problem for problem in dataset.problems if problem not in dataset.fatal]
    minor += [line for item in found for line in item.minor]
    # one camera file may be that of every scan
    fatal = tuple(dict.fromkeys((*dataset.fatal, *(line for item in found for line in item.fatal))))
    minor += [*_odd_sizes(images, "image", fatal), *_odd_sizes(grids, "XYZ map", fatal)]
    minor += [*_empty_folders(dataset, split), *_passed_over(dataset, split)]
    sides = [item.xyz_side for item in found if item.xyz_side is not None]
    return Category(
        root=dataset.root,
        layout=dataset.layout,
        name=dataset.category,
        counts=dict(Counter(scan.defect for scan in dataset.scans)),
        images=sum(scan.image is not None for scan in dataset.scans),
        clouds=sum(scan.xyz is not None for scan in dataset.scans),
        masks=sum(scan.mask is not None for scan in dataset.scans),
        image_sizes=dict(Counter(images.values()).most_common()),
        xyz_sizes=dict(Counter(clouds.values()).most_common()),
        xyz_side=min(sides, default=None),
        fatal=fatal,
        minor=tuple(minor),
    )


def skipped_folders(path: Path, found: Sequence[Dataset]) -> list[str]:
    """One line for each folder beside the categories that holds no scan, and so is passed over."""
    roots = {dataset.root.resolve() for dataset in found}
    if path.resolve() in roots:
        return []
    expected = LAYOUTS[found[0].layout].EXPECTED
    known = visa.BESIDE if found[0].layout == visa.NAME else frozenset()
    return [
        f"{child}: found no scan in this category, expected {expected}"
        for child in subfolders(path)
        if child.resolve() not in roots
        and child.name not in known
        and not (child / plain_folder.RESULTS).is_file()
    ]


def _has_grid(scan: Scan) -> bool:
    """Is the size of the scan's XYZ map that of a file, not of how dense its points are?"""
    return scan.camera is None and scan.cleaning != "none"


def _examine_scan(scan: Scan, modality: Modality, units: Units) -> _Findings:
    found = _Findings(scan)
    if scan.image is not None:
        found.image_hw = _size(datasets.image_hw, scan.image)
        _decoded(scan.image, datasets.load_image, "an image", found)
    if scan.xyz is not None and not _in_parts(scan):
        found.xyz_hw = _size(datasets.scan_xyz_hw, scan)
        what = "a cloud" if scan.xyz.suffix.lower() == ".ply" else "an XYZ map"
        _decoded(scan.xyz, lambda _: datasets.load_scan_xyz(scan, units=units), what, found)
    if scan.mask is not None:
        mask = _decoded(scan.mask, datasets.load_mask, "a mask", found)
        if mask is not None:
            _compare_mask(mask, scan, found)
    source = scan.image or scan.mask
    if modality != "image" and found.xyz_hw and (source is None or _size(datasets.image_hw, source)):
        try:
            found.xyz_side = datasets.working_sizes([scan], _ANY_SIZE, modality="points")[1]
        except InputError as error:
            found.fatal.append(str(error))
    return found


def _in_parts(scan: Scan) -> bool:
    """Does its depth image lack the bounds or the pose? Where that matters it has been told."""
    return scan.cleaning == "eyecandies" and (scan.depth_info is None or scan.pose is None)


def _size(measure: Callable[[Item], Size], item: Item) -> Size | None:
    try:
        return measure(item)
    except InputError:
        return None


def _decoded(path: Path, decode: Callable[[Path], Any], what: str, found: _Findings) -> Any:
    """``decode(path)``, or None and one line of why not; a name that belies the content is told as well."""
    named, content = _NAMES.get(path.suffix.lower()), content_kind(path)
    belied = content is not None and named is not None and content != named
    try:
        result = decode(path)
    except InputError as error:
        line = str(error)
        if _is_empty(path):
            line = f"{path}: found an empty file (0 bytes), expected {what}"
        found.fatal.append(f"{line}; its content is {content}, its name says {named}" if belied else line)
        return None
    if belied:
        found.minor.append(f"{path}: found {content} content, expected {named} as its name says")
    return result


def _compare_mask(mask: Any, scan: Scan, found: _Findings) -> None:
    hw = found.image_hw
    if hw is not None and mask.shape != hw:
        assert scan.image is not None
        found.fatal.append(
            f"{scan.mask}: found a mask of {_by(mask.shape)} pixels, expected {_by(hw)} as {scan.image.name}"
        )
    if scan.label == 0 and mask.any():
        found.minor.append(f"{scan.mask}: found {mask.sum()} defect pixels, expected none in a good scan")
    if scan.label == 1 and not mask.any():
        found.minor.append(f"{scan.mask}: found no defect pixel, expected some in a defective scan")


def _odd_sizes(sizes: dict[Path, Size], what: str, told: Sequence[str]) -> Iterator[str]:
    """Files whose size hardly any other has, unless ``told`` names them; where sizes vary nothing is odd."""
    counted = Counter(sizes.values()).most_common()
    if len(counted) < 2:
        return
    common, count = counted[0]
    odd = [path for path, hw in sizes.items() if hw != common]
    if count < 2 or len(odd) > max(1, len(sizes) // 10):
        return
    for path in odd:
        if any(line.startswith(f"{path}: ") for line in told):
            continue
        yield f"{path}: found an {what} of {_by(sizes[path])}, expected {_by(common)} as in {count} others"


def _empty_folders(dataset: Dataset, split: str) -> Iterator[str]:
    if dataset.layout in (plain_folder.NAME, eyecandies.NAME) or not dataset.scans:
        return
    filled = {scan.defect for scan in dataset.scans}
    for folder in subfolders(dataset.root / split):
        if folder.name not in filled:
            yield f"{folder}: found no scan in this folder"


def _passed_over(dataset: Dataset, split: str) -> Iterator[str]:
    """Images and arrays that are left out because of their ending."""
    tops, kinds = [dataset.root], IMAGE_SUFFIXES | CLOUD_SUFFIXES
    if dataset.layout != plain_folder.NAME:
        tops = [dataset.root / split, dataset.root / "ground_truth", dataset.root / "Data"]
        kinds = IMAGE_SUFFIXES
    for top in tops:
        for place, folders, names in os.walk(top):
            if plain_folder.RESULTS in names:
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            maps_only = Path(place).name == "xyz" and dataset.layout != plain_folder.NAME
            accepted = XYZ_SUFFIXES if maps_only else kinds
            for path in (Path(place, name) for name in sorted(names) if not name.startswith(".")):
                kind = None if path.suffix.lower() in accepted else content_kind(path)
                if kind is not None:
                    endings = " ".join(sorted(accepted))
                    yield f"{path}: found a {kind} file that its ending leaves out, expected {endings}"


def content_kind(path: Path) -> str | None:
    """The file format that the first bytes tell; None where they are none of those known here."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return None
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    if start[:2] == b"BM" and start[6:10] == bytes(4):  # two letters alone are too many texts
        return "BMP"
    return next((kind for signature, kind in _SIGNATURES if start.startswith(signature)), None)


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def _by(hw: tuple[int, ...]) -> str:
    return "×".join(map(str, hw))
