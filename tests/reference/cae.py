"""Eq. 10-11 with loops, float64, in the released and in the paper's form."""

import numpy as np


def rank_match(target, source):
    """The values of ``source`` at the ranks of ``target``; ties by position."""
    target = np.asarray(target, np.float64)
    out = np.empty(target.size)
    out[np.argsort(target.ravel(), kind="stable")] = np.sort(np.asarray(source, np.float64).ravel())
    return out.reshape(target.shape)


def align(image, points, patch):
    """A_I (M, R), A_P (G, R), patch (G,) -> P2I (M, R), I2P (G, R)."""
    to_image = np.zeros_like(image)
    for m in range(len(image)):
        inside = [g for g in range(len(points)) if patch[g] == m]
        if inside:
            to_image[m] = points[inside].mean(axis=0)
    return to_image, np.stack([image[patch[g]] for g in range(len(points))])


def released(image, points, patch, confidence=True):
    image, points = image.astype(np.float64), points.astype(np.float64)
    to_image, to_points = align(image, points, patch)
    weights = []
    for own, cross in ((image, to_image), (points, to_points)):
        lam = 1 - rank_match(cross.std(axis=1, ddof=1), own.std(axis=1, ddof=1))
        weights.append(lam if confidence else np.ones(len(own)))
    reached = to_image.sum(axis=1) != 0
    to_image[reached] = rank_match(to_image[reached], image[reached])
    to_points = rank_match(to_points, points)
    out = []
    for own, cross, lam in ((image, to_image, weights[0]), (points, to_points, weights[1])):
        enhanced = lam[:, None] * np.maximum(own, cross)
        out.append((own + rank_match(enhanced, own)) / 2)
    return out


def paper(image, points, patch, confidence=True):
    image, points = image.astype(np.float64), points.astype(np.float64)
    to_image, to_points = align(image, points, patch)
    out = []
    for own, cross in ((image, to_image), (points, to_points)):
        enhanced = np.empty_like(own)
        for row in range(len(own)):
            inside = own is points or any(patch == row)
            scaled = np.zeros(own.shape[1])
            if inside:
                low, high = cross[row].min(), cross[row].max()
                unit = (cross[row] - low) / (high - low) if high > low else np.zeros_like(cross[row])
                scaled = own[row].min() + unit * (own[row].max() - own[row].min())
            lam = 1 - scaled.std(ddof=1) if confidence else 1.0
            enhanced[row] = own[row] + lam * np.maximum(own[row], scaled)
        out.append(enhanced)
    return out
