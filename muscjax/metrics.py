"""How good the scores and the maps are, where ground truth exists: AUROC, F1-max, AP and two AUPROs.

Everything about a set of pixels follows from one sorted array of the scores off the defects and from the
distinct scores on them (`_Curve`): every pixel is sorted once, and ties are exact, because a threshold never
falls between equal scores. NumPy on the host; maps may come as one array (N, H, W) or as a sequence of arrays
(H_i, W_i) of different sizes. A mask's non-zero pixels are defect.

A metric that the data do not define (no defect, nothing but defects) is ``None``, and ``"reasons"`` of the
result says why in words. No function returns NaN.

The two AUPROs (`aupro`) differ by a definition, not by an error: ``musc`` reproduces the published tables,
``mvtec`` is the one to recommend.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from muscjax.errors import InputError

# Plain lists keep scans of different sizes possible.
Stack = np.ndarray | Sequence[np.ndarray]
Metrics = dict[str, Any]

MUSC_STEPS = 200
PIXEL = ("auroc", "f1_max", "ap", "aupro_musc", "aupro_mvtec")
IMAGE = ("auroc", "f1_max", "ap")


@dataclasses.dataclass(frozen=True)
class _Curve:
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


def _curve(negatives: np.ndarray, positives: np.ndarray, weights: np.ndarray) -> _Curve:
    """``weights`` (P,) is what each defect member adds to the mean overlap; its sum is 1."""
    negatives = np.sort(negatives)
    scores, inverse, counts = np.unique(positives, return_inverse=True, return_counts=True)
    share = np.bincount(inverse, weights=weights, minlength=scores.size)
    n = negatives.size
    ends = np.concatenate([negatives[:1], negatives[-1:], scores[:1], scores[-1:]])
    return _Curve(
        negatives=negatives,
        scores=scores[::-1],
        hits=np.cumsum(counts[::-1]),
        overlap=np.cumsum(share[::-1]),
        above=n - np.searchsorted(negatives, scores, "right")[::-1],
        at_least=n - np.searchsorted(negatives, scores, "left")[::-1],
        lowest=float(ends.min()),
        highest=float(ends.max()),
    )


def _auroc(curve: _Curve) -> float:
    """Probability that a defect member scores above another one, a tie counting one half."""
    counts = np.diff(curve.hits, prepend=0)
    n = curve.negatives.size
    below = n - 0.5 * (curve.above + curve.at_least)
    return float(counts @ below / (curve.positives * n))


def _f1_max(curve: _Curve) -> float:
    """The largest F1 over all thresholds; between two defect scores only false alarms are added."""
    return float(np.max(2.0 * curve.hits / (curve.hits + curve.at_least + curve.positives)))


def _average_precision(curve: _Curve) -> float:
    """Sum over thresholds of (recall gained) · precision, without interpolation."""
    gained = np.diff(curve.hits, prepend=0) / curve.positives
    return float(gained @ (curve.hits / (curve.hits + curve.at_least)))


def _aupro_mvtec(curve: _Curve, limit: float) -> float:
    # The curve bends only where a defect pixel's score is passed: flat before it, a straight line over the
    # negatives that share the score.
    n = curve.negatives.size
    before = np.concatenate([[0.0], curve.overlap[:-1]])
    fpr = np.concatenate([[0.0], np.stack([curve.above, curve.at_least], 1).ravel() / n, [1.0]])
    pro = np.concatenate([[0.0], np.stack([before, curve.overlap], 1).ravel(), [1.0]])
    return float(_area(fpr, pro, limit)) / limit


def _area(x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    """Area below the polyline (..., T) with ascending x, from 0 to ``limit``, cut exactly there."""
    x0, x1, y0, y1 = x[..., :-1], x[..., 1:], y[..., :-1], y[..., 1:]
    end = np.clip(x1, x0, np.maximum(x0, limit))
    width = x1 - x0
    y_end = y0 + (y1 - y0) * np.divide(end - x0, width, out=np.zeros_like(width), where=width > 0)
    return np.sum(0.5 * (y0 + y_end) * (end - x0), axis=-1)


def _aupro_musc(curve: _Curve, limit: float) -> float | str:
    step = (curve.highest - curve.lowest) / MUSC_STEPS
    thresholds = curve.lowest + step * np.arange(MUSC_STEPS)
    fpr = 1.0 - np.searchsorted(curve.negatives, thresholds, "right") / curve.negatives.size
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
