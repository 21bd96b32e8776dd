"""Weight-free descriptors: what a run uses where no network weights are at hand.

FPFH, the fast point feature histogram (Rusu, Blodow, Beetz, "Fast Point Feature Histograms (FPFH) for 3D
Registration", ICRA 2009): how the surface bends around each point, as three histograms of the angles
between the normals of near points. Conventions that the paper leaves open (what counts as a neighbour,
weight 1/d², sums of 100) are those of Open3D's ``compute_fpfh_feature`` with a hybrid search, so the two
can be compared.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import lax

from muscjax import geometry
from muscjax.config import FpfhConfig
from muscjax.types import Cloud, PointGroups

BINS = 11  # per angle; odd, so that the flat case, angle 0, lies in the middle of a bin and not on an edge
_BLOCK = 256  # points per step: their pairs stay in the cache, and memory does not grow with the cloud
_LEAST_GAP = 1e-5  # between the two smaller eigenvalues, trace 1: a hundred roundings
_PARALLEL = 1e-6  # sine below which a normal and the line to the neighbour span no plane in float32

Vector = tuple[jax.Array, jax.Array, jax.Array]  # components apart: no axis of 3 at the end of a large array


def fpfh(cloud: Cloud, groups: PointGroups, config: FpfhConfig) -> jax.Array:
    """One FPFH per group: the mean over the group's points, scaled to length 1.

    Args:
      cloud: metric, camera at the origin. With ``config.full_resolution`` normals and histograms are taken
        on ``cloud.surface`` and read at the working points.
      groups: only ``indices`` is read; a point that a group lists twice counts twice. A group that is not
        valid lists the points of another one and gets that one's descriptor.
      config: radii and counts; ``unit="relative"`` multiplies the radii by the largest distance of a working
        point from the cloud's centroid.

    Returns:
      (1, G, 33) float32; a group without any pair (an empty cloud, a lone point) is 0.

    Raises:
      ValueError: ``full_resolution`` without ``cloud.surface``.
    """
    chex.assert_rank([cloud.points_m, groups.indices], 2)
    return group_means(cloud_fpfh(cloud, config), groups.indices)


def cloud_fpfh(cloud: Cloud, config: FpfhConfig) -> jax.Array:
    """FPFH of every working point, whatever the groups: (P, 33) float32. As ``fpfh``, which averages it."""
    scale = cloud_radius(cloud.points_m, cloud.valid) if config.unit == "relative" else jnp.float32(1.0)
    if config.full_resolution:
        if cloud.surface is None:
            raise ValueError("fpfh: full_resolution needs cloud.surface, found None")
        surface = cloud.surface
        points, valid, rows = surface.points_m, surface.valid, surface.row
    else:
        points, valid, rows = cloud.points_m, cloud.valid, None
    return point_fpfh(points, valid, config, scale=scale, rows=rows)


def group_means(per_point: jax.Array, indices: jax.Array) -> jax.Array:
    """The mean of each group's points, scaled to length 1: (P, C), (G, K) to (1, G, C)."""
    pooled = _map_blocks(lambda index: jnp.mean(_rows(per_point, index), axis=1), indices)
    length = jnp.sqrt(jnp.sum(pooled * pooled, axis=1, keepdims=True))
    return (pooled / jnp.where(length > 0, length, jnp.float32(1.0)))[None]


def cloud_radius(points: jax.Array, valid: jax.Array) -> jax.Array:
    """Largest distance of a valid point from the centroid: () float32, 0 for an empty cloud."""
    kept = valid[:, None]
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), jnp.float32(1.0))
    centroid = jnp.sum(jnp.where(kept, points, jnp.float32(0.0)), axis=0, keepdims=True) / count
    offsets = jnp.where(kept, points - centroid, jnp.float32(0.0))
    return jnp.sqrt(jnp.max(jnp.sum(offsets * offsets, axis=1)))


def point_fpfh(
    points: jax.Array,
    valid: jax.Array,
    config: FpfhConfig,
    *,
    scale: jax.Array | float = 1.0,
    rows: jax.Array | None = None,
) -> jax.Array:
    """FPFH of each point: its own histograms plus those of its neighbours, weighted by 1/d².

    Args:
      points: (P, 3) float32, metres, camera at the origin.
      valid: (P,) bool.
      config: radii and counts. As in Open3D a point counts among its own neighbours, so 100 of them make 99
        pairs. ``unit`` and ``full_resolution`` are not read here.
      scale: metres per unit of the radii.
      rows: (Q,) int32, the points to return; None: all of them.

    Returns:
      (P, 33) or (Q, 33) float32: angles θ, α, φ, 11 bins each. A histogram sums to 100 from the point's own
      pairs and 100 from its neighbours'; both are 0 where there are none. 0 for points that are not valid.
    """
    scale = jnp.asarray(scale, jnp.float32)
    normal_radius = jnp.float32(config.normal_radius) * scale
    feature_radius = jnp.float32(config.feature_radius) * scale
    # One search serves both steps: the nearest of the longer list are the shorter one.
    count = max(config.normal_neighbours, config.feature_neighbours)
    radius = jnp.maximum(normal_radius, feature_radius)
    index, distance = geometry.nearest(points, points, valid, count, radius=radius, query_valid=valid)

    k = config.normal_neighbours
    normals = oriented_normals(points, index[:, :k], distance[:, :k], radius=normal_radius)
    k = config.feature_neighbours
    index, distance = index[:, :k], distance[:, :k]
    distance = jnp.where(distance <= feature_radius, distance, jnp.float32(jnp.inf))
    spfh = simple_histograms(points, normals, index, distance)
    return weighted_histograms(spfh, index, distance, rows=rows)


def oriented_normals(
    points: jax.Array, index: jax.Array, distance: jax.Array, *, radius: jax.Array | float
) -> jax.Array:
    """Unit normals that face the camera: the direction in which the neighbourhood varies least.

    Args:
      points: (P, 3) float32, camera at the origin.
      index: (P, k) int32, nearest points, the point itself among them.
      distance: (P, k) float32, their distances; inf where there is none.
      radius: neighbours farther than this do not count.

    Returns:
      (P, 3) float32. Where the neighbours span no plane (fewer than three, coincident or on a line), the
      direction to the camera; 0 for a point at the origin itself.
    """
    columns = tuple(points.T)

    def block(here, index, distance):
        near = (distance <= radius).astype(jnp.float32)
        count = jnp.maximum(jnp.sum(near, axis=0), jnp.float32(1.0))
        # Offsets from the point: at 0.4 m from the camera the coordinates' own squares would drown them.
        offsets = _subtract(_gather(columns, index), here)
        centred = jnp.stack([near * (c - (jnp.sum(near * c, axis=0) / count)[None]) for c in offsets])
        return jnp.sum(centred[:, None] * centred[None, :], axis=2).T

    covariance = _map_columns(block, points, index, distance)
    trace = jnp.trace(covariance, axis1=1, axis2=2)[:, None, None]
    # Scaled to trace 1, so that one gap tells a plane from a line at any size of the neighbourhood.
    values, vectors = jnp.linalg.eigh(covariance / jnp.where(trace > 0, trace, jnp.float32(1.0)))
    length = jnp.sqrt(jnp.sum(points * points, axis=1, keepdims=True))
    to_camera = -points / jnp.where(length > 0, length, jnp.float32(1.0))
    normal = vectors[:, :, 0]
    away = jnp.sum(normal * to_camera, axis=1, keepdims=True) < 0
    planar = values[:, 1:2] - values[:, :1] > _LEAST_GAP
    return jnp.where(planar, jnp.where(away, -normal, normal), to_camera)


def simple_histograms(
    points: jax.Array, normals: jax.Array, index: jax.Array, distance: jax.Array
) -> jax.Array:
    """SPFH: the three angles between each point and its neighbours, as histograms that sum to 100.

    Of a pair, the source is the point whose normal lies closer to the line that joins them. With u = its
    normal, v = (line × u) / |line × u|, w = u × v and n the other normal: θ = atan2(w·n, u·n), α = v·n,
    φ = u·line / |line|. A pair at distance 0, or whose line is parallel to u, counts with all angles 0.

    Args:
      points, normals: (P, 3) float32.
      index: (P, k) int32; the point itself may be among them and forms no pair.
      distance: (P, k) float32, inf where it does not count.

    Returns:
      (P, 33) float32; 0 where there is no pair.
    """
    own = jnp.arange(points.shape[0], dtype=jnp.int32)
    columns, normal_columns = tuple(points.T), tuple(normals.T)

    def block(here, normal, own, index, distance):
        pair = jnp.isfinite(distance) & (index != own[None, :])
        angles = _pair_angles(here, normal, _gather(columns, index), _gather(normal_columns, index))
        # Counting by scatter: comparing with each bin makes XLA compute the angles once per bin.
        cells = []
        for angle, low, high in zip(angles, (-jnp.pi, -1.0, -1.0), (jnp.pi, 1.0, 1.0), strict=True):
            position = jnp.floor((angle - jnp.float32(low)) * jnp.float32(BINS / (high - low)))
            cells.append(jnp.clip(position.astype(jnp.int32), 0, BINS - 1))
        cell = jnp.stack(cells) + BINS * jnp.arange(3, dtype=jnp.int32)[:, None, None]
        cell = jnp.where(pair[None], cell, 3 * BINS)  # one more cell for what does not count
        column = jnp.broadcast_to(jnp.arange(own.shape[0], dtype=jnp.int32)[None, None, :], cell.shape)
        counts = jnp.zeros((own.shape[0], 3 * BINS + 1), jnp.float32)
        counts = counts.at[column, cell].add(1.0, mode="promise_in_bounds")[:, : 3 * BINS]
        pairs = jnp.maximum(jnp.sum(pair, axis=0, dtype=jnp.float32), jnp.float32(1.0))
        return counts * (jnp.float32(100.0) / pairs)[:, None]

    return _map_columns(block, points, normals, own, index, distance)


def _pair_angles(here: jax.Array, normal: jax.Array, there: Vector, other: Vector) -> Vector:
    """θ, α, φ of points (3, B) against their neighbours, components (k, B); see ``simple_histograms``.

    The frame u, v, w is not formed. With a = u·line, b = n·line, c = u·n and s = |line × u|:
    θ = atan2(b - a·c, s·c), α = line·(u × n) / s, φ = a; the other end as source turns (a, b) into (-b, -a)
    and keeps c and the triple product. So the choice of the source selects among finished scalars: where
    both ends are equally close, and rounding decides, each result is still that of one of them.
    """
    line = _subtract(there, here)
    length = jnp.sqrt(_dot(line, line))
    line = tuple(c / jnp.where(length > 0, length, jnp.float32(1.0)) for c in line)
    own = tuple(jnp.broadcast_to(c[None], line[0].shape) for c in normal)
    a, b, c = _dot(own, line), _dot(other, line), _dot(own, other)
    across, across_other = _cross(line, own), _cross(line, other)
    swap = jnp.abs(a) < jnp.abs(b)
    squared = jnp.where(swap, _dot(across_other, across_other), _dot(across, across))
    framed = squared > jnp.float32(_PARALLEL**2)
    sine = jnp.sqrt(jnp.where(framed, squared, jnp.float32(1.0)))
    theta = jnp.arctan2(jnp.where(swap, b * c - a, b - a * c), sine * c)
    angles = theta, _dot(across, other) / sine, jnp.where(swap, -b, a)
    return _where(framed, angles, (jnp.zeros_like(sine),) * 3)


def weighted_histograms(
    spfh: jax.Array, index: jax.Array, distance: jax.Array, *, rows: jax.Array | None = None
) -> jax.Array:
    """FPFH from SPFH: the own histograms plus the 1/d²-weighted mean of the neighbours', sum 100 per angle.

    The paper weights by 1/d; 1/d² is what Open3D computes. Neighbours at distance 0 have no weight.

    Args:
      spfh: (P, 33) float32.
      index: (P, k) int32.
      distance: (P, k) float32, inf where it does not count.
      rows: (Q,) int32, the points to return; None: all.

    Returns:
      (P, 33) or (Q, 33) float32.
    """

    def block(args):
        own, index, distance = args
        weighs = jnp.isfinite(distance) & (distance > 0)
        # Relative to the nearest, so that no square leaves float32's range; the scale cancels below.
        least = jnp.min(jnp.where(weighs, distance, jnp.float32(jnp.inf)), axis=1, keepdims=True)
        ratio = jnp.where(weighs, least, jnp.float32(0.0)) / jnp.where(weighs, distance, jnp.float32(1.0))
        total = jnp.sum(_rows(spfh, index) * (ratio * ratio)[..., None], axis=1)
        sums = jnp.sum(total.reshape(-1, 3, BINS), axis=2, keepdims=True)
        scale = jnp.float32(100.0) / jnp.where(sums > 0, sums, jnp.float32(1.0))
        return own + (total.reshape(-1, 3, BINS) * scale).reshape(own.shape)

    wanted = (spfh, index, distance)
    if rows is not None:
        wanted = tuple(_rows(a, rows) for a in wanted)
    return _map_blocks(block, wanted)


def _map_blocks(function, arrays):
    """``function`` on blocks of rows, one after the other; the last block is padded with zeros."""
    count = jax.tree.leaves(arrays)[0].shape[0]
    block = max(1, min(_BLOCK, count))

    def split(a):
        padded = jnp.pad(a, ((0, -count % block), *((0, 0),) * (a.ndim - 1)))
        return padded.reshape(-1, block, *a.shape[1:])

    result = lax.map(function, jax.tree.map(split, arrays))
    return result.reshape(-1, *result.shape[2:])[:count]


def _map_columns(function, *arrays):
    """The same, with the points of a block along the last axis of every argument: the vector lanes."""
    return _map_blocks(lambda block: function(*(a.T for a in block)), arrays)


def _rows(table: jax.Array, index: jax.Array) -> jax.Array:
    return table.at[index].get(mode="promise_in_bounds")


def _gather(columns: Vector, index: jax.Array) -> Vector:
    x, y, z = columns
    return _rows(x, index), _rows(y, index), _rows(z, index)


def _subtract(many: Vector, one: jax.Array) -> Vector:
    """Components (k, B) minus one vector (3, B) per column."""
    x, y, z = many
    return x - one[0][None], y - one[1][None], z - one[2][None]


def _dot(a, b) -> jax.Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a, b) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _where(condition: jax.Array, a, b) -> Vector:
    x, y, z = (jnp.where(condition, p, q) for p, q in zip(a, b, strict=True))
    return x, y, z
