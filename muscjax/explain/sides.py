"""One patch and one group of one sample against all references, stage by stage.

The distances come from the products that the pipeline forms, CAE and the average from the functions that it
calls, so what is shown is what was computed and not an account of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from muscjax import balance, cae, pipeline, rows, scoring, streaming
from muscjax.config import Config
from muscjax.explain import measure
from muscjax.explain import place as places
from muscjax.explain.parts import Side, Stage
from muscjax.explain.place import Place
from muscjax.extract import Progress
from muscjax.pipeline import Extracted
from muscjax.types import Array, Features, Frame, PatchScores, PointGroups

_READ = 16  # samples whose features are read at once


@functools.partial(jax.jit, static_argnames=("scoring_config", "cae_config", "grid_hw", "map_hw", "average"))
def _rows(
    image: Array | np.ndarray | None,
    points: Array | np.ndarray | None,
    groups: PointGroups | None,
    sample: Array,
    count: Array,
    *,
    scoring_config: Any,
    cae_config: Any,
    grid_hw: tuple[int, int] | None,
    map_hw: tuple[int, int],
    average: Any,
) -> list[Any]:
    """What ``pipeline.score_stage`` makes of one sample's rows (M, N), (G, N), with all the steps on the way.

    Returns, per modality or None: rows (M, N), ``cae.Enhanced`` or None, scores before and after CAE (M,).
    """
    given = next(x for x in (image, points) if x is not None)
    ids = jnp.arange(given.shape[-1], dtype=jnp.int32)
    others = ((ids != sample) & (ids < count))[None]
    own = [None if x is None else jnp.where(others, x, jnp.inf)[None] for x in (image, points)]
    steps: Any = (None, None)
    final = own
    if own[0] is not None and own[1] is not None and cae_config.enabled:
        assert groups is not None
        assert grid_hw is not None
        shape: dict[str, Any] = {"grid_hw": grid_hw, "map_hw": map_hw}
        steps = rows.fuse_rows(
            own[0], own[1], groups, others, sample[None], config=cae_config, fuse=cae.steps, **shape
        )
        final = [side.fused for side in steps]
    settings = {"fraction": scoring_config.interval, "average": average}
    before, after = (
        rows.average_rows(x[0], x[1], groups, others, sample[None], **settings) for x in (own, final)
    )
    sides = zip(own, steps, before, after, strict=True)
    return [None if x[0] is None else jax.tree.map(lambda leaf: leaf[0], x) for x in sides]


def sides(
    extracted: Extracted,
    config: Config,
    sample: int,
    place: Place,
    frames: Sequence[Frame],
    scores: PatchScores,
    progress: Progress,
) -> tuple[Side | None, Side | None]:
    """Both modalities at the place; None where there is nothing of one there.

    The references are those of the sample's own part of the set (``run.subsets``).
    """
    features, groups = extracted.features, extracted.groups
    part = np.arange(pipeline.count_of(features))
    if config.run.subsets > 1:
        parts = pipeline.subset_ids(len(part), config.run.subsets, config.run.seed)
        part = next(ids for ids in parts if sample in ids)
        chosen = [None if x is None else x[:, part] for x in pipeline.features_of(features)]
        features = Features(chosen[0], chosen[1], levels=features.levels)
        groups = None if groups is None else jax.tree.map(lambda leaf: leaf[part], groups)
    both, entries = pipeline.features_of(features), rows.paired_entries(features)
    kernel = config.scoring.kernel
    size, plan = measure.plan_of(features, config)
    padded = pipeline.pad_groups(groups, size)
    valid = (None, None if padded is None else np.asarray(padded.valid))
    cells = rows.places(
        None if features.image is None else (size, features.image.shape[2]),
        None if padded is None else padded.pixel,
        window=config.scoring.window,
        grid_hw=extracted.grid_hw,
        map_hw=extracted.map_hw,
    )
    cells = [None if x is None else np.asarray(x) for x in cells]
    at, found = (place.patch, place.group), ([], [])
    position = int(np.searchsorted(part, sample))
    for done, pair in enumerate(entries, start=1):
        tokens = [None if x is None else _readable(x[e]) for x, e in zip(both, pair, strict=True)]
        computed = _rows(
            *(
                None
                if x is None
                else measure.distances(x, mask, where, position, size=size, plan=plan, kernel=kernel)
                for x, mask, where in zip(tokens, valid, cells, strict=True)
            ),
            padded,
            jnp.asarray(position, jnp.int32),
            jnp.asarray(len(part), jnp.int32),
            scoring_config=config.scoring,
            cae_config=config.cae,
            grid_hw=extracted.grid_hw,
            map_hw=extracted.map_hw,
            average=pipeline.AVERAGES[config.scoring.average],
        )
        for kind in (0, 1):
            row, x = at[kind], tokens[kind]
            if row is None or x is None:
                continue
            cut = jax.tree.map(lambda leaf, row=row: np.asarray(leaf)[row], computed[kind])
            number = divmod(pair[kind], extracted.features.levels[kind])
            near = _near(cells[kind], (position, row), config.scoring.window)
            shown = _stage(cut, number, config, x, valid[kind], near, (sample, row), part)
            boxes = _boxes(extracted, kind, shown, frames)
            found[kind].append(dataclasses.replace(shown, nearest_box=boxes))
        progress("explaining", done, len(entries))
    image, points = _everywhere(extracted, scores)
    return _side(at[0], found[0], image), _side(at[1], found[1], points)


def _readable(stage: Any) -> Any:
    """One stage's features: on the host, or, where they lie elsewhere, to be read in slices."""
    return stage if isinstance(stage, streaming.Stage) else np.asarray(stage)


def _everywhere(extracted: Extracted, scores: PatchScores) -> tuple[Any, Any]:
    """The scores of all scans on the object: of the groups, and of the patches that hold one.

    Without groups, of all patches; an image alone does not say what is background.
    """
    image, groups = scores.image, extracted.groups
    if groups is None:
        return image, None
    valid = np.asarray(groups.valid)
    if image is not None and valid.any():
        assert extracted.grid_hw is not None
        held = balance.held_patches(groups, grid_hw=extracted.grid_hw, map_hw=extracted.map_hw)
        image = np.asarray(image)[held]
    return image, np.asarray(scores.points)[valid]


def _side(row: int | None, stages: list[Stage], everywhere: Any) -> Side | None:
    if row is None or not stages:
        return None
    before, after = (float(np.mean([getattr(s, f) for s in stages])) for f in ("score_before", "score"))
    return Side(row, tuple(stages), before, after, float(np.median(everywhere)))


def _stage(
    cut: Any,
    number: tuple[int, int],
    config: Config,
    tokens: Any,
    valid: np.ndarray | None,
    near: np.ndarray | None,
    at: tuple[int, int],
    part: np.ndarray,
) -> Stage:
    """One stage at one patch (group): ``cut`` is its row of ``_rows``, without boxes.

    tokens: (n, L, C) of the part, valid: (n, L) or None, near: (n, L) or None, inside the window; what lies
    behind the last sample is not read. at: sample and row.
    """
    (sample, row), (own, steps, before, after) = at, cut
    position = np.flatnonzero(part != sample)  # where the references stand in the padded rows
    final = own if steps is None else steps.fused
    order = position[np.argsort(final[position], kind="stable")]
    counted = np.isfinite(final[order])
    averaged = int(counted.sum())
    if config.scoring.average == "interval":
        averaged = scoring.interval_size(config.scoring.interval, averaged)
    nearest = _nearest_of_each(tokens, (int(np.searchsorted(part, sample)), row), valid, near)
    reached = steps is not None and bool(np.any(steps.enhanced[position]))
    picked = {
        name: getattr(steps, name)[order] if reached else None
        for name in ("aligned", "rescaled", "enhanced", "matched")
    }
    return Stage(
        block=number[0],
        level=number[1],
        references=part[order].astype(np.int32),
        own=own[order],
        nearest=nearest[order],
        nearest_box=np.zeros((len(order), 4), np.float32),
        final=final[order],
        inside=counted & (np.arange(len(order)) < averaged),
        confidence=float(steps.confidence) if steps is not None and reached else None,
        score_before=float(before),
        score=float(after),
        **picked,
    )


def _near(cells: np.ndarray | None, own: tuple[int, int], window: int | None) -> np.ndarray | None:
    """(n, L) bool: patches (groups), of cells (n, L, 2), in the window around ``own``; None without one."""
    if cells is None or window is None:
        return None
    return np.abs(cells - cells[own]).max(axis=-1) <= window


def _nearest_of_each(
    tokens: Any, at: tuple[int, int], valid: np.ndarray | None, near: np.ndarray | None
) -> np.ndarray:
    """(n,) int32: in every sample the row nearest to the row ``at`` = (sample, row); as for ``_stage``."""
    own, row = at
    query, found = tokens[own : own + 1][0, row], []
    for start in range(0, len(tokens), _READ):
        for j, sample in enumerate(tokens[start : start + _READ], start):
            masks = (None if x is None else x[j] for x in (valid, near))
            found.append(_nearest(query, sample, *masks))
    return np.asarray(found, np.int32)


def _nearest(query: np.ndarray, tokens: np.ndarray, valid: np.ndarray | None, near: np.ndarray | None) -> int:
    """The row of ``tokens`` (L, C) nearest to ``query`` (C,), by direct differences.

    near: (L,) bool or None: rows inside the window; where none of them is valid, all count, as in the kernel.
    """
    squared = np.square(tokens - query).sum(axis=1)
    counted = np.ones(len(tokens), bool) if valid is None else valid
    if near is not None and (near & counted).any():
        counted = near & counted
    return int(np.argmin(np.where(counted, squared, np.inf)))


def _boxes(extracted: Extracted, kind: int, stage: Stage, frames: Sequence[Frame]) -> np.ndarray:
    """(R, 4) float32, where the nearest patches (groups) lie in the references' original images."""
    boxes = np.zeros((len(stage.references), 4), np.float32)
    for i, (j, row) in enumerate(zip(stage.references.tolist(), stage.nearest.tolist(), strict=True)):
        if kind == 0:
            assert extracted.grid_hw is not None
            boxes[i] = places.patch_box(frames[j], extracted.grid_hw, row)
        elif np.isfinite(stage.own[i]):  # else the reference has no group
            assert extracted.clouds is not None
            groups = places.of_sample(extracted.groups, j)
            boxes[i] = places.group_box(frames[j], extracted.clouds[j], groups, row)
    return boxes
