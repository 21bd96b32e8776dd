"""The kept scans at work: scored by each other to freeze their numbers, and new scans scored against them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from muscjax import store
from muscjax.colormap import heat_limits
from muscjax.console import Observer
from muscjax.decision import decide
from muscjax.extract import GROUP_FIELDS
from muscjax.geometry import bucket_size
from muscjax.identity import package_version
from muscjax.inputs import Inputs
from muscjax.reference import kept as keeping
from muscjax.reference.against import frozen_rescore, score_against
from muscjax.reference.kept import Frozen, Kept, Rows, open_kept, read_frozen
from muscjax.reference.origin import compare_loaded, config_of, contents_of
from muscjax.results import Found
from muscjax.streaming import Stage, Stages
from muscjax.types import Cloud, Detection, Features, PointGroups

if TYPE_CHECKING:
    from muscjax.pipeline import Extracted


@dataclasses.dataclass(frozen=True)
class Line:
    """A kept set that is ready for new scans."""

    kept: Kept
    frozen: Frozen

    @property
    def remarks(self) -> list[str]:
        """What the run's notes say about the set."""
        return [f"scored against the {len(self.kept)} scans of {self.kept.folder}", *remarks(self.kept)]

    @property
    def record(self) -> dict[str, Any]:
        """What the run's record says about the set."""
        return {
            "path": str(self.kept.folder),
            "digest": self.kept.digest,
            "scans": len(self.kept),
            "frozen_scans": len(self.frozen.contents),
            "stale": self.kept.stale,
        }


def open_line(folder: Path) -> Line:
    """The store with its frozen numbers.

    Raises:
        InputError: no store, or one whose scans were never scored by each other.
    """
    kept = open_kept(folder)
    return Line(kept, read_frozen(kept))


def remarks(kept: Kept) -> list[str]:
    """What whoever uses the store should know: frozen numbers of another set, another version."""
    found = []
    if kept.frozen is not None and kept.stale:
        then = kept.frozen["contents"]
        shared = len(set(then) & set(kept.contents))
        found.append(
            f"{kept.folder}: keeps {len(kept)} scans, its frozen numbers are of {len(then)} "
            f"({shared} of them kept); muscjax reference rescore {kept.folder} refreshes them"
        )
    version = package_version()
    if kept.origin["version"] != version:
        found.append(f"{kept.folder}: made by muscjax {kept.origin['version']}, this is {version}")
    return found


def features_of(kept: Kept) -> Features:
    """The features of all kept scans in the order of scoring, on disk."""
    fields, order = kept.parts[0].store.fields, kept.order
    sides = []
    for prefix in ("image", "points"):
        names = [f"{prefix}{s}" for s in range(len(fields)) if f"{prefix}{s}" in fields]
        stages = Stages(tuple(Stage(Rows(kept, name), order) for name in names))
        sides.append(stages if names else None)
    return Features(*sides, levels=tuple(kept.origin["levels"]))  # pyright: ignore[reportArgumentType]


def groups_of(kept: Kept) -> PointGroups | None:
    """The groups of all kept scans in the order of scoring, without their members."""
    if "group_valid" not in kept.parts[0].store.fields:
        return None
    fields: dict[str, Any] = {name: Rows(kept, f"group_{name}")[kept.order] for name in GROUP_FIELDS}
    members: Any = np.zeros((*fields["valid"].shape, 0), np.int32)
    return PointGroups(indices=members, **fields)


def clouds_of(kept: Kept) -> list[Cloud] | None:
    """The clouds of all kept scans in the order of scoring, as maps need them: no metres, no sensor grid."""
    if "cloud_count" not in kept.parts[0].store.fields:
        return None
    clouds = [cloud for part in kept.parts for cloud in _clouds(part.store)]
    return [clouds[i] for i in kept.order]


def _clouds(opened: store.Store) -> Iterator[Cloud]:
    columns = [store.column(opened, f"cloud_{name}") for name in ("count", "points", "pixel")]
    for shard in range(opened.shards):
        ids = opened.ids(shard)
        for count, points, pixel in zip(*(column[ids.start : ids.stop] for column in columns), strict=True):
            size = min(bucket_size(int(count)), len(points))
            leaves: dict[str, Any] = {
                "points_m": np.zeros((size, 3), np.float32),
                "points": points[:size].copy(),  # not a view that keeps the shard's padding alive
                "valid": np.arange(size) < count,
                "pixel": pixel[:size].copy(),
            }
            yield Cloud(**leaves)


def rescore(folder: Path, observe: Observer, *, memory_budget: int | None = None) -> tuple[Kept, Detection]:
    """Score the kept scans by each other, as ``detect`` would score the set, and freeze the numbers.

    Returns:
        The store, and what ``detect`` says about its scans, in the order of scoring.

    Raises:
        InputError: fewer than two scans, a memory budget that cannot hold what is needed, or a damaged store.
    """
    from muscjax import detection, pipeline

    open_kept(folder)  # before a lock is made in a folder that is none
    with keeping.writing(folder):
        kept = open_kept(folder)
        settings = config_of(kept.origin)
        if memory_budget is not None:
            run = dataclasses.replace(settings.run, memory_budget=memory_budget)
            settings = dataclasses.replace(settings, run=run)
        grid, side = kept.origin["grid_hw"], kept.origin["map_size"]
        shape: dict[str, Any] = {"grid_hw": None if grid is None else tuple(grid), "map_hw": (side, side)}
        groups = groups_of(kept)
        scored = pipeline.score(features_of(kept), groups, settings, **shape, progress=observe)
        units = detection.units_of(scored, groups, settings, **shape)
        found = detection.finish(
            scored, clouds_of(kept), groups, settings, **shape, units=units, progress=observe
        )
        kept = keeping.freeze(
            kept,
            np.asarray(found.map_max),
            np.asarray(found.pred_score),
            np.asarray(scored.salient),
            limits=heat_limits(list(np.asarray(found.anomaly_map))),
            units=units,
        )
    return kept, found


def detect(extracted: Extracted, loaded: Inputs, line: Line, observe: Observer) -> Found:
    """Maps, scores and labels of new scans, whose features are in ``extracted``, against the kept ones.

    Raises:
        InputError: scans of another map size, or a memory budget that cannot hold the rows of one scan.
    """
    from muscjax import detection

    kept, frozen, settings = line.kept, line.frozen, loaded.config
    compare_loaded(kept, loaded)
    groups, contents = groups_of(kept), contents_of(loaded)
    shape: dict[str, Any] = {"grid_hw": extracted.grid_hw, "map_hw": extracted.map_hw}
    scored = score_against(
        extracted.features,
        extracted.groups,
        features_of(kept),
        None if groups is None else np.asarray(groups.valid),
        settings,
        **shape,
        reference_pixel=None if groups is None else np.asarray(groups.pixel),
        same=_same(contents, kept.ordered),
        progress=observe,
    )
    alone = dataclasses.replace(settings, rscon=dataclasses.replace(settings.rscon, enabled=False))
    found = detection.finish(
        scored,
        extracted.clouds,
        extracted.groups,
        alone,
        **shape,
        units=frozen.units,
        progress=observe,
    )
    highest = np.asarray(found.map_max)
    again = _same(contents, frozen.contents)
    scores = frozen_rescore(highest, np.asarray(scored.salient), frozen, settings, same=again)
    of_kept = (frozen.pred_score, frozen.map_max)
    decision = decide(scores, highest, config=settings.decision, kept=of_kept)
    if decision.warning is not None:
        decision = dataclasses.replace(decision, warning=f"the reference set: {decision.warning}")
    nobody = np.zeros((len(scores), 0), np.int32), np.zeros((len(scores), 0), np.float32)
    return Found(np.asarray(found.anomaly_map), scores, highest, decision, nobody, frozen.limits)


def _same(contents: Sequence[str], kept: Sequence[str]) -> np.ndarray | None:
    """(Q, R) bool: the kept scan is the very scan; None where there is none."""
    place = {content: i for i, content in enumerate(kept)}
    same = np.zeros((len(contents), len(kept)), bool)
    for i, content in enumerate(contents):
        if content in place:
            same[i, place[content]] = True
    return same if same.any() else None
