"""A store of per-sample arrays on disk: resumable, atomic, read one sample at a time.

A store is a folder: ``manifest.json`` says what is in it (from what it was computed, the samples in their
order, the shape and type of every field), shards ``NNNNNN.h5`` hold a bounded number of samples each, and
``digests.json`` has the SHA-256 of every finished shard. Every file is written under a temporary name,
brought to the disk and renamed, so a shard with a digest is whole, and the others are what is left to do. A
shard that is not what its digest says is never read. Processes that fill one store write the same shards.

    store = open_store(folder, identity, samples, fields)
    for ids in missing(store):
        write(store, ids, {"tokens": compute(ids)})
    tokens = column(store, "tokens")          # tokens[a:b] reads those samples, nothing else

A store that somebody else made is looked at by ``examine`` before anything of it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from muscjax.errors import InputError
from muscjax.files import locked, replaced
from muscjax.identity import content_digest as content_digest
from muscjax.identity import digest as digest
from muscjax.identity import package_version as package_version

VERSION = 1
SHARD_BYTES = 64 << 20  # of one shard, at least one sample
MANIFEST = "manifest.json"
DIGESTS = "digests.json"
_TYPES = ("float32", "float16", "int32", "bool")
_LARGEST = {MANIFEST: 1 << 28, DIGESTS: 1 << 26}  # bytes that are read of them
_OVERHEAD = 1 << 20  # of a shard beyond its data, and as much again per data


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
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what its contents come from
    # Digests that ``examine`` has seen; None: those of the folder, which grow while it is filled.
    pinned: Mapping[str, str] | None = None
    # Shards found to be what their digests say, with the file's state then.
    checked: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def shards(self) -> int:
        return -(-len(self.samples) // self.per_shard)

    def ids(self, shard: int) -> range:
        """The samples of a shard."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self.samples)))

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.h5"


def open_store(
    folder: str | os.PathLike,
    identity: Mapping[str, Any],
    samples: Sequence[str],
    fields: Mapping[str, Field],
    *,
    shard_bytes: int = SHARD_BYTES,
    batch: int = 1,
    batches: int | None = None,
) -> Store:
    """The store in ``folder``, made where it is not there.

    Args:
        identity: JSON values; everything that the contents depend on beside the samples: backbone and the
            hash of its weights, sizes, configuration.
        samples: one text per sample, which changes when the sample does.
        fields: what is kept of each sample.
        shard_bytes: bound of a new store's shards; an existing one keeps its own.
        batch: a new store's shards hold whole batches of so many samples, at least one, at most ``batches``.

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
    path = folder / MANIFEST
    if path.exists():
        found = _json(path)
        for key, value in expected.items():
            if found.get(key) != value:
                raise InputError(
                    f"{path}: holds another {key} than this run's; delete the folder or name another"
                )
        per_shard = _per_shard(path, found)
    else:
        sample_bytes = max(sum(f.nbytes for f in fields.values()), 1)
        whole = max(1, shard_bytes // (sample_bytes * batch))
        whole = whole if batches is None else min(whole, batches)
        per_shard = max(1, min(whole * batch, max(len(samples), 1)))
        text = json.dumps({**expected, "per_shard": per_shard}, indent=1)
        with replaced(path, durable=True) as file:
            file.write(text.encode())
    return Store(folder, tuple(samples), dict(fields), per_shard, expected["identity"])


def load(folder: str | os.PathLike) -> Store:
    """The store in ``folder`` as its manifest describes it; its shards are not opened.

    Raises:
        InputError: no manifest, or one that no store could have.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    found = _json(path)

    def expect(right: Any, what: str) -> None:
        if not right:
            raise InputError(f"{path}: not the manifest of a store ({what})")

    expect(found.get("version") == VERSION, f"version {found.get('version')!r}, expected {VERSION}")
    samples: Any = found.get("samples")
    described: Any = found.get("fields")
    identity: Any = found.get("identity")
    expect(isinstance(samples, list) and all(isinstance(name, str) for name in samples), "samples")
    expect(isinstance(identity, dict), "identity")
    expect(isinstance(described, dict) and 0 < len(described) <= 64, "fields")
    fields = {}
    for name, about in described.items():
        expect(re.fullmatch(r"[A-Za-z0-9_]{1,64}", name) is not None, "a field's name")
        expect(isinstance(about, list) and len(about) == 2 and isinstance(about[0], list), f"field {name}")
        shape, dtype = about
        expect(dtype in _TYPES and len(shape) <= 8, f"field {name}")
        expect(all(type(side) is int and 0 <= side < 1 << 31 for side in shape), f"field {name}")
        expect(math.prod(max(side, 1) for side in shape) < 1 << 34, f"field {name}")
        fields[name] = Field(tuple(shape), dtype)
    return Store(folder, tuple(samples), fields, _per_shard(path, found), identity)


def examine(folder: str | os.PathLike, *, seconds: float | None = None, memory: int = 1 << 30) -> Store:
    """``load`` of a store that somebody else made, after another process has looked at all of it.

    That process may use so many bytes and seconds (None: by the size of the store), writes nothing, and may
    die: this one reads only what came through, and only while its digests stay the same.

    Raises:
        InputError: a store that is incomplete, damaged or hostile; one line.
    """
    from muscjax import storecheck

    opened = load(folder)
    return dataclasses.replace(opened, pinned=storecheck.apart(opened, seconds=seconds, memory=memory))


def _per_shard(path: Path, found: Mapping[str, Any]) -> int:
    per_shard = found.get("per_shard")
    if not isinstance(per_shard, int) or isinstance(per_shard, bool) or per_shard < 1:
        raise InputError(f"{path}: found per_shard {per_shard!r}, expected a positive number")
    return per_shard


def _json(path: Path) -> dict[str, Any]:
    what = "manifest of a store" if path.name == MANIFEST else "list of a store's digests"
    try:
        found = json.loads(read_regular(path, _LARGEST[path.name]).decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not the {what} ({str(error)[:200]})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: not the {what}")
    return found


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a file that is no link, no pipe and no larger than ``most``.

    Raises:
        OSError: it cannot be read.
        InputError: it is something else, or larger.
    """
    # Without NONBLOCK the opening of a pipe waits for its writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_size > most:
            raise InputError(
                f"{path}: found {about.st_size} bytes or no file, expected a file of up to {most}"
            )
        return file.read(about.st_size)


def digests(store: Store) -> Mapping[str, str]:
    """The SHA-256 of every finished shard by its file's name.

    Raises:
        InputError: the list cannot be read.
    """
    if store.pinned is not None:
        return store.pinned
    path = store.folder / DIGESTS
    return _json(path) if path.exists() else {}


def missing(store: Store, *, verify: bool = False) -> list[range]:
    """The samples that are left to do, a shard at a time; ``verify`` counts damaged shards among them."""
    known = digests(store)

    def there(shard: int) -> bool:
        path = store.path(shard)
        if path.name not in known or not path.exists():
            return False
        if verify:
            try:
                check(store, shard)
            except InputError:
                return False
        return True

    return [store.ids(shard) for shard in range(store.shards) if not there(shard)]


def write(store: Store, ids: range, arrays: Mapping[str, np.ndarray]) -> None:
    """Write one shard: ``ids`` from ``missing``, and of every field an array with the samples in front.

    When this returns, the disk has it.

    Raises:
        InputError: the disk refuses; the store stays as it was.
        ValueError: fields or shapes that are not the store's.
    """
    if set(arrays) != set(store.fields):
        raise ValueError(f"{store.folder}: found fields {sorted(arrays)}, expected {sorted(store.fields)}")
    for name, field in store.fields.items():
        if np.shape(arrays[name]) != (len(ids), *field.shape):
            raise ValueError(f"{name}: found {np.shape(arrays[name])}, expected {(len(ids), *field.shape)}")
    content = _packed(store, arrays)
    path = store.path(ids[0] // store.per_shard)
    with locked(store.folder, name=".writing", wait=True):
        with replaced(path, durable=True) as file:
            file.write(content)
        known = {**digests(store), path.name: hashlib.sha256(content).hexdigest()}
        with replaced(store.folder / DIGESTS, durable=True) as file:
            file.write(json.dumps(known, indent=0, sort_keys=True).encode())
    store.checked.pop(ids[0] // store.per_shard, None)


def _packed(store: Store, arrays: Mapping[str, np.ndarray]) -> bytes:
    """A shard's bytes. Made in memory: HDF5 does not survive a full disk well."""
    import h5py

    with h5py.File(secrets.token_hex(8), "w", driver="core", backing_store=False) as file:
        for name, field in store.fields.items():
            values = np.asarray(arrays[name]).astype(field.dtype)
            # An empty chunk is no chunk; a checksum per sample finds damage before it becomes a score.
            chunk = {"chunks": (1, *field.shape), "fletcher32": True} if values.size else {}
            file.create_dataset(name, data=values, **chunk)
        file.flush()
        return file.id.get_file_image()


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


def check(store: Store, shard: int) -> None:
    """Nothing, or InputError where the shard's bytes are not those of its digest; once per file as it is."""
    path = store.path(shard)
    try:
        about = os.stat(path, follow_symlinks=False)
        state = (about.st_ino, about.st_size, about.st_mtime_ns)
        if store.checked.get(shard) == state:
            return
        content = read_regular(path, shard_limit(store, shard))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); delete it to have it made again"
        ) from None
    if hashlib.sha256(content).hexdigest() != digests(store).get(path.name):
        raise InputError(f"{path}: not the bytes that its digest is of; delete it to have it made again")
    store.checked[shard] = state


def shard_limit(store: Store, shard: int) -> int:
    """More bytes than the file of that shard can have."""
    return 2 * len(store.ids(shard)) * sum(f.nbytes + 4096 for f in store.fields.values()) + _OVERHEAD


def dataset_of(file: Any, store: Store, shard: int, name: str) -> Any:
    """The dataset of that field in an open shard: in this file, of this shape and type, or InputError."""
    import h5py

    path, field = store.path(shard), store.fields[name]
    expected = (len(store.ids(shard)), *field.shape)
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
    return dataset


def _read(store: Store, shard: int, name: str, rows: np.ndarray) -> np.ndarray:
    import h5py

    check(store, shard)
    path = store.path(shard)
    try:
        with h5py.File(path, "r") as file:
            dataset = dataset_of(file, store, shard, name)
            first, last = int(rows.min()), int(rows.max()) + 1
            found = dataset[first:last]
            return found if np.array_equal(rows, np.arange(first, last)) else found[rows - first]
    except (OSError, RuntimeError, KeyError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(f"{path}: cannot be read ({reason}); delete it to have it made again") from None
