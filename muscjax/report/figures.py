"""Geometry of the page's figures; the template draws them, so that every text passes its escaping."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from muscjax.colormap import heat_table
from muscjax.report.decision import Operating


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bin: ``x``, ``width`` and, for each class of scans, ``y`` and ``height``, in per cent."""

    x: float
    width: float
    stacks: tuple[tuple[str, float, float], ...]  # (class, y, height), from the axis upwards
    text: str


@dataclasses.dataclass(frozen=True)
class Histogram:
    """A plot that is stretched to its place while its texts keep their size: all places in per cent."""

    bars: tuple[Bar, ...]
    x_ticks: tuple[tuple[float, str], ...]  # from the left
    y_ticks: tuple[tuple[float, str], ...]  # from the top
    classes: tuple[tuple[str, int], ...]  # which there are, and how many scans of each
    range: tuple[float, float]  # scores at the left and the right end of the axis
    text: str  # what a reader who does not see the figure is told


@dataclasses.dataclass(frozen=True)
class Curves:
    """ROC and precision over recall as points of an SVG polyline; (0, 100) is the lower left corner."""

    roc: str
    pr: str
    chance: float  # share of defective scans, in per cent from the top: the precision of calling all
    auroc: float
    ap: float


def histogram(
    scores: Sequence[float],
    labels: Sequence[int | None],
    *,
    thresholds: Sequence[float] = (),
    bins: int = 32,
) -> Histogram:
    """Counts of scans over their score, normal and defective ones stacked where every label is known.

    scores, labels: (N,). The bins divide the range of the scores evenly, widened to show the thresholds, by
    half of it at most.
    """
    values = np.asarray(scores, np.float64)
    known = all(label is not None for label in labels)
    kinds = np.asarray([("defective" if label else "normal") if known else "unknown" for label in labels])
    order = [kind for kind in ("normal", "defective", "unknown") if (kinds == kind).any()]
    low, high = float(values.min()), float(values.max())
    if not high > low:
        low, high = low - 0.5, high + 0.5
    if thresholds:
        room = (high - low) / 2
        low, high = max(low - room, min(low, *thresholds)), min(high + room, max(high, *thresholds))
    counts = {kind: np.histogram(values[kinds == kind], bins, (low, high))[0] for kind in order}
    top = max(1, int(np.sum(list(counts.values()), axis=0).max()))
    step = 100.0 / bins
    bars = []
    for i in range(bins):
        y, stacks = 100.0, []
        for kind in order:
            height = 100.0 * float(counts[kind][i]) / top
            y -= height
            if height:
                stacks.append((kind, round(y, 2), round(height, 2)))
        if stacks:
            edges = [low + (high - low) * k / bins for k in (i, i + 1)]
            found = ", ".join(f"{counts[kind][i]} {_word(kind)}" for kind in order if counts[kind][i])
            text = f"score {edges[0]:.3g} to {edges[1]:.3g}: {found}"
            bars.append(Bar(round((i + 0.06) * step, 2), round(0.88 * step, 2), tuple(stacks), text))
    totals = tuple((kind, int((kinds == kind).sum())) for kind in order)
    said = "; ".join(
        f"{count} {_word(kind)} with a median score of {np.median(values[kinds == kind]):.3g}"
        for kind, count in totals
    )
    return Histogram(
        bars=tuple(bars),
        x_ticks=tuple((round(100 * (v - low) / (high - low), 2), t) for v, t in ticks(low, high, 5)),
        y_ticks=tuple(
            (round(100 - 100 * v / top, 2), f"{v:.0f}") for v, _ in ticks(0, top, 3) if float(v).is_integer()
        ),
        classes=totals,
        range=(low, high),
        text=f"Histogram of scores from {low:.3g} to {high:.3g}: {said}.",
    )


def curves(every: Operating) -> Curves:
    """Both curves through every threshold. The precision's steps have the average precision as their area."""
    tpr, fpr = every.found / every.defective, every.alarms / every.normal
    precision = every.found / (every.found + every.alarms)
    # From one recall to the next at the precision of the latter.
    recalls = np.stack([np.concatenate([[0.0], tpr[:-1]]), tpr], axis=1).ravel()
    share = every.defective / (every.defective + every.normal)
    return Curves(
        roc=_polyline(np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])),
        pr=_polyline(recalls, np.repeat(precision, 2)),
        chance=round(100 * (1 - share), 2),
        auroc=every.auroc,
        ap=every.ap,
    )


def _polyline(x: np.ndarray, y: np.ndarray) -> str:
    points = [f"{100 * a:.4g},{100 * (1 - b):.4g}" for a, b in zip(x, y, strict=True)]
    return " ".join(point for point, _ in itertools.groupby(points))


def _word(kind: str) -> str:
    return "scans" if kind == "unknown" else kind


def ticks(low: float, high: float, about: int) -> list[tuple[float, str]]:
    """Round numbers between ``low`` and ``high``, some ``about`` of them, with their texts."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(i * step, f"{i * step:.{digits}f}") for i in range(first, last + 1)]


def gradient() -> str:
    """The heat table as the stops of a CSS gradient, cold to hot."""
    table = heat_table()
    return ", ".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in table[np.linspace(0, 255, 17).astype(int)])
