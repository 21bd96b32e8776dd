"""The reference store on disk: parts that are only ever added, and one small file that says which count.

A store is a folder. ``reference.json`` names the parts in their order, the scans in them, what all of them
were made with, and the frozen numbers; it is replaced whole, so a reader sees the set before a change or
after it. Every part is a ``muscjax.store``, of the scans of one ``add``; the frozen numbers are one too. A
part that no ``reference.json`` names yet is an ``add`` that did not end; the same ``add`` continues it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muscjax import store
from muscjax.balance import Units
from muscjax.errors import InputError, shown
from muscjax.files import locked, replaced
from muscjax.identity import content_digest, digest
from muscjax.store import Field, Store
from muscjax.texts import read_record

MANIFEST = "reference.json"
VERSION = 1
_FOLDER = re.compile(r"[0-9a-f]{32}")
_ORIGIN = {"kind", "clean", "units", "image_backbone", "point_backbone", "config", "map_size", "grid_hw"}
_ORIGIN |= {"levels", "version"}  # what `origin.origin_of` says


@dataclasses.dataclass(frozen=True)
class Part:
    """The scans of one ``add``."""

    names: tuple[str, ...]  # unique in the set
    contents: tuple[str, ...]  # SHA-256 of each scan's working image and cloud
    store: Store


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What ``rescore`` found out about the kept scans, in the order of their scoring."""

    contents: tuple[str, ...]
    map_max: np.ndarray  # (R,) float32
    pred_score: np.ndarray  # (R,) float32
    salient: np.ndarray  # (R, D) float32
    limits: tuple[float, float]  # scores of no heat and of full heat
    units: Units | None = None  # of both modalities' maps, with ``maps.balance``


@dataclasses.dataclass(frozen=True)
class Kept:
    """An open reference store; its features stay on disk."""

    folder: Path
    origin: Mapping[str, Any]  # what every scan was made with, see `origin`
    parts: tuple[Part, ...]
    frozen: Mapping[str, Any] | None  # where the frozen numbers lie

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.names)

    @property
    def contents(self) -> tuple[str, ...]:
        return tuple(content for part in self.parts for content in part.contents)

    def __len__(self) -> int:
        return sum(len(part.names) for part in self.parts)

    @property
    def order(self) -> np.ndarray:
        """(R,) the scans by name, the order in which they are scored: ties in CAE fall as in ``detect``."""
        names = self.names
        return np.asarray(sorted(range(len(names)), key=lambda i: names[i].split("/")), int)

    @property
    def ordered(self) -> tuple[str, ...]:
        """``contents`` in the order of scoring."""
        contents = self.contents
        return tuple(contents[i] for i in self.order)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that a run against this store depends on."""
        return digest(_record(self))

    @property
    def stale(self) -> bool:
        """The frozen numbers are those of another set, or there are none."""
        return self.frozen is None or sorted(self.frozen["contents"]) != sorted(self.contents)


def open_kept(folder: str | os.PathLike) -> Kept:
    """The reference store in ``folder``; nothing of its features is read.

    Raises:
        InputError: there is none, or one that this version cannot read.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.exists():
        raise InputError(f"{folder}: found no {MANIFEST}, expected a store that muscjax reference add made")
    record = read_record(path)
    if record.get("version") != VERSION:
        found = shown(record.get("version"))
        raise InputError(f"{path}: found version {found}, expected a reference store of version {VERSION}")
    try:
        origin = record["origin"]
        missing = _ORIGIN - set(origin)
        if missing:
            raise KeyError(f"origin.{min(missing)}")
        parts = tuple(_part(folder, origin, part) for part in record["parts"])
        if not parts or not all(part.names for part in parts):
            raise ValueError("no scan")
        frozen = record["frozen"]
        if frozen is not None:
            _safe(frozen["folder"])
            contents = frozen["contents"]
            known = isinstance(contents, list) and all(isinstance(c, str) for c in contents)
            if not isinstance(frozen["dimensions"], int) or not known or len(contents) < 2:
                raise ValueError("frozen")
            low, high = frozen["limits"]
            frozen = {**frozen, "limits": [float(low), float(high)]}
            _units(frozen["units"])
        if len({name for part in parts for name in part.names}) != sum(len(part.names) for part in parts):
            raise ValueError("a name stands there twice")
        return Kept(folder, dict(origin), parts, frozen)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: damaged ({type(error).__name__} {error}), expected a reference store"
        ) from None


def _safe(name: Any) -> str:
    if not isinstance(name, str) or not is_part(name):
        raise ValueError(f"folder {name!r}")
    return name


def is_part(name: str) -> bool:
    """Is that the name of a folder that a store makes within itself?"""
    return _FOLDER.fullmatch(name) is not None


def _part(folder: Path, origin: Any, record: Any) -> Part:
    names, contents = (tuple(str(pair[i]) for pair in record["scans"]) for i in (0, 1))
    fields = {
        name: Field(tuple(int(side) for side in shape), dtype)
        for name, (shape, dtype) in record["fields"].items()
    }
    place = folder / _safe(record["folder"])
    if not (place / store.MANIFEST).exists():
        raise InputError(f"{place}: a part of the reference store is missing; restore it or make a new store")
    return Part(names, contents, store.open_store(place, _identity(origin), contents, fields))


def _identity(origin: Any) -> dict[str, Any]:
    return {"reference": origin}


def _record(kept: Kept) -> dict[str, Any]:
    return {
        "version": VERSION,
        "origin": dict(kept.origin),
        "parts": [
            {
                "folder": part.store.folder.name,
                "scans": [list(pair) for pair in zip(part.names, part.contents, strict=True)],
                "fields": {name: [list(f.shape), f.dtype] for name, f in part.store.fields.items()},
            }
            for part in kept.parts
        ],
        "frozen": None if kept.frozen is None else dict(kept.frozen),
    }


def _save(kept: Kept) -> Kept:
    with replaced(kept.folder / MANIFEST, durable=True) as file:
        file.write(json.dumps(_record(kept), indent=1).encode())
    return kept


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """The store for this block alone; another process that wants to change it is refused meanwhile."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror})") from None
    with locked(folder):
        yield


def open_part(
    folder: Path,
    origin: Mapping[str, Any],
    contents: Sequence[str],
    fields: Mapping[str, Field],
    *,
    batch: int,
) -> Store:
    """A part to be filled; the same arguments find the same part. Its shards hold whole batches."""
    shapes = {name: [list(f.shape), f.dtype] for name, f in fields.items()}
    name = digest([_identity(origin), list(contents), shapes])[:32]
    return store.open_store(folder / name, _identity(origin), contents, fields, batch=batch)


def append(kept: Kept, names: Sequence[str], part: Store) -> Kept:
    """The set with one more part, whose shards are all there."""
    return _save(dataclasses.replace(kept, parts=(*kept.parts, Part(tuple(names), part.samples, part))))


def prune(
    folder: str | os.PathLike, *, keep: int | None = None, drop: Sequence[str] = ()
) -> tuple[Kept, list[str]]:
    """Take scans out of the set, for good; the frozen numbers stay those of the set before.

    Args:
        keep: how many scans stay, the newest of the others. drop: names of scans that go.

    Returns:
        The set as it is now, and the names of those that went.

    Raises:
        InputError: names that the set does not have, or nothing would be left.
    """
    folder = Path(folder)
    open_kept(folder)  # before a lock is made in a folder that is none
    with writing(folder):
        kept = open_kept(folder)
        names = kept.names
        unknown = [name for name in drop if name not in names]
        if unknown:
            raise InputError(
                f"{folder}: keeps no scan {unknown[0]!r}; muscjax reference info --scans lists them"
            )
        rest = [name for name in names if name not in drop]
        gone = {*drop, *(rest[: max(len(rest) - keep, 0)] if keep is not None else ())}
        if len(gone) >= len(names) or (keep is not None and keep < 1):
            raise InputError(f"{folder}: no scan of {len(names)} would be left, expected at least one")
        parts = [_without(kept, part, gone) for part in kept.parts]
        left = _save(dataclasses.replace(kept, parts=tuple(part for part in parts if part is not None)))
        _delete(
            kept.folder, {p.store.folder.name for p in kept.parts} - {p.store.folder.name for p in left.parts}
        )
    return left, [name for name in names if name in gone]


def _without(kept: Kept, part: Part, gone: set[str]) -> Part | None:
    """The part without those scans: the same, a smaller copy, or nothing."""
    stay = [i for i, name in enumerate(part.names) if name not in gone]
    if len(stay) == len(part.names):
        return part
    if not stay:
        return None
    names, contents = (tuple(texts[i] for i in stay) for texts in (part.names, part.contents))
    smaller = open_part(kept.folder, kept.origin, contents, part.store.fields, batch=1)
    for ids in store.missing(smaller):
        rows = np.asarray(stay)[ids.start : ids.stop]
        store.write(smaller, ids, {name: store.column(part.store, name)[rows] for name in part.store.fields})
    return Part(names, contents, smaller)


def _delete(folder: Path, names: set[str]) -> None:
    for name in names:
        shutil.rmtree(folder / _safe(name), ignore_errors=True)


def freeze(
    kept: Kept,
    map_max: np.ndarray,
    pred_score: np.ndarray,
    salient: np.ndarray,
    *,
    limits: tuple[float, float],
    units: Units | None,
) -> Kept:
    """The set with these frozen numbers of its scans, in the order of scoring."""
    d = salient.shape[1]
    fields = {"map_max": Field(()), "pred_score": Field(()), "salient": Field((d,))}
    name = digest(["frozen", kept.ordered, content_digest(map_max, pred_score, salient)])[:32]
    opened = store.open_store(kept.folder / name, {"frozen": d}, kept.ordered, fields)
    for ids in store.missing(opened):
        rows = slice(ids.start, ids.stop)
        arrays = {"map_max": map_max[rows], "pred_score": pred_score[rows], "salient": salient[rows]}
        store.write(opened, ids, arrays)
    record = {
        "folder": name,
        "contents": list(kept.ordered),
        "dimensions": d,
        "limits": list(limits),
        "units": None if units is None else [[float(x) for x in pair] for pair in units],
    }
    changed = _save(dataclasses.replace(kept, frozen=record))
    if kept.frozen is not None and kept.frozen["folder"] != name:
        _delete(kept.folder, {kept.frozen["folder"]})
    return changed


def read_frozen(kept: Kept) -> Frozen:
    """The frozen numbers.

    Raises:
        InputError: ``rescore`` was never called, or they cannot be read.
    """
    record = kept.frozen
    if record is None:
        raise InputError(
            f"{kept.folder}: its {len(kept)} scans were never scored by each other; "
            f"call muscjax reference rescore {kept.folder}"
        )
    fields = {"map_max": Field(()), "pred_score": Field(()), "salient": Field((record["dimensions"],))}
    place = kept.folder / record["folder"]
    if not (place / store.MANIFEST).exists():
        raise InputError(f"{place}: is missing; call muscjax reference rescore {kept.folder}")
    opened = store.open_store(place, {"frozen": record["dimensions"]}, record["contents"], fields)
    values = [store.column(opened, name)[:] for name in fields]
    low, high = record["limits"]
    units = _units(record["units"])
    return Frozen(tuple(record["contents"]), values[0], values[1], values[2], (low, high), units)


def _units(record: Any) -> Units | None:
    if record is None:
        return None
    (a, b), (c, d) = record
    return Units((np.float32(a), np.float32(b)), (np.float32(c), np.float32(d)))


@dataclasses.dataclass(frozen=True)
class Rows:
    """One field of all kept scans, in the set's order; ``rows[a:b]`` and ``rows[ids]`` read those."""

    kept: Kept
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.kept), *self.kept.parts[0].store.fields[self.name].shape)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        ids = np.arange(len(self))[key]
        starts = np.cumsum([0, *(len(part.names) for part in self.kept.parts)])
        of = np.searchsorted(starts, ids, side="right") - 1
        columns = {int(i): store.column(self.kept.parts[i].store, self.name) for i in np.unique(of)}
        out = [np.zeros((0, *self.shape[1:]), np.float32)] if not len(ids) else []
        cuts = np.flatnonzero(np.diff(of)) + 1  # neighbours in one part are read at once
        for places in np.split(np.arange(len(ids)), cuts) if len(ids) else ():
            part = int(of[places[0]])
            out.append(columns[part][ids[places] - starts[part]])
        return np.concatenate(out)


def size_on_disk(kept: Kept) -> int:
    """Bytes of the parts."""
    return sum(f.stat().st_size for p in kept.parts for f in p.store.folder.iterdir() if f.is_file())
