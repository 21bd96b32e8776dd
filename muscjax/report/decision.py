"""Thresholds on the scan score: where the page's sliders may begin, and what each one would call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from muscjax import curves


@dataclasses.dataclass(frozen=True)
class Start:
    """A threshold with a name; a scan is called defective where its score is above it."""

    name: str
    value: float
    text: str  # where it comes from


@dataclasses.dataclass(frozen=True)
class Operating:
    """Every distinct threshold on the labelled scans, the highest first, and what it finds."""

    scores: np.ndarray  # (T,) float64
    found: np.ndarray  # (T,) defective scans at or above the score
    alarms: np.ndarray  # (T,) normal scans at or above the score
    defective: int
    normal: int
    auroc: float
    ap: float


def operating(scores: Sequence[float], labels: Sequence[int | None]) -> Operating | None:
    """Of the scans with a label; None unless some of them are defective and some normal."""
    known = [(score, bool(label)) for score, label in zip(scores, labels, strict=True) if label is not None]
    values = np.asarray([score for score, _ in known], np.float64)
    bad = np.asarray([label for _, label in known], bool)
    if not bad.any() or bad.all():
        return None
    steps = np.unique(values)[::-1]
    count = [(kind[:, None] >= steps[None]).sum(axis=0) for kind in (values[bad], values[~bad])]
    curve = curves.curve_of(values[~bad], values[bad], curves.even_weights(int(bad.sum())))
    return Operating(
        scores=steps,
        found=count[0],
        alarms=count[1],
        defective=int(bad.sum()),
        normal=int((~bad).sum()),
        auroc=curves.auroc(curve),
        ap=curves.average_precision(curve),
    )


def starts(scores: Sequence[float], every: Operating | None, given: float | None) -> tuple[Start, ...]:
    """The thresholds that the page offers; the slider begins at the first.

    given: the run's own, made without labels. Without it the slider begins where F1 is highest, and without
    labels in the middle of the scores.
    """
    out = []
    if given is not None:
        out.append(Start("label-free", float(given), "the run's own, made without labels"))
    if every is not None:
        f1 = 2 * every.found / (every.found + every.alarms + every.defective)
        best = int(f1.argmax())
        # Halfway to the next score: the same calls, and a scan run again does not fall to the other side.
        score = float(every.scores[best])
        below = (
            float(every.scores[best + 1]) if best + 1 < len(every.scores) else np.nextafter(score, -np.inf)
        )
        value = min((score + below) / 2, np.nextafter(score, -np.inf))
        out.append(Start("best F1", float(value), "the highest F1, chosen with the labels"))
    if not out:
        out.append(Start("median", float(np.median(scores)), "the middle of the scores, not a decision"))
    return tuple(out)
