"""FPFH point by point in float64 (Rusu et al., ICRA 2009; 1/d² weights), and which points can be compared.

A histogram jumps where an angle crosses the edge of a bin, so float32 and float64 may disagree by a whole
count there. ``safe`` marks the points for which no angle, of their own pairs or of a neighbour's, lies within
``margin`` of an edge, and no choice (which end of a pair is the source, which neighbours are near enough) is
closer than that to a tie.
"""

from __future__ import annotations

import numpy as np

BINS = 11


def neighbours(points, valid, k, radius):
    """Per point: the k nearest valid points within the radius, nearest first, and how clear the choice is."""
    found, clear = [], []
    for here in points:
        distance = np.where(valid, np.sqrt(((points - here) ** 2).sum(axis=1)), np.inf)
        order = np.argsort(distance, kind="stable")
        near = [j for j in order[:k] if distance[j] <= radius]
        gaps = np.abs(distance[valid] / radius - 1)
        edge = distance[order[k - 1 : k + 1]]
        tie = (
            edge[1] - edge[0] if len(edge) == 2 and np.isfinite(edge).all() and edge[0] <= radius else np.inf
        )
        found.append([(int(j), distance[j]) for j in near])
        clear.append(min(gaps.min(initial=np.inf), tie / radius) > 1e-6)
    return found, np.array(clear)


def normals(points, valid, k, radius):
    """(P, 3), unit, towards the camera at the origin; degenerate neighbourhoods look at the camera."""
    found, clear = neighbours(points, valid, k, radius)
    result = np.zeros(points.shape)
    for i, near in enumerate(found):
        if not valid[i]:
            continue
        length = np.linalg.norm(points[i])
        to_camera = -points[i] / length if length > 0 else np.zeros(3)
        rows = points[[j for j, _ in near]]
        offsets = rows - rows.mean(axis=0)
        values, vectors = np.linalg.eigh(offsets.T @ offsets)
        if values[1] - values[0] <= 1e-4 * values.sum():
            result[i] = to_camera
            clear[i] &= values[1] - values[0] <= 1e-6 * values.sum()
        else:
            sign = -1.0 if vectors[:, 0] @ to_camera < 0 else 1.0
            clear[i] &= abs(vectors[:, 0] @ to_camera) > 1e-4
            result[i] = sign * vectors[:, 0]
    return result, clear


def pair_angles(p, n_p, q, n_q):
    """(θ, α, φ), and the margin scale: how much an error of the normals grows in θ and α, inf for a tie."""
    line = q - p
    length = np.linalg.norm(line)
    if length == 0:
        return (0.0, 0.0, 0.0), 1.0
    line = line / length
    first, second = n_p @ line, n_q @ line
    growth = 1.0 if abs(abs(first) - abs(second)) > 1e-4 else np.inf
    if abs(first) < abs(second):
        u, n, line, phi = n_q, n_p, -line, -second
    else:
        u, n, phi = n_p, n_q, first
    v = np.cross(line, u)
    sine = np.linalg.norm(v)
    if sine <= 1e-6:
        return (0.0, 0.0, 0.0), np.inf
    v = v / sine
    w = np.cross(u, v)
    return (float(np.arctan2(w @ n, u @ n)), float(v @ n), float(phi)), growth / sine


def bin_of(angle, low, high):
    """The bin, and the distance to its nearest edge in the angle's own unit."""
    position = (angle - low) / (high - low) * BINS
    edge = abs(position - round(position)) * (high - low) / BINS
    return int(np.clip(np.floor(position), 0, BINS - 1)), edge


def spfh(points, normal, found, margin):
    """(P, 33), and whether every angle is at least ``margin`` away from an edge."""
    histograms, clear = np.zeros((len(points), 3 * BINS)), np.ones(len(points), bool)
    spans = ((-np.pi, np.pi), (-1.0, 1.0), (-1.0, 1.0))
    for i, near in enumerate(found):
        pairs = [j for j, _ in near if j != i]
        for j in pairs:
            angles, growth = pair_angles(points[i], normal[i], points[j], normal[j])
            for axis, (angle, (low, high)) in enumerate(zip(angles, spans, strict=True)):
                cell, edge = bin_of(angle, low, high)
                histograms[i, axis * BINS + cell] += 100.0 / len(pairs)
                clear[i] &= edge > margin * growth
    return histograms, clear


def fpfh(points, valid, config, *, scale=1.0, margin=3e-5):
    """(P, 33) descriptors and ``safe`` (P,) of the module's docstring; 0 and not safe where not valid."""
    points = np.asarray(points, np.float64)
    normal, normal_clear = normals(points, valid, config.normal_neighbours, config.normal_radius * scale)
    found, chosen = neighbours(points, valid, config.feature_neighbours, config.feature_radius * scale)
    found = [near if valid[i] else [] for i, near in enumerate(found)]
    own, clear = spfh(points, normal, found, margin)
    for i, near in enumerate(found):
        clear[i] &= chosen[i] and all(normal_clear[j] for j, _ in near)
    result, safe = own.copy(), valid & clear
    for i, near in enumerate(found):
        total = np.zeros(3 * BINS)
        for j, distance in near:
            if distance > 0:
                total += own[j] / distance**2
        safe[i] &= all(clear[j] for j, _ in near)
        for axis in range(3):
            part = slice(axis * BINS, (axis + 1) * BINS)
            if total[part].sum() > 0:
                result[i, part] += 100.0 * total[part] / total[part].sum()
    return result, safe


def of_groups(descriptors, indices):
    """(G, 33): the mean over each group's points, scaled to length 1."""
    result = np.zeros((len(indices), descriptors.shape[1]))
    for g, members in enumerate(indices):
        mean = sum(descriptors[j] for j in members) / len(members)
        length = np.linalg.norm(mean)
        result[g] = mean / length if length > 0 else mean
    return result
