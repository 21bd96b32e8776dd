"""Eq. 8-9 with loops, float64."""

import numpy as np


def min_distances(queries, references, valid=None, cells=None, window=None):
    """(Q, M, C), (R, L, C) -> (Q, M, R); ``cells`` are those of both sides, (Q, M, 2) and (R, L, 2)."""
    out = np.full((len(queries), queries.shape[1], len(references)), np.inf)
    for j, reference in enumerate(references.astype(np.float64)):
        counts = np.ones(len(reference), bool) if valid is None else valid[j]
        for i, query in enumerate(queries.astype(np.float64)):
            for m, patch in enumerate(query):
                near = counts
                if window is not None:
                    near = counts & (np.abs(cells[1][j] - cells[0][i, m]).max(axis=1) <= window)
                kept = reference[near if near.any() else counts]
                if len(kept):
                    out[i, m, j] = np.sqrt(((kept - patch) ** 2).sum(axis=1)).min()
    return out


def interval_average(row, fraction):
    """The mean of the k = max(1, floor(X · R)) smallest entries of one row."""
    k = max(1, int(fraction * len(row)))
    return np.sort(row)[:k].mean()


def mutual_scores(features, fraction=0.3):
    """(N, M, C) -> (N, M): each patch against all other samples."""
    distances = min_distances(features, features)
    n, m = features.shape[:2]
    scores = np.zeros((n, m))
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for patch in range(m):
            scores[i, patch] = interval_average(distances[i, patch, others], fraction)
    return scores
