"""Eq. 5-7 with loops, float64, on a grid and on group centres."""

import numpy as np


def exp_similarity(distance):
    return np.exp(-distance)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def adaptive_average_pool(x, size):
    """(L,) -> (size,)."""
    length = len(x)
    return np.array(
        [x[i * length // size : int(np.ceil((i + 1) * length / size))].mean() for i in range(size)]
    )


def pool_cell(tokens, y, x, r, *, divide_by, zero_padding, weight):
    """One cell of a grid (h, w, C), one degree."""
    h, w, c = tokens.shape
    total, weights, cells = np.zeros(c), 0.0, 0
    for dy in range(-(r // 2), r // 2 + 1):
        for dx in range(-(r // 2), r // 2 + 1):
            inside = 0 <= y + dy < h and 0 <= x + dx < w
            if not inside and not zero_padding:
                continue
            other = tokens[y + dy, x + dx] if inside else np.zeros(c)
            share = weight(np.linalg.norm(other - tokens[y, x]))
            total, weights, cells = total + share * other, weights + share, cells + 1
    return total / (weights if divide_by == "weights" else cells)


def pool_grid(tokens, degrees, *, divide_by, zero_padding, combine, weight=exp_similarity):
    """(h, w, C) -> (levels, h·w, C); combine is "mean", "pool" or "separate"."""
    tokens = np.asarray(tokens, np.float64)
    h, w, c = tokens.shape
    rows = []
    for y in range(h):
        for x in range(w):
            pooled = [
                pool_cell(tokens, y, x, r, divide_by=divide_by, zero_padding=zero_padding, weight=weight)
                for r in degrees
            ]
            if combine == "mean":
                pooled = [np.mean(pooled, axis=0)]
            elif combine == "pool":
                pooled = [adaptive_average_pool(np.concatenate(pooled), c)]
            rows.append(pooled)
    return unit(np.moveaxis(np.array(rows), 0, 1))


def pool_groups(tokens, centers, curvature, valid, degrees, threshold, *, divide_by, weight=exp_similarity):
    """(G, C) -> (G, C); degrees concatenated and pooled."""
    tokens, centers = unit(tokens), np.asarray(centers, np.float64)
    out = np.zeros_like(tokens)
    for g in np.flatnonzero(valid):
        if np.float32(curvature[g]) >= np.float32(threshold):
            out[g] = tokens[g]
            continue
        others = [j for j in np.flatnonzero(valid) if j != g]
        others.sort(key=lambda j, g=g: ((centers[j] - centers[g]) ** 2).sum())
        order, degree_results = [g, *others], []
        for r in degrees:
            near = order[:r]
            shares = [weight(np.linalg.norm(tokens[j] - tokens[g])) for j in near]
            total = sum(share * tokens[j] for share, j in zip(shares, near, strict=True))
            degree_results.append(total / (sum(shares) if divide_by == "weights" else len(near)))
        out[g] = adaptive_average_pool(np.concatenate(degree_results), tokens.shape[1])
    if np.any(valid):
        out[~valid] = out[np.flatnonzero(valid)[0]]
    return out
