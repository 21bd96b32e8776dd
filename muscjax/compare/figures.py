"""The metrics of two runs with the interval of their difference, and the scans that moved between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muscjax import datasets, evaluate, intervals, metrics
from muscjax.compare.runs import (
    Run,
    differences,
    label_of,
    read_run,
    rows_of_scans,
    same_scans,
    score_of,
    truth_scans,
)
from muscjax.console import Observer
from muscjax.datasets import Scan
from muscjax.errors import InputError

# Part and name in `metrics.summary`, and the title in the printed table.
METRICS = (
    ("image", "auroc", "image AUROC"),
    ("image", "f1_max", "image F1"),
    ("image", "ap", "image AP"),
    ("pixel", "auroc", "pixel AUROC"),
    ("pixel", "f1_max", "pixel F1"),
    ("pixel", "ap", "pixel AP"),
    ("pixel", "aupro_mvtec", "PRO mvtec"),
    ("pixel", "foreground_ap", "object AP"),
    ("pixel", "hit_rate", "hit rate"),
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` finds; ``b`` less ``a`` in every difference."""

    a: Path
    b: Path
    differs: tuple[tuple[str, Any, Any], ...]  # field of the request or configuration, in a, in b
    metrics: tuple[Mapping[str, Any], ...]  # category, metric, a, b, difference, low, high, scans
    scans: tuple[Mapping[str, Any], ...]  # category, scan, label, scores, ranks, changes; largest first
    rank_correlation: Mapping[str, float | None]  # per category, of the scores (Spearman)
    notes: tuple[str, ...]


def compare(
    first: Path,
    second: Path,
    *,
    truth: Path | None,
    observe: Observer,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """The runs in two folders, scan by scan and metric by metric.

    truth: the data set with its ground truth; None takes the folder that the first run was made from, and
    does without metrics of pixels where that is gone. Metrics are computed at the size of the masks.

    Raises:
        InputError: folders that are not results, other scans in one than in the other, or a ``truth`` that
            cannot be read.
    """
    runs = read_run(first), read_run(second)
    same_scans(*runs)
    notes: list[str] = []
    scans = truth_scans(runs[0], truth, notes)
    by_name = {scan.name: scan for scan in scans}
    names = sorted(runs[0].names)
    tables = [rows_of_scans(run, names, by_name) for run in runs]
    scores = [
        np.array([score_of(run, t[name]) for name in names]) for run, t in zip(runs, tables, strict=True)
    ]
    labels = [label_of(tables[0][name], by_name.get(name)) for name in names]
    category = [by_name[name].category if name in by_name else name.split("/")[0] for name in names]
    groups = {c: [i for i, other in enumerate(category) if other == c] for c in dict.fromkeys(category)}
    rows: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    correlation: dict[str, float | None] = {}
    draws: dict[tuple[str, str], list[np.ndarray]] = {}
    for turn, (name, ids) in enumerate(groups.items()):
        members = [names[i] for i in ids]
        maps = [_maps(run, members, observe) for run in runs]
        pair = [s[ids] for s in scores]
        known = [labels[i] for i in ids]
        alike = [_correlation(a, b) for a, b in zip(*maps, strict=True)]
        found, correlation[name] = _changes(name, members, known, pair, alike)
        changes += found
        if any(label is None for label in known):
            notes.append(f"{name}: labels are not known for every scan, so there are no metrics")
            continue
        part, resampled = _metrics(
            np.array(known), pair, maps, [by_name.get(m) for m in members], runs[0].record, notes,
            resamples=resamples, seed=seed + turn, level=level,
        )  # fmt: skip
        rows += [{"category": name, **row} for row in part]
        for key, values in resampled.items():
            draws.setdefault(key, []).append(values)
        observe("comparing", turn + 1, len(groups))
    rows += _means(rows, draws, len(groups), level)
    changes.sort(key=lambda row: (-abs(row["quantile_change"]), row["scan"]))
    differs = tuple(differences(*(run.record for run in runs)))
    return Comparison(first, second, differs, tuple(rows), tuple(changes), correlation, tuple(notes))


def _maps(run: Run, names: Sequence[str], observe: Observer) -> list[np.ndarray]:
    def load(name: str) -> np.ndarray:
        return evaluate.load_map(run.folder / "maps" / f"{name}.tiff")

    found = []
    for values in datasets.prefetch(load, names):
        found.append(values)
        observe("reading", len(found), len(names))
    return found


def _changes(
    category: str,
    names: Sequence[str],
    labels: Sequence[int | None],
    scores: Sequence[np.ndarray],
    alike: Sequence[float | None],
) -> tuple[list[dict[str, Any]], float | None]:
    """One row per scan, and the rank correlation of both runs."""
    from scipy import stats

    n = len(names)
    ranks = [stats.rankdata(-values) for values in scores]  # equal scores share their mean rank
    steps = (ranks[0] - ranks[1]) / max(n - 1, 1)
    rows = [
        {
            "category": category,
            "scan": name,
            "label": labels[i],
            "score_a": float(scores[0][i]),
            "score_b": float(scores[1][i]),
            "rank_a": float(ranks[0][i]),
            "rank_b": float(ranks[1][i]),
            "quantile_change": float(steps[i]),
            "map_correlation": alike[i],
        }
        for i, name in enumerate(names)
    ]
    return rows, _correlation(*ranks)


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's; None where one of them is constant or their sizes differ."""
    if a.shape != b.shape or a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a.ravel().astype(np.float64), b.ravel().astype(np.float64))[0, 1])


def _metrics(
    labels: np.ndarray,
    scores: Sequence[np.ndarray],
    maps: Sequence[list[np.ndarray]],
    scans: Sequence[Scan | None],
    record: Mapping[str, Any],
    notes: list[str],
    *,
    resamples: int,
    seed: int,
    level: float,
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], np.ndarray]]:
    """Each metric in both runs with the interval of its difference, and its resampled differences."""
    masks = inside = None
    present = [scan for scan in scans if scan is not None]
    if len(present) == len(scans):
        loaded = list(datasets.prefetch(datasets.load_truth, present))
        if all(mask is not None for mask in loaded):
            masks = [mask for mask in loaded if mask is not None]
            inside = _foregrounds(present, masks, record)
        else:
            notes.append(f"{present[0].category}: not every mask is known, so there are no metrics of pixels")
    values, samples = [], []
    for run_scores, run_maps in zip(scores, maps, strict=True):
        found = {"image": metrics.image_metrics(labels, run_scores)}
        fitted = None
        if masks is not None:
            fitted = [evaluate.fit_map(m, t.shape) for m, t in zip(run_maps, masks, strict=True)]
            found["pixel"] = metrics.pixel_metrics(masks, fitted)
            found["pixel"]["hit_rate"] = metrics.hit_rate(masks, fitted)
            if inside is not None:
                found["pixel"]["foreground_ap"] = metrics.foreground_ap(masks, fitted, inside)
        values.append(found)
        samples.append(
            intervals.resampled(labels, run_scores, masks, fitted, inside, resamples=resamples, seed=seed)
        )
    rows, draws = [], {}
    for part, name, _ in METRICS:
        a, b = (found.get(part, {}).get(name) for found in values)
        if a is None or b is None:
            continue
        draws[part, name] = samples[1][part][name] - samples[0][part][name]
        rows.append(_row(part, name, a, b, draws[part, name], level, len(labels)))
    return rows, draws


def _foregrounds(
    scans: Sequence[Scan], masks: Sequence[np.ndarray], record: Mapping[str, Any]
) -> list[np.ndarray] | None:
    """Pixels of the object in the geometry of the masks; None where a scan's are unknown."""
    request = record["request"]

    def one(scan: Scan) -> np.ndarray | None:
        try:
            return evaluate.foreground(
                scan, clean=bool(request.get("clean", True)), units=request.get("units", "auto")
            )
        except InputError:
            return None

    found = list(datasets.prefetch(one, scans))
    known = [f for f, mask in zip(found, masks, strict=True) if f is not None and f.shape == mask.shape]
    return known if len(known) == len(scans) else None


def _row(
    part: str, name: str, a: float, b: float, differences: np.ndarray, level: float, scans: int
) -> dict[str, Any]:
    known = differences[np.isfinite(differences)]
    tail = (1.0 - level) / 2.0
    low, high = (float(v) for v in np.quantile(known, [tail, 1.0 - tail])) if known.size else (None, None)
    out = {"metric": f"{part} {name}", "a": a, "b": b, "difference": b - a}
    return {**out, "low": low, "high": high, "scans": scans}


def _means(
    rows: Sequence[Mapping[str, Any]],
    draws: Mapping[tuple[str, str], list[np.ndarray]],
    categories: int,
    level: float,
) -> list[dict[str, Any]]:
    """The mean over several categories of each metric that all of them have."""
    out = []
    for (part, name), samples in draws.items():
        if categories > 1 and len(samples) == categories:
            mine = [row for row in rows if row["metric"] == f"{part} {name}"]
            a, b = (float(np.mean([row[side] for row in mine])) for side in ("a", "b"))
            scans = sum(row["scans"] for row in mine)
            out.append({"category": "mean", **_row(part, name, a, b, np.mean(samples, 0), level, scans)})
    return out
