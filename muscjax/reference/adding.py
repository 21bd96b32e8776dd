"""Filling a reference store: the features of new scans, written part by part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from muscjax import inputs, store
from muscjax.config import Config
from muscjax.console import Observer
from muscjax.errors import InputError
from muscjax.extract import GROUP_FIELDS
from muscjax.inputs import Inputs, Plan
from muscjax.reference import kept as keeping
from muscjax.reference.kept import Kept, open_kept
from muscjax.reference.origin import compare_loaded, compare_request, contents_of, one_category, origin_of
from muscjax.requests import Request
from muscjax.store import Field

_BATCH = 8  # scans whose features are made at once


class Added(NamedTuple):
    """What ``add`` came to."""

    kept: Kept
    new: tuple[str, ...]  # names under which scans were added
    known: int  # scans that were there already


def add(folder: Path, request: Request, config: Config, observe: Observer) -> Added:
    """Keep the scans of ``request.path``: their features go to the store, which is made where there is none.

    Scans whose working image and cloud the set holds already are passed over. A name that stands for another
    scan gets a number behind it. The numbers frozen by ``rescore`` stay as they are. An ``add`` that was
    stopped continues where it was when it is called again.

    Raises:
        InputError: anything the user has to change.
    """
    plan = inputs.plan(request, config, fewest=1)
    existing = _existing(folder)
    if existing is not None:
        compare_request(existing, plan, request)
    one_category(plan, request)
    if plan.config.run.subsets != 1:
        raise InputError(
            f"run.subsets: found {plan.config.run.subsets}, expected 1: a reference set is one set"
        )
    for problem in plan.datasets[0].problems:
        observe.say(problem)
    loaded = inputs.load(plan.datasets[0], plan.kinds[0], request, plan.config, observe, observe.say)
    contents = contents_of(loaded)
    with keeping.writing(folder):
        existing = _existing(folder)
        if existing is not None:
            compare_request(existing, plan, request)
            compare_loaded(existing, loaded)
        known = set() if existing is None else set(existing.contents)
        fresh = [i for i, content in enumerate(contents) if content not in known]
        fresh = [i for i in fresh if contents.index(contents[i]) == i]
        if not fresh:
            assert existing is not None
            return Added(existing, (), len(contents))
        taken = set() if existing is None else set(existing.names)
        names = _unique([loaded.dataset.scans[i].name for i in fresh], taken)
        kept = _written(folder, existing, loaded, plan, request, fresh, names, contents, observe)
    return Added(kept, tuple(names), len(contents) - len(fresh))


def _existing(folder: Path) -> Kept | None:
    """The store in the folder; None where there is nothing yet but what an unfinished ``add`` left."""
    if (folder / keeping.MANIFEST).exists():
        return open_kept(folder)
    if folder.exists():
        if not folder.is_dir():
            raise InputError(f"{folder}: found a file, expected a folder for the reference store")
        other = [
            p.name for p in folder.iterdir() if not p.name.startswith(".") and not keeping.is_part(p.name)
        ]
        if other:
            raise InputError(
                f"{folder}: found {other[0]} and no {keeping.MANIFEST}, expected a reference store"
            )
    return None


def _unique(names: Sequence[str], taken: set[str]) -> list[str]:
    out = []
    for name in names:
        number, chosen = 1, name
        while chosen in taken:
            number += 1
            chosen = f"{name}~{number}"
        taken.add(chosen)
        out.append(chosen)
    return out


def _written(
    folder: Path,
    existing: Kept | None,
    loaded: Inputs,
    plan: Plan,
    request: Request,
    fresh: Sequence[int],
    names: Sequence[str],
    contents: Sequence[str],
    observe: Observer,
) -> Kept:
    """The store with the scans ``fresh`` in a part of their own."""
    clouds = None if loaded.clouds is None else [loaded.clouds[i] for i in fresh]
    rows = 0 if clouds is None else max(len(cloud.valid) for cloud in clouds)
    first, shape = _made(loaded, plan, fresh[:_BATCH], rows, observe)
    origin = dict(existing.origin) if existing is not None else origin_of(loaded, plan, request, shape)
    fields = {name: Field(a.shape[1:], str(a.dtype)) for name, a in first.items()}  # pyright: ignore[reportArgumentType]
    part = keeping.open_part(folder, origin, [contents[i] for i in fresh], fields, batch=_BATCH)
    for ids in store.missing(part):
        batches = [first] if ids.start == 0 else []
        start = ids.start + (len(next(iter(first.values()))) if batches else 0)
        if start < ids.stop:
            batches.append(_made(loaded, plan, fresh[start : ids.stop], rows, observe)[0])
        store.write(part, ids, {name: np.concatenate([b[name] for b in batches]) for name in fields})
        observe("reference parts", ids.stop, len(fresh))
    kept = existing or Kept(folder, origin, (), None)
    return keeping.append(kept, names, part)


def _made(
    loaded: Inputs, plan: Plan, ids: Sequence[int], rows: int, observe: Observer
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What is kept of these scans, and the shape of their features."""
    from muscjax import pipeline

    # A tail of fewer scans than a batch would be another program, and round otherwise than a whole batch.
    total = len(loaded.dataset.scans)
    padded = list(ids) + [ids[-1]] * (min(_BATCH, total) - len(ids))
    n, clouds = len(ids), None
    if loaded.clouds is not None:
        clouds = [loaded.clouds[i] for i in padded]
    images = None if loaded.images is None else _Chosen(loaded.images, padded)
    extracted = pipeline.extract(
        images, clouds, **plan.backbones(loaded.kind), config=loaded.config, fewest=1, progress=observe
    )
    out: dict[str, np.ndarray] = {}
    for prefix, features in zip(("image", "points"), pipeline.features_of(extracted.features), strict=True):
        if features is not None:
            out |= {f"{prefix}{s}": np.asarray(features[s])[:n] for s in range(len(features))}
    if extracted.groups is not None and clouds is not None:
        out |= {f"group_{name}": np.asarray(getattr(extracted.groups, name))[:n] for name in GROUP_FIELDS}
        out["cloud_count"] = np.asarray([int(np.sum(cloud.valid)) for cloud in clouds[:n]], np.int32)
        for name in ("points", "pixel"):
            leaves = [np.asarray(getattr(cloud, name)) for cloud in clouds[:n]]
            out[f"cloud_{name}"] = np.stack([_lengthened(leaf, rows) for leaf in leaves])
    shape = {"grid_hw": extracted.grid_hw, "levels": extracted.features.levels}
    return out, shape


class _Chosen(NamedTuple):
    """Some rows of a lazy sequence of images, as a sequence."""

    images: Any
    ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: Any) -> Any:
        chosen = self.ids[key]
        runs = np.split(np.asarray(chosen), np.flatnonzero(np.diff(chosen) != 1) + 1)
        return np.concatenate([np.asarray(self.images[run[0] : run[-1] + 1]) for run in runs])


def _lengthened(leaf: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([leaf, np.zeros((rows - len(leaf), *leaf.shape[1:]), leaf.dtype)])
