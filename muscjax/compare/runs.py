"""The results of ``detect`` as they lie in a folder, and the scans they are of."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muscjax import datasets
from muscjax.datasets import Scan
from muscjax.errors import InputError, shown
from muscjax.evaluate import named_parts, score_table
from muscjax.requests import record_of


@dataclasses.dataclass(frozen=True)
class Run:
    """The results of one ``detect`` as they lie in a folder."""

    folder: Path
    record: Mapping[str, Any]  # run.json
    rows: tuple[Mapping[str, str], ...]  # scores.csv
    names: frozenset[str]  # of the scans that have a map


def read_run(folder: Path) -> Run:
    """The record, scores and list of maps of a finished run.

    Raises InputError: no such folder, a run that did not finish, or a file that is missing or unreadable.
    """
    record = record_of(folder)
    rows = score_table(folder / "scores.csv")
    maps = folder / "maps"
    names = frozenset(p.relative_to(maps).with_suffix("").as_posix() for p in maps.rglob("*.tiff"))
    if not names:
        raise InputError(f"{maps}: found no map, expected one .tiff per scan")
    return Run(folder, record, tuple(rows), names)


def same_scans(a: Run, b: Run) -> None:
    """InputError where one run has a map of a scan that the other has not."""
    for run, other in ((a, b), (b, a)):
        missing = sorted(run.names - other.names)
        if missing:
            raise InputError(
                f"{other.folder}: found no map of {missing[0]} (of {len(missing)} such scans) that "
                f"{run.folder} has, expected two runs of the same scans"
            )


def truth_scans(run: Run, truth: Path | None, notes: list[str]) -> list[Scan]:
    """The scans of the data set; none, and a note, where the recorded folder cannot be read any more.

    Raises InputError where ``truth`` is given and cannot be read or lacks a scan.
    """
    request = run.record["request"]
    chosen = {
        name: request[name] for name in ("layout", "category", "split") if request.get(name) is not None
    }
    root = Path(request.get("path", "")) if truth is None else truth
    try:
        found = datasets.open_dataset(root, **chosen, strict=False)
    except InputError as error:
        if truth is not None:
            raise
        notes.append(f"{error}; without --truth there are no metrics of pixels")
        return []
    scans = [scan for dataset in found for scan in dataset.scans if scan.name in run.names]
    if len(scans) < len(run.names):
        missing = sorted(run.names - {scan.name for scan in scans})
        text = f"{root}: found no scan {missing[0]} (of {len(missing)} such scans) of {run.folder}"
        if truth is not None:
            raise InputError(f"{text}, expected the data set of the runs")
        notes.append(f"{text}; without --truth there are no metrics of pixels")
        return []
    return scans


def rows_of_scans(run: Run, names: Sequence[str], scans: Mapping[str, Scan]) -> dict[str, Mapping[str, str]]:
    """The row of scores.csv of each scan: by its file, else by the end of the path.

    Raises InputError where a scan has none.
    """
    by_file: dict[str, Mapping[str, str]] = {}
    by_end: dict[tuple[str, ...], Mapping[str, str] | None] = {}
    for row in run.rows:
        stated = row["path"].removeprefix("'")
        by_file[os.path.realpath(stated)] = row
        parts = named_parts(stated)
        for length in range(1, len(parts) + 1):
            end = parts[-length:]
            by_end[end] = None if end in by_end else row  # the end of two paths names neither
    out = {}
    for name in names:
        scan = scans.get(name)
        files = [] if scan is None else [os.path.realpath(f) for f in (scan.image, scan.xyz) if f is not None]
        row = next((by_file[file] for file in files if file in by_file), by_end.get(tuple(name.split("/"))))
        if row is None:
            raise InputError(
                f"{run.folder / 'scores.csv'}: found no score of {name}, of which there is a map"
            )
        out[name] = row
    return out


def score_of(run: Run, row: Mapping[str, str]) -> float:
    """The score in a row of scores.csv; InputError where it is no finite number."""
    try:
        value = float(row["score"])
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value):
        place = run.folder / "scores.csv"
        found = shown(row["score"])
        raise InputError(f"{place}: found the score {found} of {row['path'][:200]}, expected a number")
    return value


def label_of(row: Mapping[str, str], scan: Scan | None) -> int | None:
    """0, 1, or None where neither the data set nor scores.csv knows."""
    if scan is not None:
        return scan.label
    text = row.get("label") or ""
    return int(text) if text in ("0", "1") else None


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(field, in a, in b) of everything that was asked for differently; the folder of the results aside."""
    sides = []
    for record in (a, b):
        flat = {f"request.{k}": v for k, v in record["request"].items() if k != "out"}
        flat |= _flat(record.get("config") or {})
        flat |= {f"version.{k}": v for k, v in (record.get("versions") or {}).items()}
        flat |= {f"device.{k}": v for k, v in (record.get("device") or {}).items()}
        sides.append(flat)
    for field in dict.fromkeys([*sides[0], *sides[1]]):
        values = [side.get(field) for side in sides]
        if values[0] != values[1]:
            yield field, *values


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for name, value in tree.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out
