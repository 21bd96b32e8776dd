"""Metrics by threshold sweeps with loops, in float64, from their definitions."""

from __future__ import annotations

import itertools

import numpy as np


def regions(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """8-connected components, as lists of pixels, by flood fill."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    found = []
    while left:
        stack = [left.pop()]
        region = []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if (y + dy, x + dx) in left:
                        left.remove((y + dy, x + dx))
                        stack.append((y + dy, x + dx))
        found.append(region)
    return found


def auroc(labels, scores) -> float:
    """Share of (defect, other) pairs in the right order; a tie is one half."""
    hot = [s for label, s in zip(labels, scores, strict=True) if label]
    cold = [s for label, s in zip(labels, scores, strict=True) if not label]
    return sum((h > c) + 0.5 * (h == c) for h in hot for c in cold) / (len(hot) * len(cold))


def precision_recall(labels, scores) -> list[tuple[float, float]]:
    """(precision, recall) at every distinct score, from the highest down."""
    points = []
    for t in sorted(set(scores), reverse=True):
        called = [bool(label) for label, s in zip(labels, scores, strict=True) if s >= t]
        points.append((sum(called) / len(called), sum(called) / sum(bool(label) for label in labels)))
    return points


def f1_max(labels, scores) -> float:
    return max(2 * p * r / (p + r) if p + r else 0.0 for p, r in precision_recall(labels, scores))


def average_precision(labels, scores) -> float:
    total, before = 0.0, 0.0
    for p, r in precision_recall(labels, scores):
        total += (r - before) * p
        before = r
    return total


def pro_point(masks, maps, called) -> tuple[float, float]:
    """False-positive rate and mean region overlap of ``called(score)``."""
    false = clean = 0
    overlaps = []
    for mask, values in zip(masks, maps, strict=True):
        for region in regions(mask):
            overlaps.append(sum(bool(called(values[p])) for p in region) / len(region))
        for p in np.ndindex(mask.shape):
            if not mask[p]:
                clean += 1
                false += bool(called(values[p]))
    return false / clean, sum(overlaps) / len(overlaps)


def aupro_mvtec(masks, maps, limit: float) -> float:
    """Trapezoids below the curve of every distinct threshold, the last one cut at the limit."""
    points = [(0.0, 0.0)]
    for t in sorted({float(v) for values in maps for v in values.ravel()}, reverse=True):
        points.append(pro_point(masks, maps, lambda s, t=t: s >= t))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += 0.5 * (y0 + y_end) * (end - x0)
    return area / limit


def aupro_musc(masks, maps, limit: float) -> float:
    low = min(float(values.min()) for values in maps)
    high = max(float(values.max()) for values in maps)
    points = []
    for i in range(200):
        t = low + i * ((high - low) / 200)
        x, y = pro_point(masks, maps, lambda s, t=t: s > t)
        if x < limit:
            points.append((x, y))
    least, most = min(x for x, _ in points), max(x for x, _ in points)
    points = [((x - least) / (most - least), y) for x, y in points]
    return sum(0.5 * (y0 + y1) * (x0 - x1) for (x0, y0), (x1, y1) in itertools.pairwise(points))


def aupro_sampled(masks, maps, limit: float, thresholds: int) -> float:
    """The curve of MVTec 3D-AD at ``thresholds`` false-positive rates, map > threshold (its description)."""
    cold = np.sort(np.concatenate([v[~m] for m, v in zip(masks, maps, strict=True)]))
    parts = [
        np.array([v[p] for p in region]) for m, v in zip(masks, maps, strict=True) for region in regions(m)
    ]
    x, y = [1.0], [1.0]
    for at in np.linspace(0, cold.size - 1, thresholds, dtype=int):
        x.append(1.0 - (at + 1) / cold.size)
        y.append(float(np.mean([(part > cold[at]).mean() for part in parts])))
    x, y = np.array(x[::-1]), np.array(y[::-1])
    at_limit = np.interp(limit, x, y)
    keep = x < limit
    return float(np.trapezoid(np.append(y[keep], at_limit), np.append(x[keep], limit))) / limit


def chance_band(n_pos: int, n_neg: int, level: float) -> tuple[float, float]:
    """By listing every way to place the defective scans in the ranking."""
    values = []
    for places in itertools.combinations(range(n_pos + n_neg), n_pos):
        cold = [i for i in range(n_pos + n_neg) if i not in places]
        values.append(sum(p > c for p in places for c in cold) / (n_pos * n_neg))
    values.sort()
    low = next(v for v in values if sum(u <= v for u in values) / len(values) > (1 - level) / 2)
    return low, 1 - low
