"""What the metrics are computed from: checked scans, weighted regions and one sorted array of scores.

A `Curve` holds the scores off the defects, sorted, and the distinct scores on them. Every pixel is sorted
once, and all metrics follow by counting; ties are exact: a threshold never falls between equal scores.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from muscjax.errors import InputError

# Plain sequences keep scans of different sizes possible.
Stack = np.ndarray | Sequence[np.ndarray]

MUSC_STEPS = 200


def finite(name: str, values: np.ndarray) -> None:
    """Raises InputError where a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise InputError(f"metrics: {name} with NaN or infinity, expected finite numbers")


def pairs(masks: Stack, maps: Stack, *, name: str = "masks") -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Checked lists of boolean masks and real maps, one array (H, W) per scan."""
    if len(masks) != len(maps):
        raise InputError(f"metrics: {len(masks)} {name} and {len(maps)} maps, expected one of each per scan")
    if len(maps) == 0:
        raise InputError("metrics: no maps, expected at least one scan")
    truth, values = [np.asarray(m) != 0 for m in masks], [_real(m) for m in maps]
    for i, (t, v) in enumerate(zip(truth, values, strict=True)):
        if v.ndim != 2 or t.shape != v.shape:
            raise InputError(
                f"metrics: {name}[{i}] {t.shape} and maps[{i}] {v.shape}, expected the same height and width"
            )
        finite(f"maps[{i}]", v)
    return truth, values


def _real(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    return values.astype(np.result_type(values.dtype, np.float32), copy=False)


def even_weights(count: int) -> np.ndarray:
    """(count,) float64 equal weights that sum to 1: for metrics without regions."""
    return np.full(int(count), 1.0 / max(int(count), 1))


def region_weights(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """1 / (pixels of its region) for each defect pixel in raster order, and the number of regions."""
    from scipy import ndimage

    regions = np.zeros(mask.shape, np.int32)
    count = ndimage.label(mask, structure=np.ones((3, 3)), output=regions)
    return 1.0 / np.bincount(regions.ravel())[regions[mask]], int(count)  # type: ignore[arg-type]


def hits_per_scan(masks: list[np.ndarray], maps: list[np.ndarray]) -> list[float]:
    """Share of each scan's highest pixels that are defect; NaN (for the callers here) without a defect."""
    return [float(t[v == v.max()].mean()) if t.any() else math.nan for t, v in zip(masks, maps, strict=True)]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A set of scores, reduced to the D distinct scores of its defect members, highest first."""

    negatives: np.ndarray  # (n,) scores off the defects, ascending
    scores: np.ndarray  # (D,) distinct scores on the defects, descending
    hits: np.ndarray  # (D,) int64, defect members at or above the score
    overlap: np.ndarray  # (D,) float64, covered share of a region at or above the score, mean over regions
    above: np.ndarray  # (D,) int64, negatives above the score
    at_least: np.ndarray  # (D,) int64, negatives at or above the score
    lowest: float
    highest: float

    @property
    def positives(self) -> int:
        return int(self.hits[-1]) if self.hits.size else 0


def curve_of(negatives: np.ndarray, positives: np.ndarray, weights: np.ndarray) -> Curve:
    """``weights`` (P,) is what each defect member adds to the mean overlap; its sum is 1."""
    negatives = np.sort(negatives)
    scores, inverse, counts = np.unique(positives, return_inverse=True, return_counts=True)
    share = np.bincount(inverse, weights=weights, minlength=scores.size)
    n = negatives.size
    ends = np.concatenate([negatives[:1], negatives[-1:], scores[:1], scores[-1:]])
    return Curve(
        negatives=negatives,
        scores=scores[::-1],
        hits=np.cumsum(counts[::-1]),
        overlap=np.cumsum(share[::-1]),
        above=n - np.searchsorted(negatives, scores, "right")[::-1],
        at_least=n - np.searchsorted(negatives, scores, "left")[::-1],
        lowest=float(ends.min()),
        highest=float(ends.max()),
    )


def pixel_curve(masks: list[np.ndarray], maps: list[np.ndarray]) -> Curve:
    """The curve of all pixels together; each 8-connected region weighs the same."""
    weights, counts = zip(*(region_weights(t) for t in masks), strict=True)
    hot = np.concatenate([v[t] for t, v in zip(masks, maps, strict=True)])
    cold = np.concatenate([v[~t] for t, v in zip(masks, maps, strict=True)])
    return curve_of(cold, hot, np.concatenate(weights) / max(sum(counts), 1))


def auroc(curve: Curve) -> float:
    """Probability that a defect member scores above another one, a tie counting one half."""
    counts = np.diff(curve.hits, prepend=0)
    n = curve.negatives.size
    below = n - 0.5 * (curve.above + curve.at_least)
    return float(counts @ below / (curve.positives * n))


def f1_max(curve: Curve) -> float:
    """The largest F1 over all thresholds; between two defect scores only false alarms are added."""
    return float(np.max(2.0 * curve.hits / (curve.hits + curve.at_least + curve.positives)))


def average_precision(curve: Curve) -> float:
    """Sum over thresholds of (recall gained) · precision, without interpolation."""
    gained = np.diff(curve.hits, prepend=0) / curve.positives
    return float(gained @ (curve.hits / (curve.hits + curve.at_least)))


def aupro_mvtec(curve: Curve, limit: float) -> float:
    """Exact per-region overlap curve from 0 to ``limit``, divided by ``limit``."""
    # The curve bends only where a defect pixel's score is passed: flat before it, a straight line over the
    # negatives that share the score.
    n = curve.negatives.size
    before = np.concatenate([[0.0], curve.overlap[:-1]])
    fpr = np.concatenate([[0.0], np.stack([curve.above, curve.at_least], 1).ravel() / n, [1.0]])
    pro = np.concatenate([[0.0], np.stack([before, curve.overlap], 1).ravel(), [1.0]])
    return float(area(fpr, pro, limit)) / limit


def area(x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    """Area below the polyline (..., T) with ascending x, from 0 to ``limit``, cut exactly there."""
    x0, x1, y0, y1 = x[..., :-1], x[..., 1:], y[..., :-1], y[..., 1:]
    end = np.clip(x1, x0, np.maximum(x0, limit))
    width = x1 - x0
    y_end = y0 + (y1 - y0) * np.divide(end - x0, width, out=np.zeros_like(width), where=width > 0)
    return np.sum(0.5 * (y0 + y_end) * (end - x0), axis=-1)


def aupro_musc(curve: Curve, limit: float) -> float | str:
    """The form of the published tables (`MUSC_STEPS` even thresholds), or why it is not defined, in words."""
    step = (curve.highest - curve.lowest) / MUSC_STEPS
    thresholds = _round_down(curve.lowest + step * np.arange(MUSC_STEPS), curve.negatives.dtype)
    n = curve.negatives.size
    fpr = (n - np.searchsorted(curve.negatives, thresholds, "right")) / n
    covered = curve.scores.size - np.searchsorted(curve.scores[::-1], thresholds, "right")
    pro = np.concatenate([[0.0], curve.overlap])[covered]
    keep = fpr < limit
    fpr, pro = fpr[keep], pro[keep]
    if fpr.size < 2 or fpr.max() == fpr.min():
        return (
            f"fewer than two of the {MUSC_STEPS} thresholds give different false-positive rates below {limit}"
        )
    x = (fpr - fpr.min()) / (fpr.max() - fpr.min())
    return float(np.sum(0.5 * (pro[1:] + pro[:-1]) * (x[:-1] - x[1:])))


def _round_down(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The largest numbers of ``dtype`` not above ``values``: the same comparisons without a float64 copy."""
    rounded = values.astype(dtype)
    return np.where(rounded > values, np.nextafter(rounded, dtype.type(-np.inf)), rounded)


FORMULAS: dict[str, Callable[[Curve, float], float | str]] = {
    "auroc": lambda curve, _: auroc(curve),
    "f1_max": lambda curve, _: f1_max(curve),
    "ap": lambda curve, _: average_precision(curve),
    "aupro_musc": aupro_musc,
    "aupro_mvtec": aupro_mvtec,
}
