"""Metrics of anomaly maps that anyone made: one file per scan, held against a data set's ground truth.

The maps are found by the names of the scans, in the folders that the MVTec AD and MVTec 3D-AD evaluations
read (``<maps>/<category>/test/<defect>/NNN.tiff``) or in simpler ones, and are evaluated at the size of the
ground truth, as those evaluations do.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muscjax import datasets, metrics
from muscjax.config import released
from muscjax.console import Observer
from muscjax.datasets import Dataset, Scan
from muscjax.datasets.decoding import decode_npy, decode_tiff, open_image, read_bytes, readable
from muscjax.datasets.loading import Units
from muscjax.errors import InputError, shown
from muscjax.preprocess.window import Crop
from muscjax.texts import read_table

# A file of numbers goes before a picture of the same name.
SUFFIXES = (".tiff", ".tif", ".npy", ".png")
SCHEMES: tuple[tuple[str, Callable[[Scan], str]], ...] = (
    ("<category>/test/<defect>/NNN", lambda scan: scan.name),
    ("<category>/<defect>/NNN", lambda scan: _joined(scan.category, scan.defect, scan.stem)),
    ("test/<defect>/NNN", lambda scan: _joined(scan.split, scan.defect, scan.stem)),
    ("<defect>/NNN", lambda scan: _joined(scan.defect, scan.stem)),
    ("<category>/NNN", lambda scan: _joined(scan.category, scan.stem)),
    ("NNN", lambda scan: scan.stem),
)


@dataclasses.dataclass(frozen=True)
class Given:
    """What is to be evaluated, and how."""

    maps: Path  # folder of maps, or of a run, which holds them in maps/
    truth: Path  # the data set
    layout: str = "auto"
    category: str | None = None
    split: str = "test"
    scores: Path | None = None  # CSV with path and score; None: the maximum of each map
    strict_size: bool = False  # refuse maps of another size than their masks, instead of resizing them
    intervals: bool = True
    clean: bool = True  # of the foreground: without the ground plane and outliers
    units: Units = "auto"


class Unusable(InputError):
    """Maps that are missing or cannot be used; ``problems`` has one line for each of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = f" (first of {len(problems)} problems)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)


def evaluate(given: Given, observe: Observer) -> tuple[dict[str, metrics.Metrics], list[str]]:
    """`metrics.summary` of each category that has maps, and remarks, one line each.

    Raises:
      Unusable: maps or scores that are missing, unreadable, not finite, ambiguous or of a wrong size; all of
        them.
      InputError: no such data set, no labels, no maps at all.
    """
    found = datasets.open_dataset(
        given.truth, layout=given.layout, category=given.category, split=given.split, strict=False
    )
    scans = [scan for dataset in found for scan in dataset.scans]
    if not scans:
        raise InputError(f"{given.truth}: found no scan in the split {given.split!r}")
    unlabelled = [scan.name for scan in scans if scan.label is None]
    if unlabelled:
        raise InputError(
            f"{given.truth}: {unlabelled[0]} has no label, expected a data set with ground truth"
        )
    notes = [problem for dataset in found for problem in dataset.problems]
    paths, left = find_maps(given.maps, scans)
    if left:
        notes.append(f"{left[0]}: belongs to no scan ({len(left)} such files are left out)")
    problems: list[str] = []
    kept = [dataset for dataset in found if any(paths[scan.name] for scan in dataset.scans)]
    used = [scan for dataset in kept for scan in dataset.scans]
    scores = None if given.scores is None else read_scores(given.scores, used, problems)
    for dataset in found:
        if dataset not in kept:
            notes.append(f"{dataset.category}: found no map, the category is left out")
    total, done = sum(len(dataset.scans) for dataset in kept), 0
    out = {}
    for dataset in kept:
        loaded = []
        for item in datasets.prefetch(lambda scan: _load(scan, paths[scan.name], given), dataset.scans):
            done += 1
            observe("reading", done, total)
            problems += item.problems
            notes += item.notes
            loaded.append(item)
        if not problems:
            notes += _resized(dataset, loaded)
            out[dataset.category] = _summary(dataset, loaded, scores, given)
            observe("metrics", len(out), len(kept))
    if problems:
        raise Unusable(problems)
    return out, notes


def find_maps(folder: Path, scans: Sequence[Scan]) -> tuple[dict[str, list[Path]], list[Path]]:
    """The files of each scan by `Scan.name`, best first, and the files that belong to none.

    The scheme of `SCHEMES` that finds the most scans is taken, of those in which every scan has a name of
    its own. A folder with ``run.json`` is a run's, and its ``maps`` are meant.

    Raises InputError: no such folder, no scan found, or names that stand for several scans.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of maps")
    if (folder / "run.json").is_file() and (folder / "maps").is_dir():
        folder = folder / "maps"
    files: dict[str, list[Path]] = {}
    for path in _files(folder):
        files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    best: tuple[int, dict[str, str]] = (0, {})
    ambiguous = None
    for scheme, name_of in SCHEMES:
        names = {scan.name: name_of(scan) for scan in scans}
        hits = sum(name in files for name in names.values())
        if len(set(names.values())) < len(scans):
            ambiguous = ambiguous or (scheme if hits else None)
        elif hits > best[0]:
            best = hits, names
    if not best[0]:
        example = f"{SCHEMES[0][0]}.tiff, such as {scans[0].name}.tiff"
        if ambiguous:
            raise InputError(f"{folder}: names like {ambiguous} stand for several scans, expected {example}")
        raise InputError(f"{folder}: found no map of any of the {len(scans)} scans, expected {example}")
    claimed = set(best[1].values())
    order = {suffix: i for i, suffix in enumerate(SUFFIXES)}
    return (
        {
            scan: sorted(files.get(name, []), key=lambda path: order[path.suffix.lower()])
            for scan, name in best[1].items()
        },
        [path for name, group in files.items() if name not in claimed for path in group],
    )


def load_map(path: Path) -> np.ndarray:
    """(H, W) real numbers of a TIFF, ``.npy`` or grey PNG (8 or 16 bit); axes of length 1 are dropped.

    Raises InputError: unreadable, a colour picture, another number of axes, NaN or infinity.
    """
    with readable(path, "map"):
        values = _stored(path)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "fiub":
        raise InputError(
            f"{path}: found {values.dtype} of shape {values.shape}, expected (height, width) scores"
        )
    with np.errstate(over="ignore"):  # what is not finite as float32 would become so when it is resized
        bad = np.count_nonzero(~np.isfinite(values.astype(np.float32)))
    if bad:
        raise InputError(f"{path}: found NaN or infinity in {bad} pixels, expected finite scores")
    return values.astype(np.result_type(values.dtype, np.float32), copy=False)


def fit_map(values: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """(H, W) to ``hw``, bilinear between pixel centres (with a low pass where it shrinks); float32."""
    from PIL import Image

    if values.shape == hw:
        return values
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize((hw[1], hw[0]), Image.Resampling.BILINEAR))


def foreground(
    scan: Scan,
    *,
    map_size: int | None = None,
    crop: Crop | None = None,
    clean: bool = True,
    units: Units = "auto",
) -> np.ndarray | None:
    """Pixels of the object, from the scan's depth; None where it has none.

    Returns (H, W) bool, square and of side ``map_size``, which shows ``crop`` of the padded source where that
    is given; or in the geometry of the source where ``map_size`` is None.
    Raises InputError where the XYZ map cannot be used.
    """
    if scan.xyz is None:
        return None
    config = released()
    config = dataclasses.replace(config, fpfh=dataclasses.replace(config.fpfh, full_resolution=False))
    frame = datasets.frame_of(scan, map_size or 1)
    top, bottom, left, _ = frame.pad
    height, width = frame.source_hw
    side = map_size or top + height + bottom
    found = datasets.prepare(
        scan,
        config,
        modality="points",
        clean=clean,
        units=units,
        map_size=side,
        crop=crop if map_size else None,
    ).foreground
    assert found is not None
    return found if map_size else found[top : top + height, left : left + width]


def read_scores(path: Path, scans: Sequence[Scan], problems: list[str]) -> dict[str, float]:
    """Scores by `Scan.name` from a CSV with the columns ``path`` and ``score``, as ``detect`` writes it.

    A path is a scan's when it is its image or XYZ file, or ends with the scan's name, folders ``rgb`` and
    ``xyz`` and the suffix left out. The closest kind of match counts; rows of it that differ in their score,
    and what is missing or no number, become a line of ``problems``.
    Raises InputError: unreadable, or without these columns.
    """
    by_file: dict[str, set[str]] = {}
    by_name: dict[tuple[str, ...], set[str]] = {}
    by_end: dict[tuple[str, ...], set[str]] = {}
    for row in score_table(path):
        stated = row["path"].removeprefix("'")
        by_file.setdefault(os.path.realpath(stated), set()).add(row["score"])
        parts = named_parts(stated)
        by_name.setdefault(parts, set()).add(row["score"])
        for length in range(1, min(len(parts), 5) + 1):
            by_end.setdefault(parts[-length:], set()).add(row["score"])
    out: dict[str, float] = {}
    for scan in scans:
        files = [os.path.realpath(file) for file in (scan.image, scan.xyz) if file is not None]
        name = tuple(scan.name.split("/"))
        texts = next((by_file[file] for file in files if file in by_file), None)
        texts = texts or by_name.get(name) or by_end.get(name) or {None}
        if len(texts) > 1:
            problems.append(f"{path}: found {len(texts)} scores of {scan.name}, expected one")
            continue
        (text,) = texts
        try:
            value = float(text) if text is not None else None
        except ValueError:
            value = np.nan
        if value is None:
            problems.append(f"{path}: found no score of {scan.name}")
        elif not np.isfinite(value):
            problems.append(f"{path}: found the score {shown(text)} of {scan.name}, expected a finite number")
        else:
            out[scan.name] = value
    return out


def score_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV with the columns ``path`` and ``score``, as ``detect`` writes it.

    Raises InputError: unreadable, without these columns, or a path that no system could have.
    """
    columns, rows = read_table(path)
    if not {"path", "score"} <= set(columns):
        found = ", ".join(columns)[:200]
        raise InputError(f"{path}: found the columns {found}; expected path and score")
    for line, row in rows:
        if "\0" in row["path"]:
            raise InputError(f"{path}: line {line}: path: found {shown(row['path'])}, expected no NUL")
    return [row for _, row in rows]


def named_parts(stated: str) -> tuple[str, ...]:
    """The parts of a path that name a scan: without the folders ``rgb`` and ``xyz``, and the suffix."""
    path = Path(stated)
    parts = path.with_suffix("").parts if path.suffix else path.parts
    return tuple(part for part in parts if part not in ("rgb", "xyz"))


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """One scan's map at the size of its mask."""

    values: np.ndarray | None = None
    mask: np.ndarray | None = None  # None where a defective scan has none
    foreground: np.ndarray | None = None
    score: float = 0.0  # maximum as stored, before any resizing
    stored_hw: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _load(scan: Scan, paths: Sequence[Path], given: Given) -> _Loaded:
    if not paths:
        return _Loaded(problems=(f"{scan.name}: found no map in {given.maps}",))
    problems, notes = [], []
    values = mask = inside = None
    numbers = [path for path in paths if path.suffix.lower() != ".png"]
    if len(numbers or paths) > 1:
        names = " and ".join(path.name for path in numbers or paths)
        problems.append(f"{paths[0].parent}: found {names}, expected one map per scan")
    try:
        values = load_map(paths[0])
    except InputError as error:
        problems.append(str(error))
    try:
        mask = datasets.load_truth(scan)
    except InputError as error:
        problems.append(str(error))
    if values is None or problems:
        return _Loaded(problems=tuple(problems))
    if mask is not None and given.strict_size and mask.shape != values.shape:
        text = f"{paths[0]}: found a map of {_by(values.shape)} pixels, expected {_by(mask.shape)}"
        return _Loaded(problems=(text,))
    if mask is not None:
        try:
            inside = foreground(scan, clean=given.clean, units=given.units)
        except InputError as error:
            notes.append(f"{error}; the foreground is unknown")
        if inside is not None and inside.shape != mask.shape:
            inside = None
    fitted = values if mask is None else fit_map(values, mask.shape)
    return _Loaded(fitted, mask, inside, float(values.max()), values.shape, notes=tuple(notes))


def _summary(
    dataset: Dataset, loaded: Sequence[_Loaded], scores: Mapping[str, float] | None, given: Given
) -> metrics.Metrics:
    scans = dataset.scans
    masks = [item.mask for item in loaded if item.mask is not None]
    inside = [item.foreground for item in loaded if item.foreground is not None]
    whole = len(masks) == len(scans)
    return metrics.summary(
        labels=np.array([scan.label for scan in scans]),
        scores=np.array(
            [item.score for item in loaded] if scores is None else [scores[s.name] for s in scans]
        ),
        masks=masks if whole else None,
        maps=[item.values for item in loaded if item.values is not None] if whole else None,
        foreground=inside if whole and len(inside) == len(scans) else None,
        intervals=given.intervals,
    )


def _resized(dataset: Dataset, loaded: Sequence[_Loaded]) -> Iterator[str]:
    """One remark per category about maps that had another size than their masks."""
    other = [item for item in loaded if item.mask is not None and item.mask.shape != item.stored_hw]
    if other:
        first: Any = other[0]
        yield (
            f"{dataset.category}: {len(other)} of {len(loaded)} maps were resized to their masks "
            f"({_by(first.stored_hw)} to {_by(first.mask.shape)}, bilinear)"
        )
        if any(
            a.stored_hw[0] * a.mask.shape[1] != a.stored_hw[1] * a.mask.shape[0]
            for a in other
            if a.mask is not None
        ):
            yield f"{dataset.category}: some had another aspect ratio than their masks and were stretched"


def _stored(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        return decode_npy(read_bytes(path))
    if path.suffix.lower() == ".png":
        picture = open_image(path)
        if len(picture.getbands()) > 1 or picture.mode == "P":
            raise InputError(f"{path}: found a colour picture, expected a map of one channel")
        return np.asarray(picture)
    return decode_tiff(read_bytes(path), lambda shape: None)


def _files(folder: Path) -> Iterator[Path]:
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(place, name)


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _by(hw: Sequence[int]) -> str:
    return "×".join(map(str, hw))
