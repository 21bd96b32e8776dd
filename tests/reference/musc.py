"""MuSc's LNAMD and RsCIN (ICLR 2024) with loops, float64."""

import numpy as np

from tests.reference.snamd import adaptive_average_pool, unit


def layer_norm(tokens):
    """(h, w, C) over all of its entries, biased variance, eps 1e-5."""
    tokens = np.asarray(tokens, np.float64)
    return (tokens - tokens.mean()) / np.sqrt(tokens.var() + 1e-5)


def lnamd(tokens, degrees):
    """(h, w, C) -> (degrees, h·w, C): unfold r × r (zeros outside), pool the C·r² numbers to C, L2."""
    tokens = layer_norm(tokens)
    h, w, c = tokens.shape
    levels = []
    for r in degrees:
        edge = r // 2
        padded = np.zeros((h + 2 * edge, w + 2 * edge, c))
        padded[edge : edge + h, edge : edge + w] = tokens
        rows = []
        for y in range(h):
            for x in range(w):
                window = padded[y : y + r, x : x + r]
                unfolded = np.moveaxis(window, 2, 0).reshape(-1)  # channel by channel, as unfold orders it
                rows.append(adaptive_average_pool(unfolded, c))
        levels.append(unit(np.array(rows)))
    return np.array(levels)


def rscin(scores, features, windows):
    """Min-max normalised scores, averaged over the k most similar class features; the mean over k."""
    scores, features = np.asarray(scores, np.float64), np.asarray(features, np.float64)
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    similarity = features @ features.T
    found = []
    for k in windows:
        kept = np.zeros_like(similarity)
        for i, row in enumerate(similarity):
            for j in np.argsort(-row, kind="stable")[:k]:
                kept[i, j] = row[j]
        found.append((kept / kept.sum(axis=1, keepdims=True)) @ scores)
    return np.mean(found, axis=0)
