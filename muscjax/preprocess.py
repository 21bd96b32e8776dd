"""Plane removal and largest cluster of a raw scan (METHOD section 0), and a cache of the result.

NumPy and SciPy only. Everything here is deterministic: the one random draw, RANSAC's, comes from its
own generator with a fixed seed. Nothing is ever written into the data set; results are cached by the
content of the file, outside of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from muscjax.files import cache_root

BORDER = 10 / 400  # width of the border that is taken for ground, as a share of the shorter side


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """Numbers of the MVTec 3D-AD preprocessing; metres. ``version`` changes when the algorithm does."""

    inlier_m: float = 0.004
    sample: int = 50
    iterations: int = 1000
    plane_m: float = 0.005
    eps_m: float = 0.006
    min_points: int = 30
    min_support: float = 0.3  # share of the border that must lie in the plane; ours
    seed: int = 0
    version: int = 1


@dataclasses.dataclass(frozen=True)
class Foreground:
    """What ``find_foreground`` says about one scan."""

    mask: np.ndarray  # (H, W) bool, pixels of the object
    note: str  # "" or why a step was skipped, one line


def valid_points(xyz: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H, W) bool: pixels with a depth, all three raw coordinates non-zero."""
    return (xyz != 0).all(axis=-1)


def plane(xyz: np.ndarray, *, config: CleanConfig = CleanConfig()) -> tuple[np.ndarray | None, str]:
    """The ground plane by RANSAC on the border of an organised scan.

    Args:
      xyz: (H, W, 3) metres, 0 where there is no depth.
      config: inlier distance, points per hypothesis, hypotheses, seed.

    Returns:
      ``(equation, "")`` with equation (4,) float64, unit normal n and offset d of n·p + d = 0; or
      ``(None, reason)`` where the border holds no plane, as in a scan that is clean already.

    Hypotheses are total least squares planes through ``config.sample`` border points, drawn with
    replacement; the one with the most inliers wins, the smaller squared residual among equals, and is
    fitted once more to its inliers, as Open3D's ``segment_plane`` does.
    """
    height, width = xyz.shape[:2]
    band = max(1, round(BORDER * min(height, width)))
    border = valid_points(xyz)
    border[band : height - band, band : width - band] = False
    points = xyz[border].astype(np.float64)
    if len(points) < config.sample:
        return None, f"border of {band} pixels holds {len(points)} points, a plane needs {config.sample}"
    origin = points.mean(axis=0)
    points -= origin
    rng = np.random.default_rng(config.seed)
    drawn = points[rng.integers(len(points), size=(config.iterations, config.sample))]
    center = drawn.mean(axis=1)
    offset = drawn - center[:, None]
    spread, axes = np.linalg.eigh(np.swapaxes(offset, 1, 2) @ offset)
    normal = axes[:, :, 0]
    # a line of points leaves the plane around it undetermined
    usable = spread[:, 1] > 1e-12 * spread[:, 2]
    if not usable.any():
        return None, "border points lie on one line"
    normal = normal[usable]
    shift = -(normal * center[usable]).sum(axis=1)
    x, y, z = np.ascontiguousarray(points.T, np.float32)

    def distances(a: np.float32, b: np.float32, c: np.float32, d: np.float32) -> np.ndarray:
        distance = a * x
        distance += b * y
        distance += c * z
        distance += d
        return np.abs(distance, out=distance)

    # one hypothesis at a time: its distances stay in the processor's cache, and no BLAS thread is woken
    hypotheses = np.column_stack([normal, shift]).astype(np.float32)
    count = np.array([np.count_nonzero(distances(*row) < config.inlier_m) for row in hypotheses])
    tied = hypotheses[count == count.max()]
    residual = [np.square(d[d < config.inlier_m]).sum() for d in (distances(*row) for row in tied)]
    inlier = distances(*tied[np.argmin(residual)]) < config.inlier_m
    support = count.max() / len(points)
    if support < config.min_support:
        return None, f"no plane on the border: the best one holds {100 * support:.0f} % of its points"
    member = points[inlier]
    center = member.mean(axis=0)
    normal = np.linalg.eigh((member - center).T @ (member - center))[1][:, 0]
    normal = normal * (np.sign(normal[np.argmax(np.abs(normal))]))
    return np.append(normal, -normal @ (center + origin)), ""


def largest_cluster(points: np.ndarray, *, eps: float, min_points: int) -> np.ndarray:
    """(Q, 3) -> (Q,) bool: DBSCAN's largest cluster, exactly; all False where every point is noise.

    Points with at least ``min_points`` neighbours within ``eps``, themselves counted, are core points;
    core points within ``eps`` are one cluster; another point belongs to the cluster of a core point
    within ``eps``, to the one that starts first in the list where there are several. The first of
    equally large clusters is taken. The same as scikit-learn's DBSCAN followed by a count of labels.

    Cells of side eps/√3 make it fast: all points of a cell are neighbours, so a cell with
    ``min_points`` is all core, and clusters are formed by cells, not points (Gunawan, 2013).
    """
    from scipy.spatial import KDTree

    count = len(points)
    if count == 0:
        return np.zeros(0, bool)
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
        return np.zeros(count, bool)

    component = _cell_components(points, cells, strides, member, core, eps)[member]
    label = np.full(count + 1, count)  # ``count`` means no cluster; the last entry is nobody's
    first = np.full(len(cells), count, np.int64)
    index = np.flatnonzero(core)
    np.minimum.at(first, component[index], index)
    # the number of a cluster is its first core point, which is the order in which clusters start
    label[index] = first[component[index]]
    label[sparse] = label[near].min(axis=1, initial=count)
    return label[:-1] == np.argmax(np.bincount(label[label < count]))


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


def find_foreground(xyz: np.ndarray, *, config: CleanConfig = CleanConfig()) -> Foreground:
    """The object of a raw organised scan: points off the ground plane, largest cluster.

    Args:
      xyz: (H, W, 3) metres, 0 where there is no depth.
      config: distances in metres; the defaults are those of the MVTec 3D-AD preprocessing.

    Returns:
      The mask (H, W) and a note. A border without a plane means that the scan is clean already, or no
      scan of something on a ground: then every valid point is foreground and the note says why. Where
      the points off the plane form no cluster at all they are kept as they are.
    """
    valid = valid_points(xyz)
    equation, reason = plane(xyz, config=config)
    if equation is None:
        return Foreground(valid, f"plane removal skipped: {reason}")
    normal = equation[:3].astype(np.float32)
    mask = valid & (np.abs(xyz @ normal + np.float32(equation[3])) >= config.plane_m)
    if not mask.any():
        return Foreground(mask, f"no point is more than {1000 * config.plane_m:g} mm off the ground plane")
    member = largest_cluster(xyz[mask], eps=config.eps_m, min_points=config.min_points)
    if not member.any():
        return Foreground(mask, "largest cluster skipped: the points off the ground plane are all isolated")
    mask[mask] = member
    return Foreground(mask, "")


def foreground(xyz: np.ndarray, *, config: CleanConfig = CleanConfig()) -> np.ndarray:
    """The mask of ``find_foreground``: (H, W, 3) metres -> (H, W) bool."""
    return find_foreground(xyz, config=config).mask


def removed_pixels(valid: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixels to blacken in the image of a cleaned scan: (H, W) bool, (H, W) bool -> (H, W) bool.

    Args:
      valid: where the scan has depth.
      mask: where it has the object.

    What has depth and is not the object goes. A pixel without depth follows the nearest one with depth: the
    shadows of the ground go with the ground, the holes of the object stay. The original preprocessing keeps
    all of them, which leaves islands of the ground around the object.
    """
    from scipy.ndimage import distance_transform_edt

    if valid.all() or not valid.any():
        return valid & ~mask
    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return ~mask[tuple(np.asarray(nearest))]


def pad_to_square(hw: tuple[int, int], *, multiple: int = 100) -> tuple[int, int, int, int]:
    """Zeros to add at (top, bottom, left, right) for a centred square whose side is a multiple.

    A square stays as it is, whatever its side: rounding it up would only add a black frame, and no
    square category of MVTec 3D-AD has a side that is not a multiple of 100.
    """
    height, width = hw
    if height == width:
        return (0, 0, 0, 0)
    side = -(-max(hw) // multiple) * multiple
    top, left = (side - height) // 2, (side - width) // 2
    return (top, side - height - top, left, side - width - left)


def cached_foreground(
    content: bytes,
    read: Callable[[], np.ndarray],
    *,
    units: str = "auto",
    cache_dir: Path | None = None,
    config: CleanConfig = CleanConfig(),
) -> Foreground:
    """``find_foreground(read())``, remembered by the content of the scan's file.

    Args:
      content: the bytes of the file; with ``units`` and ``config`` they name the cache entry.
      read: gives the scan (H, W, 3) in metres; called only when the entry is missing or unusable.
      units: as the file was told to be read.
      cache_dir: root of the cache; None means ``cache_root()``. Entries lie in ``foreground`` below it.

    An entry is written under a temporary name and renamed, so that concurrent runs never see half a file.
    One that cannot be read is computed anew and replaced. A cache that cannot be written is said in the
    note, and costs time only.
    """
    digest = hashlib.sha256(content)
    digest.update(f"{units} {config}".encode())
    path = (cache_dir or cache_root()) / "foreground" / digest.hexdigest()[:2] / f"{digest.hexdigest()}.mask"
    entry = _read_entry(path)
    if entry is not None:
        return entry
    found = find_foreground(read(), config=config)
    try:
        _write_entry(path, found)
    except OSError as error:
        note = f"cache not written: {path.parent}: {error.strerror or error}"
        return dataclasses.replace(found, note="; ".join(filter(None, (found.note, note))))
    return found


def _read_entry(path: Path) -> Foreground | None:
    """The entry at ``path``; None where there is none, or where it does not carry its own checksum."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, body = content[:32], content[32:]
    if hashlib.sha256(body).digest() != checksum:
        return None
    header, _, bits = zlib.decompress(body).partition(b"\n")
    said = json.loads(header)
    height, width = said["hw"]
    mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=height * width)
    return Foreground(mask.astype(bool).reshape(height, width), said["note"])


def _write_entry(path: Path, found: Foreground) -> None:
    header = json.dumps({"hw": found.mask.shape, "note": found.note}).encode()
    body = zlib.compress(header + b"\n" + np.packbits(found.mask).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(body).digest() + body)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
