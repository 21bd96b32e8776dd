"""A store of per-sample arrays on disk: resumable, atomic, read one sample at a time.

A store is a folder: ``manifest.json`` says what is in it (from what it was computed, the samples in their
order, the shape and type of every field), and shards ``NNNNNN.h5`` hold a bounded number of samples each.
Every file is written under a temporary name and renamed, so a shard that is there is whole, and the shards
that are missing are what is left to do. Two processes that fill the same store write the same shards.

    store = open_store(folder, identity, samples, fields)
    for ids in missing(store):
        write(store, ids, {"tokens": compute(ids)})
    tokens = column(store, "tokens")          # tokens[a:b] reads those samples, nothing else
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from muscjax.errors import InputError
from muscjax.files import replaced, replacing

VERSION = 1
SHARD_BYTES = 64 << 20  # of one shard before compression, at least one sample
MANIFEST = "manifest.json"
_TYPES = ("float32", "float16", "int32", "bool")


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of each sample."""

    shape: tuple[int, ...]
    dtype: Literal["float32", "float16", "int32", "bool"] = "float32"

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Store:
    """An open store; nothing of it is held in memory."""

    folder: Path
    samples: tuple[str, ...]  # a name or content hash each, in order
    fields: Mapping[str, Field]
    per_shard: int  # samples

    @property
    def shards(self) -> int:
        return -(-len(self.samples) // self.per_shard)

    def ids(self, shard: int) -> range:
        """The samples of a shard."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self.samples)))

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.h5"


def digest(obj: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(obj, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def package_version() -> str:
    """Of this package, a part of what its results depend on; "" where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("muscjax")
    except PackageNotFoundError:
        return ""


def content_digest(*arrays: Any) -> str:
    """SHA-256 over the shapes, types and bytes of arrays; None counts as itself."""
    found = hashlib.sha256()
    for array in arrays:
        if array is None:
            found.update(b"none;")
            continue
        array = np.ascontiguousarray(array)
        found.update(f"{array.dtype.str}{array.shape};".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def open_store(
    folder: str | os.PathLike,
    identity: Mapping[str, Any],
    samples: Sequence[str],
    fields: Mapping[str, Field],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Store:
    """The store in ``folder``, made where it is not there.

    Args:
        identity: JSON values; everything that the contents depend on beside the samples: backbone and the
            hash of its weights, sizes, configuration.
        samples: one text per sample, which changes when the sample does.
        fields: what is kept of each sample.
        shard_bytes: bound of a new store's shards; an existing one keeps its own.

    Raises:
        InputError: the folder holds another store than this, or cannot be written.
    """
    folder = Path(folder)
    expected = {
        "version": VERSION,
        "identity": json.loads(json.dumps(dict(identity))),
        "samples": list(samples),
        "fields": {name: [list(f.shape), f.dtype] for name, f in fields.items()},
    }
    for name, field in fields.items():
        if field.dtype not in _TYPES:
            raise InputError(f"{folder}: field {name!r} of type {field.dtype}, expected {', '.join(_TYPES)}")
    sample_bytes = max(sum(f.nbytes for f in fields.values()), 1)
    per_shard = max(1, min(shard_bytes // sample_bytes, max(len(samples), 1)))
    path = folder / MANIFEST
    if path.exists():
        found = _manifest(path)
        for key, value in expected.items():
            if found.get(key) != value:
                raise InputError(
                    f"{path}: holds another {key} than this run's; delete the folder or name another"
                )
        per_shard = found.get("per_shard")
        if not isinstance(per_shard, int) or isinstance(per_shard, bool) or per_shard < 1:
            raise InputError(f"{path}: found per_shard {per_shard!r}, expected a positive number")
    else:
        text = json.dumps({**expected, "per_shard": per_shard}, indent=1)
        with replaced(path) as file:
            file.write(text.encode())
    return Store(folder, tuple(samples), dict(fields), per_shard)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not the manifest of a store ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: not the manifest of a store")
    return found


def missing(store: Store) -> list[range]:
    """The samples that are left to do, a shard at a time."""
    return [store.ids(shard) for shard in range(store.shards) if not store.path(shard).exists()]


def write(store: Store, ids: range, arrays: Mapping[str, np.ndarray]) -> None:
    """Write one shard: ``ids`` from ``missing``, and of every field an array with the samples in front.

    Raises:
        InputError: the disk refuses.
        ValueError: fields or shapes that are not the store's.
    """
    import h5py

    if set(arrays) != set(store.fields):
        raise ValueError(f"{store.folder}: found fields {sorted(arrays)}, expected {sorted(store.fields)}")
    for name, field in store.fields.items():
        if np.shape(arrays[name]) != (len(ids), *field.shape):
            raise ValueError(f"{name}: found {np.shape(arrays[name])}, expected {(len(ids), *field.shape)}")
    with replacing(store.path(ids[0] // store.per_shard)) as temporary, h5py.File(temporary, "w") as file:
        for name, field in store.fields.items():
            values = np.asarray(arrays[name]).astype(field.dtype)
            # An empty chunk is no chunk; a checksum per sample finds damage before it becomes a score.
            chunk = {"chunks": (1, *field.shape), "fletcher32": True} if values.size else {}
            file.create_dataset(name, data=values, **chunk)


@dataclasses.dataclass(frozen=True)
class Column:
    """One field of all samples as a lazy sequence: ``column[a:b]`` and ``column[ids]`` read those samples."""

    store: Store
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.store.fields[self.name].shape)

    def __len__(self) -> int:
        return len(self.store.samples)

    def __getitem__(self, key: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """The samples; half precision comes back as float32.

        Raises:
            InputError: a shard that is missing, damaged or not what the manifest says.
        """
        field = self.store.fields[self.name]
        if isinstance(key, int | np.integer):
            return self[[int(key)]][0]
        ids = np.arange(len(self))[key]
        kept = np.dtype("float32" if field.dtype == "float16" else field.dtype)
        out = np.empty((len(ids), *field.shape), kept)
        for shard in np.unique(ids // self.store.per_shard):
            places = np.flatnonzero(ids // self.store.per_shard == shard)
            out[places] = _read(self.store, int(shard), self.name, ids[places] - shard * self.store.per_shard)
        return out


def column(store: Store, name: str) -> Column:
    """One field of all samples; ``name`` is one of ``store.fields``."""
    if name not in store.fields:
        raise InputError(f"{store.folder}: no field {name!r}, expected one of {', '.join(store.fields)}")
    return Column(store, name)


def _read(store: Store, shard: int, name: str, rows: np.ndarray) -> np.ndarray:
    import h5py

    path, field = store.path(shard), store.fields[name]
    expected = (len(store.ids(shard)), *field.shape)
    try:
        with h5py.File(path, "r") as file:
            # A link could lead to any file of the machine.
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{path}: {name} is a link or is not there, expected a dataset")
            dataset = file[name]
            if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
                raise InputError(f"{path}: {name} lies outside of the file, expected a dataset in it")
            if dataset.shape != expected or dataset.dtype != np.dtype(field.dtype):
                raise InputError(
                    f"{path}: {name} holds {dataset.shape} {dataset.dtype}, expected {expected} {field.dtype}"
                )
            order = np.unique(rows)
            first, last = int(order[0]), int(order[-1]) + 1
            return dataset[first:last][rows - first]
    except (OSError, RuntimeError, KeyError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(f"{path}: cannot be read ({reason}); delete it to have it made again") from None
