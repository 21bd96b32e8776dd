"""Where a group lies, written out for one group after the other in float64."""

import numpy as np


def normal(centers, valid, g, count):
    """The unit normal at centre ``g``, and whether its sign and direction are beyond rounding."""
    apart = [np.inf if not ok else float(np.sum((c - centers[g]) ** 2)) for c, ok in zip(centers, valid)]  # noqa: B905
    order = np.argsort(apart, kind="stable")[:count]
    near = np.array([centers[i] for i in order if np.isfinite(apart[i])])
    middle = np.zeros(3)
    for point in near:
        middle += point / len(near)
    covariance = np.zeros((3, 3))
    for point in near:
        covariance += np.outer(point - middle, point - middle)
    total = np.trace(covariance)
    if total == 0:
        return np.array([0.0, 0.0, -1.0]), True
    values, vectors = np.linalg.eigh(covariance / total)
    found = vectors[:, 0] if vectors[2, 0] <= 0 else -vectors[:, 0]
    return found, values[1] - values[0] > 1e-3 and abs(found[2]) > 1e-3


def of_groups(centers, valid, *, distance, facing, count=16):
    """(G, 2), and (G,) bool: False where rounding may decide."""
    centers = np.asarray(centers, np.float64)
    out, sure = np.zeros((len(centers), 2)), np.ones(len(centers), bool)
    for g, center in enumerate(centers):
        if not valid[g]:
            continue
        length = np.sqrt(center @ center)
        direction, sure[g] = normal(centers, valid, g, min(count, len(centers)))
        out[g] = distance * length, facing * (direction @ center) / length if length > 1e-6 else 0.0
    return out, sure
