"""Clusters of points as DBSCAN forms them, exactly, by cells instead of points."""

from __future__ import annotations

import numpy as np


def largest_cluster(points: np.ndarray, *, eps: float, min_points: int) -> np.ndarray:
    """(Q, 3) -> (Q,) bool: the largest of ``clusters``, the first of equals; all False without any."""
    label = clusters(points, eps=eps, min_points=min_points)
    sizes = np.bincount(label[label >= 0])
    return label == np.argmax(sizes) if len(sizes) else np.zeros(len(points), bool)


def clusters(points: np.ndarray, *, eps: float, min_points: int) -> np.ndarray:
    """(Q, 3) -> (Q,) int64: the number of each point's DBSCAN cluster, exactly; -1 where it is noise.

    Points with at least ``min_points`` neighbours within ``eps``, themselves counted, are core points;
    core points within ``eps`` are one cluster; another point belongs to the cluster of a core point
    within ``eps``, to the one that starts first in the list where there are several. Clusters are numbered
    in the order in which they start. The same as scikit-learn's DBSCAN.

    Cells of side eps/√3 make it fast: all points of a cell are neighbours, so a cell with
    ``min_points`` is all core, and clusters are formed by cells, not points (Gunawan, 2013).
    """
    from scipy.spatial import KDTree

    count = len(points)
    if count == 0:
        return np.zeros(0, np.int64)
    points = np.ascontiguousarray(points, np.float64)
    # a hair less than eps/√3, so that rounding cannot place two distant points in one cell
    key, strides = _cell_keys(np.floor((points - points.min(axis=0)) / (eps / np.sqrt(3) * (1 - 1e-9))))
    cells, member, size = np.unique(key, return_inverse=True, return_counts=True)
    tree = KDTree(points)
    bound = np.nextafter(eps, np.inf)
    core = size[member] >= min_points
    sparse = np.flatnonzero(~core)
    near = np.zeros((0, min_points), np.int64)
    if len(sparse):
        distance, near = tree.query(points[sparse], k=min_points, distance_upper_bound=bound)
        near = np.asarray(near).reshape(len(sparse), min_points)
        full = np.isfinite(np.asarray(distance).reshape(near.shape)[:, -1])
        core[sparse[full]] = True
        sparse, near = sparse[~full], near[~full]
    if not core.any():
        return np.full(count, -1)

    component = _cell_components(points, cells, strides, member, core, eps)[member]
    label = np.full(count + 1, count)  # ``count`` means no cluster; the last entry is nobody's
    first = np.full(len(cells), count, np.int64)
    index = np.flatnonzero(core)
    np.minimum.at(first, component[index], index)
    # the number of a cluster is its first core point, which is the order in which clusters start
    label[index] = first[component[index]]
    label[sparse] = label[near].min(axis=1, initial=count)
    inside = label[:-1] < count
    numbers = np.full(count, -1)
    numbers[inside] = np.unique(label[:-1][inside], return_inverse=True)[1]
    return numbers


def _cell_keys(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One number (Q,) per cell (Q, 3), and the strides by which a step of up to two cells changes it.

    Empty stretches of an axis are shortened to what no such step crosses, so that far outliers do not
    overflow the number.
    """
    ranks = []
    for axis in cell.T:
        values, rank = np.unique(axis, return_inverse=True)
        ranks.append(np.cumsum(np.append(2, np.minimum(np.diff(values), 3)).astype(np.int64))[rank])
    y, z = (int(rank.max()) + 3 for rank in ranks[1:])
    strides = np.array([y * z, z, 1])
    return np.stack(ranks, axis=1) @ strides, strides


def _cell_components(
    points: np.ndarray,
    cells: np.ndarray,
    strides: np.ndarray,
    member: np.ndarray,
    core: np.ndarray,
    eps: float,
) -> np.ndarray:
    """The component of each cell (sorted keys); two are joined by core points within ``eps``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial.distance import cdist

    total = len(cells)
    index = np.flatnonzero(core)
    index = index[np.argsort(member[index], kind="stable")]
    bounds = np.searchsorted(member[index], np.arange(total + 1))
    occupied = np.diff(bounds) > 0
    inhabited = np.flatnonzero(occupied)
    inside = {i: points[index[bounds[i] : bounds[i + 1]]] for i in inhabited.tolist()}

    def joined(a: np.ndarray, b: np.ndarray) -> bool:
        # the two points that face each other settle nearly every pair of neighbouring cells
        facing_a = a[np.argmin(np.square(a - b.mean(axis=0)).sum(axis=1))]
        facing_b = b[np.argmin(np.square(b - a.mean(axis=0)).sum(axis=1))]
        if np.square(facing_a - facing_b).sum() <= eps * eps:
            return True
        for _ in range(2):
            outside = np.maximum(np.maximum(b.min(axis=0) - a, a - b.max(axis=0)), 0)
            a, b = b, a[np.square(outside).sum(axis=1) <= eps * eps * (1 + 1e-9)]
            if len(b) == 0:
                return False
        return bool(cdist(a, b, "sqeuclidean").min() <= eps * eps)

    steps = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    steps = steps[steps @ strides > 0]
    steps = steps[np.argsort(np.square(steps).sum(axis=1), kind="stable")]
    edges: list[tuple[int, int]] = []
    component = np.arange(total)
    for step in steps:
        target = cells[inhabited] + step @ strides
        place = np.searchsorted(cells, target).clip(max=total - 1)
        found = (cells[place] == target) & occupied[place]
        pairs = np.stack([inhabited[found], place[found]], axis=1)
        pairs = pairs[component[pairs[:, 0]] != component[pairs[:, 1]]]
        new = [(i, j) for i, j in pairs.tolist() if joined(inside[i], inside[j])]
        if new:
            edges += new
            rows, columns = np.array(edges).T
            graph = coo_array((np.ones(len(edges), np.int8), (rows, columns)), shape=(total, total))
            component = connected_components(graph, directed=False)[1]
    return component
