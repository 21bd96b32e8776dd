"""What the package keeps on disk, made by somebody else: feature stores, reference sets, cache entries."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as st

from muscjax import store, storecheck
from muscjax.errors import InputError
from muscjax.preprocess import cache
from muscjax.reference import kept
from muscjax.store import Field
from tests.fuzz.engine import Reader
from tests.fuzz.texts import HOSTILE, spoiled

FIELDS = {"tokens": Field((2, 3)), "half": Field((5,), "float16"), "valid": Field((4,), "bool")}
SAMPLES = ["a", "b", "c"]
SHARD = "000000.h5"


def fill(folder: Path) -> None:
    """A store of three samples in one shard."""
    opened = store.open_store(folder, {"backbone": "b"}, SAMPLES, FIELDS)
    rng = np.random.default_rng(0)
    arrays = {name: (rng.random((3, *f.shape)) * 2).astype(f.dtype) for name, f in FIELDS.items()}
    for ids in store.missing(opened):
        store.write(opened, ids, arrays)


def made(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        fill(Path(place))
        return Path(place, name).read_bytes()


def beside(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    fill(folder)


def read_shard(path: Path) -> None:
    """As the process behind ``store.examine`` reads a shard whose digest fits, and then as any run does."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}  # as its maker would have it
    opened = dataclasses.replace(store.load(path.parent), pinned=digests)
    try:
        storecheck._examined(opened, 0)
    except InputError:
        raise
    except Exception as error:  # ``storecheck.answer`` answers for all of them
        raise InputError(f"{path}: not a readable store ({type(error).__name__})") from None
    for name, field in FIELDS.items():
        values = store.column(opened, name)[:]
        assert values.shape == (3, *field.shape)
        assert np.isfinite(values).all()


def read_manifest(path: Path) -> None:
    opened = store.load(path.parent)
    assert opened.per_shard >= 1
    assert all(field.nbytes >= 0 for field in opened.fields.values())
    for shard in range(min(opened.shards, 3)):
        assert opened.path(shard).parent == path.parent
        assert len(opened.ids(shard)) <= opened.per_shard
        store.shard_limit(opened, shard)


def read_digests(path: Path) -> None:
    opened = store.load(path.parent)
    store.missing(opened, verify=True)
    store.column(opened, "tokens")[:]


def read_kept(path: Path) -> None:
    found = kept.open_kept(path.parent)
    assert len(found) == len(found.names) == len(found.contents)
    assert sorted(found.order.tolist()) == list(range(len(found)))
    assert isinstance(found.stale, bool)
    assert len(found.digest) == 64
    for part in found.parts:
        assert part.store.folder.resolve().is_relative_to(path.parent.resolve())


def read_entry(path: Path) -> None:
    entry = cache.unpack(path)
    for name in entry.layout:
        array = entry.array(name)
        assert array.shape == tuple(entry.layout[name]["shape"])


def sealed(content: bytes) -> bytes:
    """A damaged entry whose header has the checksum that it should have."""
    magic, said = content[:8], content[40:44]
    header = content[44 : 44 + int.from_bytes(said, "little")]
    return magic + hashlib.sha256(said + header).digest() + content[40:]


def entries() -> st.SearchStrategy[bytes]:
    """Entries with a header that says anything, sums that fit, and a body that unpacks to anything."""
    body = zlib.compress(bytes(1 << 24), 9)
    number = st.sampled_from([0, 1, 2, 7, len(body), -1, 10**9, 2**40, 2**70, 1.5, None, "1", [1]])
    array = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(
                ["<f4", "|b1", "|u1", "|O", "<U9", "<c8", "V0", "x", 3, None, "<f4,<f4"]
            ),
            "shape": st.one_of(st.lists(number, max_size=3), number),
            "start": st.one_of(st.just(0), number),
            "size": st.one_of(st.just(len(body)), number),
            "sha256": st.just(hashlib.sha256(body).hexdigest()),
        }
    )
    arrays: Any = st.one_of(st.dictionaries(st.sampled_from(["a", "mask"]), array, max_size=2), number)

    @st.composite
    def files(draw) -> bytes:
        header = json.dumps({"note": draw(st.sampled_from(["", "x", 3])), "arrays": draw(arrays)}).encode()
        return sealed(b"muscjax1" + bytes(32) + len(header).to_bytes(4, "little") + header + body)

    return files()


def shards() -> st.SearchStrategy[bytes]:
    """HDF5 files with links, virtual and external data, filters, types and shapes that no store has."""

    def tampered(change: str, name: str, target: str) -> bytes:
        file = io.BytesIO(made(SHARD))
        with h5py.File(file, "r+") as h5:
            shape = (3, *FIELDS[name].shape)
            if change != "add":
                del h5[name]
            if change == "external link":
                h5[name] = h5py.ExternalLink(target, "/x")
            elif change == "soft link":
                h5[name] = h5py.SoftLink(target)
            elif change == "virtual":
                layout = h5py.VirtualLayout(shape, "f4")
                layout[:] = h5py.VirtualSource(target, "x", shape)
                h5.create_virtual_dataset(name, layout)
            elif change == "external":
                h5.create_dataset(name, shape, "f4", external=[(target, 0, 4 * int(np.prod(shape)))])
            elif change == "bomb":
                h5.create_dataset(name, shape, "f4", chunks=shape, compression="gzip")
            elif change == "large":
                h5.create_dataset(name, (10**12,), "f4", chunks=(1 << 20,))
            elif change == "text":
                h5.create_dataset(name, shape, h5py.string_dtype())
            elif change == "compound":
                h5.create_dataset(name, shape, np.dtype([("a", "f4"), ("b", "f4")]))
            elif change == "reference":
                h5.create_dataset(name, shape, h5py.ref_dtype)
            elif change == "nan":
                h5.create_dataset(
                    name, data=np.full(shape, np.nan, "f4"), chunks=(1, *shape[1:]), fletcher32=True
                )
            elif change == "group":
                h5.create_group(name)
            elif change == "attribute":
                h5.attrs[target] = np.zeros(3)
            else:
                h5[target.strip("/") or "y"] = np.zeros(3)
        return file.getvalue()

    kinds = st.sampled_from(
        [
            "external link",
            "soft link",
            "virtual",
            "external",
            "bomb",
            "large",
            "text",
            "compound",
            "reference",
            "nan",
            "group",
            "attribute",
            "add",
        ]
    )
    targets = st.sampled_from(["/half", "/tokens", "/etc/passwd", "../x.h5", "x", "/dev/zero"])
    return st.builds(tampered, kinds, st.sampled_from([*FIELDS]), targets)


def a_set(folder: Path) -> None:
    """A reference set of one part, with frozen numbers."""
    contents = ["1" * 64, "2" * 64, "3" * 64]
    origin = {**dict.fromkeys(sorted(kept._ORIGIN)), "config": {}}
    part = kept.open_part(folder, origin, contents, FIELDS, batch=1)
    frozen = {
        "folder": part.folder.name,
        "dimensions": 2,
        "contents": contents,
        "limits": [0.5, 1.5],
        "units": [[0.5, 1.0], [0.5, 2.0]],
    }
    parts = (kept.Part(("line/a", "line/b", "c"), tuple(contents), part),)
    kept._save(kept.Kept(folder, origin, parts, frozen))


def _kept_seed() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        a_set(Path(place))
        return Path(place, kept.MANIFEST).read_bytes()


def _readers() -> list[Reader]:
    packed = cache.pack(
        {
            "image": np.arange(48, dtype=np.uint8).reshape(4, 4, 3),
            "mask": np.eye(5, dtype=bool),
            "points": np.ones((7, 3), np.float32),
        },
        "a note",
    )
    manifest, digests = made(store.MANIFEST), made(store.DIGESTS)
    reference = _kept_seed()
    return [
        Reader(
            "store shard",
            SHARD,
            read_shard,
            [made(SHARD)],
            beside,
            shards(),
            killable=True,
            tokens=(b"TREE", b"SNOD", b"HEAP", b"OHDR", b"\xff" * 8),
        ),
        Reader(
            "store manifest",
            store.MANIFEST,
            read_manifest,
            [manifest],
            beside,
            spoiled(json.loads(manifest)),
            tokens=(b"../", b"99999999999999999999", b"\\u0000"),
        ),
        Reader("store digests", store.DIGESTS, read_digests, [digests], beside, spoiled(json.loads(digests))),
        Reader(
            "reference set",
            kept.MANIFEST,
            read_kept,
            [reference],
            a_set,
            spoiled(json.loads(reference)),
            tokens=(b'"folder": "../../x"', *(h.encode("utf-8", "replace") for h in HOSTILE[:5])),
        ),
        Reader(
            "cache entry",
            "0.scan",
            read_entry,
            [packed],
            strategy=entries(),
            repair=sealed,
            refusals=("Damaged",),
        ),
    ]


READERS = _readers()
