"""The state of a run that is under way: whoever runs the same again after a kill goes on from here.

A category's state is a folder: features as they came off the device (a ``store`` per modality), the patch
scores of every stage or block that was finished, those of the whole set, and a list of the result files that
were written. It belongs to one identity (files, configuration, backbones, versions, device); another finds it
worthless. Every part carries a digest and counts only while that is right, so neither a kill nor a power cut
leaves half a part behind, and what is read back is what was computed, bit for bit.

    OUT/.unfinished/<category>/state.json               the identity
                               image/, points/          stores of features
                               scores/*.bin, scored.bin patch scores
                               written.jsonl            digests of result files
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from muscjax import store
from muscjax.ahead import prefetch
from muscjax.config import RunConfig
from muscjax.datasets import Scan
from muscjax.errors import InputError
from muscjax.extract import GROUP_FIELDS
from muscjax.files import TEMPORARY, locked, replaced, writing
from muscjax.identity import backbone_identity, digest, package_version
from muscjax.inputs import Inputs, Plan
from muscjax.outputs import plain
from muscjax.requests import Request
from muscjax.shards import Shards, stage_field, worth
from muscjax.store import Field
from muscjax.types import PatchScores, PointGroups

FOLDER = ".unfinished"
_SIDES = ("image", "points")
_AFTERWARDS = frozenset({"preset", "scoring", "cae", "maps", "rscon", "decision", "run"})
VERSION = 1  # changes when the same state would mean something else
_BATCHES = 2  # of a shard: what a kill costs at most


class Scored(NamedTuple):
    """All that maps and scan scores are made of, beside the clouds."""

    patch_scores: PatchScores
    groups: PointGroups | None  # without members
    grid_hw: tuple[int, int] | None
    map_hw: tuple[int, int]


@contextlib.contextmanager
def claimed(out: Path, kept: Path | None) -> Iterator[Path]:
    """The folder of the states of a run into ``out``, which nobody else may run into meanwhile.

    A state folder of its own, ``kept``, stays at the end; the one in ``out`` goes when the block ends well.

    Raises:
        InputError: another run is writing to either.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(out))
        _sweep(out)
        if kept is not None:
            with writing(kept):
                kept.mkdir(parents=True, exist_ok=True)
            if not kept.samefile(out):
                stack.enter_context(locked(kept))
            yield kept
            shutil.rmtree(out / FOLDER, ignore_errors=True)  # of an earlier run without ``kept``
            return
        if (out / FOLDER).is_symlink():
            raise InputError(f"{out / FOLDER}: found a link, expected a folder or nothing")
        yield out / FOLDER
        shutil.rmtree(out / FOLDER, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove the half-written files of a killed run."""
    for path in (out, *(out / name for name in ("maps", "masks", "overlays"))):
        for found in path.rglob(f".*{TEMPORARY}") if path != out else path.glob(f".*{TEMPORARY}"):
            if re.fullmatch(r"\.[0-9a-f]{16}", found.stem):
                with contextlib.suppress(OSError):
                    found.unlink()


@dataclasses.dataclass(frozen=True)
class State:
    """Of one category; made by ``open_state``."""

    folder: Path
    run: RunConfig
    samples: tuple[str, ...]  # digests of the scans' files
    features_of: Mapping[str, Any]  # by modality, what its features come from
    keeps: bool  # features stay when the run has ended
    written: Written

    def keep(
        self, kind: str, shape: tuple[int, ...], groups: dict[str, Any], order: Sequence[int], batch: int
    ) -> Shards:
        """The ``extract.Keep`` of this category."""
        fields: dict[str, Field] = {
            stage_field(s): Field(shape[1:], self.run.features) for s in range(shape[0])
        }
        fields |= {name: Field(about.shape, str(about.dtype)) for name, about in groups.items()}  # pyright: ignore[reportArgumentType]
        opened = store.open_store(
            self.folder / kind,
            self.features_of[kind],
            [self.samples[i] for i in order],
            fields,
            batch=batch,
            batches=_BATCHES,
        )
        lazy = 4 * len(order) * int(np.prod(shape)) > self.run.memory_budget
        return Shards(opened, shape[0], tuple(groups), order, lazy=lazy, always=lazy or self.keeps)

    def remember(self, name: str, make: Callable[[], Any]) -> list[np.ndarray | None]:
        """The ``streaming.Remember`` of this category."""
        path = self.folder / "scores" / f"{re.sub(r'[^0-9a-z]+', '-', name)}.bin"
        arrays = _load(path)
        if arrays is None:
            begun = time.perf_counter()
            found = make()
            arrays = {side: x for side, x in zip(_SIDES, found, strict=True) if x is not None}
            if worth(sum(x.nbytes for x in arrays.values()), time.perf_counter() - begun):
                _save(path, arrays)
        return [arrays.get(side) for side in _SIDES]

    def scored(self) -> Scored | None:
        """What ``keep_scored`` was given; None where there is nothing."""
        arrays = _load(self.folder / "scored.bin")
        if arrays is None:
            return None
        scores = PatchScores(*(arrays.get(name) for name in (*_SIDES, "salient")))  # pyright: ignore[reportArgumentType]
        groups = None
        if "valid" in arrays:
            members: Any = np.zeros((*arrays["valid"].shape, 0), np.int32)
            groups = PointGroups(indices=members, **{name: arrays[name] for name in GROUP_FIELDS})  # pyright: ignore[reportArgumentType]
        grid, working = (
            None if name not in arrays else tuple(arrays[name].tolist()) for name in ("grid_hw", "map_hw")
        )
        assert working is not None
        return Scored(scores, groups, grid, working)

    def keep_scored(self, scored: Scored) -> None:
        """Patch scores of the whole set; what they were made of is no longer needed."""
        scores, groups, grid, working = scored
        arrays = {name: getattr(scores, name) for name in (*_SIDES, "salient")}
        arrays |= {} if groups is None else {name: getattr(groups, name) for name in GROUP_FIELDS}
        arrays |= {"grid_hw": grid, "map_hw": working}
        _save(self.folder / "scored.bin", {k: np.asarray(v) for k, v in arrays.items() if v is not None})
        for name in ("scores", *(() if self.keeps else ("image", "points"))):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def open_state(
    root: Path, loaded: Inputs, plan: Plan, request: Request, say: Callable[[str], None], *extra: Any
) -> State:
    """The state of a category below ``root``, as an interrupted run left it or empty.

    Args:
        extra: JSON values that the results depend on beside what is given here.

    Raises:
        InputError: a kept store of other features, or a folder that cannot be written.
    """
    import jax

    scans, config = loaded.dataset.scans, loaded.config
    samples = tuple(prefetch(_sample, scans))
    truth = [[scan.label, scan.mask and _content(scan.mask)] for scan in scans]  # for results, not features
    device = jax.devices()[0]
    machine = [package_version(), jax.__version__, device.platform, device.device_kind, VERSION]
    # What features depend on is everything but what is done with them.
    before = {k: v for k, v in plain(config).items() if k not in _AFTERWARDS}
    # An image alone keeps its background, and beside points it is cleaned with them.
    working = [before, config.run.features, loaded.kind, request.clean, request.units, machine]
    features_of = {
        kind: {"of": [backbone_identity(backbone), working]}
        for kind, backbone in zip(_SIDES, plan.backbones(loaded.kind).values(), strict=True)
    }
    given = {name: value for name, value in plain(request).items() if name not in ("path", "out", "store")}
    identity = digest([features_of, samples, truth, plain(config), given, loaded.kind, list(extra)])
    name = re.sub(r"[^\w-]", "_", loaded.dataset.category)[:60] or "set"
    folder = root / f"{name}-{digest(loaded.dataset.category)[:8]}"
    keeps = request.store is not None
    about = folder / "state.json"
    if _known(about) != identity:
        if folder.exists() and any(folder.iterdir()):
            if not keeps:
                say(f"{folder}: of another run (other scans, settings or versions); begun afresh")
                _remove(folder)
            for stale in ("scores", "scored.bin", "written.jsonl"):
                _remove(folder / stale)
        with replaced(about) as file:
            file.write(json.dumps({"identity": identity}).encode())
    return State(
        folder, config.run, samples, features_of, keeps, Written(folder / "written.jsonl", request.out)
    )


def _remove(path: Path) -> None:
    """A file or a folder; never what a link leads to."""
    with writing(path):
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)


def _known(path: Path) -> str:
    try:
        found = json.loads(store.read_regular(path, 1 << 16))
        return str(found["identity"])
    except (OSError, InputError, ValueError, KeyError, TypeError):
        return ""


def _sample(scan: Scan) -> str:
    """Name and content of everything that features are made of; a mask is not."""
    found: dict[str, Any] = {"name": scan.name}
    for field in dataclasses.fields(scan):
        value = getattr(scan, field.name)
        if isinstance(value, Path) and field.name != "mask":
            found[field.name] = _content(value)
    return digest(found)


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return path.suffix.lower() + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # whoever needs it has said so already
        return "unreadable"


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    body = content.getvalue()
    with replaced(path) as file:
        file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def _load(path: Path) -> dict[str, np.ndarray] | None:
    """What ``_save`` wrote; None where that is not there or not whole."""
    try:
        said, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(body).hexdigest().encode() != said:
        return None
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        return dict(arrays)


class Written:
    """The result files that are finished, by the digests of their bytes."""

    def __init__(self, path: Path, out: Path) -> None:
        self._path, self._out, self._lock = path, out, threading.Lock()
        self._known: dict[str, str] = {}
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError):  # the last line of a killed process
                    name, value = json.loads(line)
                    self._known[str(name)] = str(value)

    def once(self, path: Path, write: Callable[[], None]) -> None:
        """``write`` the file at ``path``, unless it is there as an earlier run finished it."""
        name = path.relative_to(self._out).as_posix()
        if name in self._known and _file_digest(path) == self._known[name]:
            return
        write()
        # The line end comes first: the last line of a killed process may lack its own.
        line = "\n" + json.dumps([name, _file_digest(path)])
        with self._lock, writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
