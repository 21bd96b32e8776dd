"""Farthest points and neighbours from their definitions, float64, one point at a time."""

from __future__ import annotations

import numpy as np


def farthest_points(points, valid, count, *, skip_origin=False):
    """Indices (count,) and whether each was at a positive distance from all before it."""
    points = np.asarray(points, np.float64)
    rows = np.flatnonzero(valid)
    first = int(rows[0]) if len(rows) else 0
    picks, distinct = [first], [len(rows) > 0]
    while len(picks) < count:
        best, best_sq = first, 0.0
        for row in rows:
            if skip_origin and (points[row] ** 2).sum() <= 1e-3:
                continue
            to_picks = min(((points[row] - points[p]) ** 2).sum() for p in set(picks))
            if to_picks > best_sq:
                best, best_sq = int(row), to_picks
        picks.append(best)
        distinct.append(best_sq > 0)
    return np.array(picks), np.array(distinct)


def nearest(queries, points, valid, k, *, radius=np.inf):
    """Indices and distances (Q, k); the nearest index and inf where a query has fewer neighbours."""
    queries, points = np.asarray(queries, np.float64), np.asarray(points, np.float64)
    index, distance = [], []
    for query in queries:
        to = np.sqrt(((points - query) ** 2).sum(axis=1))
        rows = [r for r in np.argsort(to, kind="stable") if valid[r] and to[r] <= radius][:k]
        missing = k - len(rows)
        index.append([*rows, *[rows[0] if rows else 0] * missing])
        distance.append([*to[rows], *[np.inf] * missing])
    return np.array(index), np.array(distance)
