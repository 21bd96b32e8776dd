"""Curvature and group expansion from Eq. 1-4 and METHOD.md's section 1, float64, with loops."""

from __future__ import annotations

import numpy as np


def curvature(center, neighbours):
    """λ_min / Σλ of the neighbours' offsets (the centre is not among them); 0 for fewer than two."""
    offsets = np.asarray(neighbours, np.float64) - np.asarray(center, np.float64)
    longest = max((np.linalg.norm(o) for o in offsets), default=0.0)
    if len(offsets) < 2 or longest == 0:
        return 0.0
    offsets = offsets / longest
    mean = sum(offsets) / len(offsets)
    covariance = sum(np.outer(o - mean, o - mean) for o in offsets) / (len(offsets) - 1)
    values = np.linalg.eigvalsh(covariance)
    return max(values[0], 0.0) / (values.sum() + 1e-8)


def expand_released(points, near, *, group_size, initial_size):
    """The group as a list of rows; ``near`` holds the rows of the 2K nearest points, ascending."""
    points = np.asarray(points, np.float64)
    group = list(near[:initial_size])
    while len(group) < group_size:
        support = [row for row in near if row not in group]
        pairs = [(((points[m] - points[s]) ** 2).sum(), s) for m in group for s in support]
        add = min(initial_size, group_size - len(group))
        picks = [s for _, s in sorted(pairs, key=lambda pair: pair[0])[:add]]
        picks += [near[0]] * (add - len(picks))
        group = picks + group
    return group


def expand_paper(points, near, rows, *, group_size, initial_size):
    """The group as a list of rows; ``rows`` are all points of the cloud."""
    points = np.asarray(points, np.float64)
    group = list(near[:initial_size])
    while len(group) < group_size:
        support = [row for row in rows if row not in group]
        to_group = [min(((points[s] - points[m]) ** 2).sum() for m in group) for s in support]
        add = min(initial_size, group_size - len(group))
        picks = [support[s] for s in np.argsort(to_group, kind="stable")[:add]]
        group = picks + group + [near[0]] * (add - len(picks))
    return group
