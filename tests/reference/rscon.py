"""Eq. 12-15 with loops, float64, in the released and in the paper's form."""

import numpy as np


def rows(scores, features, k):
    """D⁻¹(M∘W)C, and the row sums D."""
    features = np.asarray(features, np.float64)
    n = len(scores)
    out, sums = np.zeros(n), np.zeros(n)
    for i in range(n):
        similarity = features @ features[i]
        nearest = np.argsort(-similarity, kind="stable")[: min(k, n)]
        sums[i] = similarity[nearest].sum()
        if sums[i] != 0:
            out[i] = (similarity[nearest] * scores[nearest]).sum() / sums[i]
    return out, sums


def min_max(scores):
    scores = np.asarray(scores, np.float64)
    span = scores.max() - scores.min()
    return (scores - scores.min()) / span if span > 0 else scores


def released(scores, features, windows=(1, 7)):
    scores = min_max(scores)
    windows = windows if 1 in windows else (*windows, 1)
    return np.mean([rows(scores, features, k)[0] for k in windows], axis=0)


def paper(scores, features, k=7):
    scores = np.asarray(scores, np.float64)
    smoothed, sums = rows(scores, features, k)
    return np.where(sums > 0, (smoothed + scores) / 2, scores)


def weights(features, windows, form):
    """(N, N) share of scan j's score in scan i's; what a row leaves to 1 stays with the scan's own."""
    features = np.asarray(features, np.float64)
    n = len(features)
    if form == "windows" and 1 not in windows:
        windows = (*windows, 1)
    out = np.zeros((n, n))
    for i in range(n):
        similarity = features @ features[i]
        for k in windows:
            nearest = np.argsort(-similarity, kind="stable")[: min(k, n)]
            total = similarity[nearest].sum()
            if total > 0 or (form == "windows" and total != 0):
                out[i, nearest] += similarity[nearest] / total / len(windows)
    return out if form == "windows" else out / 2
