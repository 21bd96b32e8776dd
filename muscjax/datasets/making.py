"""One scan from its files to a cache entry at working size: what a preprocessing worker does.

Neither this module nor what it imports knows JAX, so that worker processes start fast and stay small.

Geometry: image, XYZ map and mask go through one ``Frame``. Its source is the image (the mask has the same
size); an XYZ map may be smaller or larger as long as its aspect ratio is the image's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from muscjax.datasets.decoding import read_bytes
from muscjax.datasets.loading import Units, image_hw, load_image, load_mask
from muscjax.datasets.sources import load_scan_xyz, scan_xyz_hw
from muscjax.datasets.tree import Scan
from muscjax.errors import InputError
from muscjax.frame import Frame
from muscjax.grids import nearest_sample, resample_nearest
from muscjax.preprocess import (
    CleanConfig,
    Foreground,
    backdrop,
    cache,
    eyecandies,
    find_foreground,
    removed_pixels,
    valid_points,
    window,
)
from muscjax.preprocess.window import Extent

Kind = Literal["image", "points", "both"]  # what a run uses, once "auto" is settled
VERSION = 1  # changes when the same files come out otherwise
_IMAGE_FIELDS = frozenset({"image"})
_OTHER_FIELDS = frozenset({"category", "split", "defect", "stem", "label", "mask"})  # say nothing about XYZ


@dataclasses.dataclass(frozen=True)
class Task:
    """A scan and all that decides how it looks at working size."""

    scan: Scan
    kind: Kind
    frame: Frame
    image_size: int
    clean: bool = True  # find the object by ``scan.cleaning``
    units: Units = "auto"
    sensor: bool = False  # keep the points of the sensor's whole grid, not only those of the working grid
    root: Path | None = None  # of the cache; None: ``files.cache_root()``


@dataclasses.dataclass(frozen=True)
class Made:
    """An entry, with those of these arrays that the task asks for and the scan has.

    ``image`` (s, s, 3) uint8; ``foreground`` (h, w) bool and ``points`` (n, 3) float32 metres of its pixels
    in raster order; ``mask`` (H, W) bool. (h, w) is (H, W), or the sensor's padded grid with ``Task.sensor``.
    """

    entry: cache.Entry
    complaint: str = ""  # why it is held in memory instead of the cache


def find(task: Task) -> Made | None:
    """The entry of ``task`` in the cache; None where it is to be made.

    Raises:
      InputError: a file cannot be read.
    """
    entry = cache.find(_key(task, _digests(task)), task.root)
    return None if entry is None else Made(entry)


def make(task: Task) -> Made:
    """The entry of ``task``, computed from its files and written to the cache.

    Raises:
      InputError: a file cannot be used, is missing, does not pair, or changes meanwhile.
    """
    digests = _digests(task)
    arrays, note, complaint = _arrays(task, digests)
    for name, now in _digests(task).items():
        if now != digests[name]:
            raise InputError(f"{getattr(task.scan, name)}: changed while it was read")
    entry, unwritten = cache.keep(_key(task, digests), cache.pack(arrays, note), task.root)
    return Made(entry, unwritten or complaint)


def extent(task: Task) -> Extent | str | None:
    """Where the object of a scan lies, in pixels of its padded source; cached by the content of its files.

    By depth; by the colour of the photograph where the run uses images alone (``preprocess.backdrop``,
    whatever ``clean`` says).

    Returns:
      None where there is no object. Where the photograph cannot tell, a text that says why.

    Raises:
      InputError: as ``make``.
    """
    key = _extent_key(task)
    with contextlib.suppress(cache.Damaged):
        known = _kept_extent(key, task)
        if known is not None:
            return known[0]
    found, note = _extent_by_colour(task) if task.kind == "image" else (_extent_by_depth(task), "")
    kept = np.asarray(found or (0, 0, 0, 0), np.int64)
    cache.keep(key, cache.pack({"extent": kept}, note), task.root)
    return _placed(kept, note, task)


def find_extent(task: Task) -> tuple[Extent | str | None] | None:
    """What ``extent`` returns, in a tuple; None where the cache does not hold it.

    Raises:
      InputError: a file cannot be read.
      cache.Damaged: the entry cannot be read.
    """
    return _kept_extent(_extent_key(task), task)


def _kept_extent(key: str, task: Task) -> tuple[Extent | str | None] | None:
    entry = cache.find(key, task.root)
    return None if entry is None else (_placed(entry.array("extent"), entry.note, task),)


def _extent_key(task: Task) -> str:
    """By colour it is that of the photograph alone, so that all runs share it."""
    if task.kind == "image":
        return _hash("backdrop", _digest(_image_of(task.scan)), backdrop.VERSION)
    frame = dataclasses.replace(task.frame, working_hw=(0, 0), crop=None)
    return _hash(_key(dataclasses.replace(task, frame=frame, image_size=0), _digests(task)) + "-extent")


def _placed(kept: np.ndarray, note: str, task: Task) -> Extent | str | None:
    """What ``extent`` returns, of a cached entry: in photographs (4,) is without the padding, 0 no object."""
    if note or not kept.any():
        return note or None
    down, _, across, _ = task.frame.pad if task.kind == "image" else (0, 0, 0, 0)
    return int(kept[0]) + down, int(kept[1]) + down, int(kept[2]) + across, int(kept[3]) + across


def _extent_by_depth(task: Task) -> Extent | None:
    """In pixels of the padded source."""
    rgb = _photograph(task) if _by_brightness(task) else None
    xyz = load_scan_xyz(task.scan, units=task.units)
    _, pad = padded_xyz(task.frame, xyz.shape[:2], task.scan)
    mask = np.pad(_object(task, xyz, rgb, _digests(task))[0].mask, pad)
    found = window.extent(mask)
    if found is not None:
        frame = task.frame
        down = (sum(frame.pad[:2]) + frame.source_hw[0]) / mask.shape[0]
        across = (sum(frame.pad[2:]) + frame.source_hw[1]) / mask.shape[1]
        (top, bottom), (left, right) = (
            (math.floor(first * scale), math.ceil(last * scale))
            for first, last, scale in ((*found[:2], down), (*found[2:], across))
        )
        found = (top, bottom, left, right)
    return found


def _extent_by_colour(task: Task) -> tuple[Extent | None, str]:
    """In the photograph's own pixels, and why it cannot tell."""
    mask = backdrop.object_mask(load_image(_image_of(task.scan)))
    return (None, backdrop.NO_BACKDROP) if mask is None else (window.extent(mask), "")


def about(scan: Scan) -> Path | str:
    """What messages about the scan's points name."""
    return scan.xyz or scan.image or scan.name


def _arrays(task: Task, digests: Mapping[str, str]) -> tuple[dict[str, np.ndarray], str, str]:
    """The arrays of an entry, its note, and why a mask was not cached."""
    scan, frame = task.scan, task.frame
    arrays: dict[str, np.ndarray] = {}
    removed, note, complaint = None, "", ""
    rgb = None
    if task.kind != "points" or _by_brightness(task):
        rgb = _photograph(task)
    if task.kind != "image":
        xyz = load_scan_xyz(scan, units=task.units)
        _, pad = padded_xyz(frame, xyz.shape[:2], scan)  # refused before any work is done
        found, complaint = _object(task, xyz, rgb, digests)
        note = found.note
        if task.kind == "both" and task.clean:
            removed = removed_pixels(valid_points(xyz), found.mask)
        grid, present = np.pad(xyz, (*pad, (0, 0))), np.pad(found.mask, pad)
        grid, present = (_cut(each, frame, sensor=task.sensor) for each in (grid, present))
        arrays |= {"foreground": present, "points": grid[present]}
    if task.kind != "points":
        assert rgb is not None
        arrays["image"] = _fitted(rgb, frame, task.image_size, removed=removed)
    mask = load_truth(scan, frame)
    if mask is not None:
        arrays["mask"] = mask
    return arrays, note, complaint


def _photograph(task: Task) -> np.ndarray | None:
    """(h, w, 3) uint8; None where it is missing or broken and the run does not use it for itself."""
    try:
        return load_image(_image_of(task.scan))
    except InputError:
        if task.kind == "points":
            return None
        raise


def _image_of(scan: Scan) -> Path:
    if scan.image is None:
        raise InputError(f"{scan.xyz or scan.name}: found no image to pair with")
    return scan.image


def _by_brightness(task: Task) -> bool:
    """Does finding the object in the XYZ map need the image?"""
    return task.clean and task.kind != "image" and task.scan.cleaning == "eyecandies"


def _object(
    task: Task, xyz: np.ndarray, rgb: np.ndarray | None, digests: Mapping[str, str]
) -> tuple[Foreground, str]:
    """The object's pixels by the scan's rule, remembered for all working sizes; why it was not cached."""
    rule = task.scan.cleaning if task.clean else "none"
    if rule == "none":
        return Foreground(valid_points(xyz), ""), ""
    ground = task.scan.category not in eyecandies.WITHOUT_GROUND
    settings = (CleanConfig(),) if rule == "plane" else (eyecandies.EyecandiesConfig(), ground)
    read = digests if _by_brightness(task) else {k: v for k, v in digests.items() if k not in _IMAGE_FIELDS}
    key = _hash("foreground", {k: v for k, v in read.items() if k != "mask"}, rule, settings, task.units)
    entry = cache.find(key, task.root)
    if entry is not None:
        try:
            return Foreground(entry.array("mask"), entry.note), ""
        except cache.Damaged:
            pass
    if rule == "plane":
        found = find_foreground(xyz)
    else:
        shown = None if rgb is None else resample_nearest(rgb, (xyz.shape[0], xyz.shape[1]))
        found = eyecandies.find_foreground(xyz, shown, ground=ground)
    return found, cache.keep(key, cache.pack({"mask": found.mask}, found.note), task.root)[1]


def _fitted(rgb: np.ndarray, frame: Frame, size: int, *, removed: np.ndarray | None) -> np.ndarray:
    """(size, size, 3) uint8; ``removed`` (h, w), at the XYZ map's own size, becomes zero first."""
    from PIL import Image

    if removed is not None and removed.any():
        rows = nearest_sample(frame.source_hw[0], removed.shape[0])
        columns = nearest_sample(frame.source_hw[1], removed.shape[1])
        rgb = np.where(removed[rows[:, None], columns, None], np.uint8(0), rgb)
    if any(frame.pad):
        top, bottom, left, right = frame.pad
        rgb = np.pad(rgb, ((top, bottom), (left, right), (0, 0)))
    if frame.crop is not None:
        top, left, height, width = frame.crop
        rgb = rgb[top : top + height, left : left + width]
    return np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.BICUBIC))


def _cut(grid: np.ndarray, frame: Frame, *, sensor: bool) -> np.ndarray:
    """A padded XYZ map or its mask (h, w, ...) at working size, or at its own; the frame's crop alone.

    With a crop whose edges are no edges of the map's own pixels, ``sensor`` keeps the pixels that it cuts.
    """
    if frame.crop is None:
        return grid if sensor else resample_nearest(grid, frame.working_hw)
    top, left, height, width = frame.crop
    whole = (sum(frame.pad[:2]) + frame.source_hw[0], sum(frame.pad[2:]) + frame.source_hw[1])
    index = []
    for first, size, target, side, own in zip(
        (top, left), (height, width), frame.working_hw, whole, grid.shape, strict=False
    ):
        if sensor:
            index.append(np.arange(first * own // side, -(-(first + size) * own // side)))
        else:
            index.append((first * target + np.arange(target) * size) * own // (target * side))
    return grid[index[0][:, None], index[1][None, :]]


def load_truth(scan: Scan, frame: Frame | None = None) -> np.ndarray | None:
    """Ground truth at working size, or at the scan's own size where ``frame`` is None.

    (H, W) bool; all False for a good scan without a mask, None where nothing is known.
    """
    if scan.mask is not None:
        return load_mask(scan.mask, frame)
    if scan.label == 0:
        return np.zeros(source_hw(scan) if frame is None else frame.working_hw, bool)
    return None


def source_hw(scan: Scan) -> tuple[int, int]:
    """The scan's own (height, width): the image's, else the mask's, else the XYZ map's; headers only."""
    for path in (scan.image, scan.mask):
        if path is not None:
            try:
                return image_hw(path)
            except InputError:
                # with an XYZ map a run that uses the image will say so, and one of points can go on
                if scan.xyz is None:
                    raise
    if scan.xyz is None:
        raise InputError(f"{scan.name}: found neither an image nor an XYZ map")
    return scan_xyz_hw(scan)


def padded_xyz(
    frame: Frame, hw: tuple[int, ...], scan: Scan
) -> tuple[int, tuple[tuple[int, int], tuple[int, int]]]:
    """Smaller side of the padded XYZ map, and its padding: the frame's, in the XYZ map's own pixels.

    Raises:
      InputError: the aspect ratio of the map is not the source's, to within a pixel.
    """
    height, width = frame.source_hw
    if abs(hw[0] * width - hw[1] * height) > max(height, width):
        raise InputError(
            f"{scan.xyz}: found {hw[0]}×{hw[1]} points, expected the aspect ratio of {height}×{width}"
        )
    top, bottom, left, right = frame.pad
    rows = _scaled_pad(top, bottom, height, hw[0])
    columns = _scaled_pad(left, right, width, hw[1])
    if any(frame.pad):
        # rounding may leave the two sides a pixel apart
        side = max(sum(rows) + hw[0], sum(columns) + hw[1])
        rows = (rows[0], side - rows[0] - hw[0])
        columns = (columns[0], side - columns[0] - hw[1])
    return min(sum(rows) + hw[0], sum(columns) + hw[1]), (rows, columns)


def _scaled_pad(before: int, after: int, source: int, target: int) -> tuple[int, int]:
    return round(before * target / source), round(after * target / source)


def _digests(task: Task) -> dict[str, str]:
    """What the task reads of its scan, by field: the SHA-256 of files, other values as they are written."""
    found = {}
    for field in dataclasses.fields(task.scan):
        name, value = field.name, getattr(task.scan, field.name)
        if name in _IMAGE_FIELDS:
            used = task.kind != "points" or _by_brightness(task)
        else:
            used = name == "mask" or (task.kind != "image" and name not in _OTHER_FIELDS)
        if used and value is not None:
            found[name] = _digest(value) if isinstance(value, Path) else repr(value)
    return found


def _digest(path: Path) -> str:
    """Suffix and content: readers go by both."""
    return path.suffix.lower() + hashlib.sha256(read_bytes(path)).hexdigest()


def _key(task: Task, digests: Mapping[str, str]) -> str:
    settings: tuple[Any, ...] = (task.kind, task.frame, task.image_size, task.scan.label == 0)
    if task.kind != "image":
        ground = task.scan.category not in eyecandies.WITHOUT_GROUND
        rules = (CleanConfig(), eyecandies.EyecandiesConfig(), ground)
        settings += (task.clean, task.units, task.sensor, rules, task.scan.image is None)
    return _hash("scan", digests, settings)


def _hash(*values: Any) -> str:
    return hashlib.sha256(repr((VERSION, *values)).encode()).hexdigest()
