"""The scans of a category at working size: cleaned, padded, resized, and the frames that undo it.

What comes out is cached by the content of the files (``making``, ``preprocess.cache``); what the cache lacks
is made by worker processes. Clouds and masks are held, images are read when a batch asks for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from muscjax.datasets import making, workers
from muscjax.datasets.images import Images, prefetch
from muscjax.datasets.loading import Units
from muscjax.datasets.making import Kind, Made, Task, load_truth, padded_xyz, source_hw
from muscjax.datasets.sources import scan_xyz_hw
from muscjax.datasets.tree import Scan
from muscjax.datasets.windows import windowed
from muscjax.errors import InputError
from muscjax.frame import Frame
from muscjax.grids import resample_nearest
from muscjax.preprocess import cache, pad_to_square
from muscjax.preprocess.window import Crop

if TYPE_CHECKING:
    from muscjax.config import Config
    from muscjax.types import Cloud

__all__ = [
    "Fit",
    "Kind",
    "Prepared",
    "Working",
    "frame_of",
    "load_truth",
    "open_working",
    "prepare",
    "source_hw",
    "working_sizes",
]

Fit = Literal["auto", "pad", "stretch"]
Result = TypeVar("Result")
Fresh = TypeVar("Fresh")
_AHEAD = 16  # images that are read beyond a batch: two more batches, so that a slow moment starves nobody


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One scan at working size."""

    image: np.ndarray | None  # (s, s, 3) uint8
    cloud: Cloud | None  # NumPy leaves
    frame: Frame  # working_hw is the size of maps, masks and the cloud's grid
    mask: np.ndarray | None  # (H, W) bool; all False for a good scan, None where the truth is unknown
    foreground: np.ndarray | None  # (H, W) bool, pixels of the cloud
    notes: tuple[str, ...] = ()  # what was skipped, one line each


@dataclasses.dataclass(frozen=True)
class Working:
    """All scans of a category at working size."""

    prepared: tuple[Prepared, ...]  # without images
    images: Images | None  # (N, s, s, 3) uint8, read in batches; None where the run uses points alone
    map_size: int
    notes: tuple[str, ...] = ()  # about the set as a whole, one line each


def frame_of(scan: Scan, map_size: int, *, fit: Fit = "auto") -> Frame:
    """How ``scan`` comes to ``map_size``, from headers alone.

    ``fit`` "pad" centres it in a square of zeros (``preprocess.pad_to_square``), as the MVTec 3D-AD
    preprocessing does; "stretch" changes the aspect ratio, as the released code does with 2D data sets;
    "auto" pads where there is an XYZ map.
    """
    hw = source_hw(scan)
    pad = fit == "pad" or (fit == "auto" and scan.xyz is not None)
    return Frame(
        source_hw=hw,
        working_hw=(map_size, map_size),
        pad=pad_to_square(hw) if pad else (0, 0, 0, 0),
        crop=None,
    )


def working_sizes(
    scans: Iterable[Scan], config: Config, *, modality: Kind, fit: Fit = "auto"
) -> tuple[int, int]:
    """(image side, map side) that all ``scans`` can have, from headers alone.

    The map side is ``map_size`` or ``image_size``, but never above the side of the smallest XYZ map: points
    are not duplicated.

    Raises:
      InputError: headers that cannot be read, or sizes that do not pair; the first, and their number.
    """
    image_size, frames, sides = _headers(list(scans), config, modality=modality, fit=fit)
    del frames
    return image_size, min(sides)


def _headers(
    scans: Sequence[Scan], config: Config, *, modality: Kind, fit: Fit
) -> tuple[int, list[Frame], list[int]]:
    """The image side, and of each scan the frame (at the size wished for) and the map side that it allows."""
    from muscjax.config import DEFAULT_IMAGE_SIZE

    image_size = config.input.image_size or DEFAULT_IMAGE_SIZE
    wished = config.input.map_size or image_size

    def one(scan: Scan) -> tuple[Frame, int] | InputError:
        try:
            frame = frame_of(scan, wished, fit=fit)
            if modality == "image":
                return frame, wished
            return frame, min(wished, padded_xyz(frame, scan_xyz_hw(scan), scan)[0])
        except InputError as error:
            return error

    found = _all_good(list(prefetch(one, scans)))
    return image_size, [frame for frame, _ in found], [side for _, side in found]


def _all_good(found: Sequence[Result | InputError]) -> list[Result]:
    """``found`` without its errors; with any, the first is raised and says how many there are."""
    errors = [item for item in found if isinstance(item, InputError)]
    if errors:
        more = f" (first of {len(errors)} problems)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{more}")
    return [item for item in found if not isinstance(item, InputError)]


def open_working(
    scans: Sequence[Scan],
    config: Config,
    *,
    modality: Kind,
    clean: bool = True,
    units: Units = "auto",
    fit: Fit = "auto",
    cache_dir: Path | None = None,
    processes: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Working:
    """All ``scans`` at working size, as ``prepare`` makes each of them.

    Args:
      scans, config, modality, clean, units, fit, cache_dir: as for ``prepare``.
      processes: that make what the cache lacks, and look for the objects that it lacks; below one, threads
        of this process do. None means ``workers.process_count`` where points are cleaned, and threads
        otherwise: Pillow decodes and resizes without holding Python's lock.
      progress: called as (done, total).

    The cache is pruned after something was written to it (``preprocess.cache.prune``).

    Raises:
      InputError: what is wrong with the first of the scans that cannot be used, and how many there are.
    """
    cache.limit()  # a wrong one is refused before any work is done
    image_size, frames, sides = _headers(scans, config, modality=modality, fit=fit)
    size = min(sides)
    sensor = modality != "image" and config.fpfh.full_resolution
    tasks = [
        Task(
            scan,
            modality,
            dataclasses.replace(frame, working_hw=(size, size)),
            image_size,
            clean=clean,
            units=units,
            sensor=sensor,
            root=cache_dir,
        )
        for scan, frame in zip(scans, frames, strict=True)
    ]
    notes: list[str] = []
    if config.input.window == "object":
        margin, side = config.input.window_margin, config.input.window_side
        step = config.input.image_step
        told = _each(tasks, making.find_extent, making.extent, lambda _, e: (e,), processes, progress)
        tasks, notes = windowed(tasks, [extent for (extent,) in told], margin, side=side, step=step)
        size = tasks[0].frame.working_hw[0]

    pairs = _each(tasks, _found, making.make, lambda t, made: (made, _held(t, made)), processes, progress)
    complaints = list(dict.fromkeys(made.complaint for made, _ in pairs if made.complaint))
    if len(complaints) > 1:
        complaints = [f"{complaints[0]} (first of {len(complaints)})"]
    images = None
    if modality != "points":
        entries = [(task, made) for task, (made, _) in zip(tasks, pairs, strict=True)]
        images = Images(_image, entries, ahead=_AHEAD)
    return Working(tuple(prepared for _, prepared in pairs), images, size, (*notes, *complaints))


def _each(
    tasks: Sequence[Task],
    look: Callable[[Task], Result | None],
    make: Callable[[Task], Fresh],
    hold: Callable[[Task, Fresh], Result],
    processes: int | None,
    progress: Callable[[int, int], None],
) -> list[Result]:
    """What ``look`` finds in the cache, or what ``hold``, here, gets out of what ``make`` makes.

    ``make`` runs in ``processes``, as ``open_working`` says; what the cache holds starts none.

    Raises:
      InputError: what is wrong with the first of the scans, and how many there are.
    """

    def known(task: Task) -> Result | InputError | None:
        try:
            return look(task)
        except cache.Damaged:
            return None
        except InputError as error:
            return error

    found: list[Result | InputError | None] = []
    done = 0
    for item in prefetch(known, tasks):
        found.append(item)
        done += item is not None
        progress(done, len(tasks))
    missing = [i for i, item in enumerate(found) if item is None]
    if processes is None:
        cleaned = any(tasks[i].clean and tasks[i].kind != "image" for i in missing)
        processes = workers.process_count(len(missing)) if cleaned else 0
    making_of = workers.spread(make, [tasks[i] for i in missing], processes=processes)
    with contextlib.closing(making_of):
        for position, made in making_of:
            i = missing[position]
            found[i] = made if isinstance(made, InputError) else hold(tasks[i], made)
            done += 1
            progress(done, len(tasks))
    if missing:
        cache.prune(tasks[0].root)
    return _all_good([item for item in found if item is not None])


def prepare(
    scan: Scan,
    config: Config,
    *,
    modality: Kind,
    clean: bool = True,
    units: Units = "auto",
    cache_dir: Path | None = None,
    map_size: int | None = None,
    crop: Crop | None = None,
    fit: Fit = "auto",
) -> Prepared:
    """Load one scan and bring it to working size (METHOD section 0), or take it from the cache.

    * Points: what is not the object is removed (``clean``) by the scan's own rule (``Scan.cleaning``), the
      map is padded to a square and resized by nearest, source index floor(i · in / out).
    * Image: with points, pixels of the plane and of outliers become zero (``preprocess.removed_pixels``);
      alone, the image is left as it is. Then padded, and resized by Pillow's bicubic (antialiased) to 8 bits.
    * Mask: ``load_mask``.

    Args:
      scan: what to load.
      config: ``input`` holds the sizes; ``fpfh.full_resolution`` asks for the cloud's ``Surface``.
      modality: what to load; what is not asked for is not opened.
      clean: False takes every point with depth for the object.
      units: of the XYZ file.
      cache_dir: root of the cache; None means ``files.cache_root()``.
      map_size: side of the maps; None means ``working_sizes`` of this scan alone.
      crop: the part of the padded source that is used; None: all of it.
      fit: see ``frame_of``.

    Raises:
      InputError: a file that cannot be used, a missing image or XYZ map, or sizes that do not pair.
    """
    image_size, (frame,), (size,) = _headers([scan], config, modality=modality, fit=fit)
    size = map_size or size
    task = Task(
        scan,
        modality,
        dataclasses.replace(frame, working_hw=(size, size), crop=crop),
        image_size,
        clean=clean,
        units=units,
        sensor=modality != "image" and config.fpfh.full_resolution,
        root=cache_dir,
    )
    made = making.find(task) or making.make(task)
    image = None if modality == "points" else _image((task, made))
    prepared = _held(task, made)
    notes = (*prepared.notes, made.complaint) if made.complaint else prepared.notes
    return dataclasses.replace(prepared, image=image, notes=notes)


def _found(task: Task) -> tuple[Made, Prepared] | None:
    """What the cache holds, and as a run holds it.

    Raises:
      InputError, cache.Damaged: as ``making.find`` and ``cache.Entry.array``.
    """
    made = making.find(task)
    return None if made is None else (made, _assembled(task, made))


def _held(task: Task, made: Made) -> Prepared:
    """``_assembled``, of a fresh entry where this one is damaged or gone."""
    return _again(_assembled, task, made)


def _image(item: tuple[Task, Made]) -> np.ndarray:
    """(s, s, 3) uint8, of a fresh entry where this one is damaged or gone."""
    return _again(lambda _, made: made.entry.array("image"), *item)


def _again(read: Callable[[Task, Made], Result], task: Task, made: Made) -> Result:
    try:
        return read(task, made)
    except cache.Damaged:
        fresh = making.make(task)
        try:
            return read(task, fresh)
        except cache.Damaged as error:
            raise InputError(f"{task.scan.name}: its cache entry cannot be read back ({error})") from None


def _assembled(task: Task, made: Made) -> Prepared:
    """The entry without its image, as a run holds it."""
    entry = made.entry
    cloud = foreground = None
    if "points" in entry:
        cloud, foreground = _cloud(entry.array("foreground"), entry.array("points"), task)
    return Prepared(
        image=None,
        cloud=cloud,
        frame=task.frame,
        mask=entry.array("mask") if "mask" in entry else None,
        foreground=foreground,
        notes=(f"{making.about(task.scan)}: {entry.note}",) if entry.note else (),
    )


def _cloud(present: np.ndarray, points: np.ndarray, task: Task) -> tuple[Cloud, np.ndarray]:
    """The cloud, and its pixels as a mask (H, W)."""
    from muscjax.geometry import cloud_from_xyz

    grid = np.zeros((*present.shape, 3), np.float32)
    grid[present] = points
    hw = task.frame.working_hw
    sensor: Mapping[str, Any] = {}
    foreground = present
    if task.sensor:
        sensor = {"sensor_xyz_m": grid, "sensor_foreground": present}
        grid, foreground = resample_nearest(grid, hw), resample_nearest(present, hw)
    return cloud_from_xyz(grid, foreground=foreground, **sensor), foreground
