"""Iterative point grouping (section III-A, Eq. 1-4): local groups that follow a curved surface.

A group starts as the nearest points of its centre. Where the surface is flat they are the group. Where it
is curved only the first ``initial_size`` of them are, and points that lie close to the *group* are added, so
that it grows along the surface rather than as a ball.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from muscjax.config import GroupConfig
from muscjax.geometry import farthest_points, nearest
from muscjax.selection import first_true, kth_smallest, select
from muscjax.types import Cloud, PointGroups

_GROUPS_CPU = 64  # groups expanded in one step, so that their distances stay in the cache
_GROUPS = 1024
_WHOLE = 4  # groups searched against the whole cloud in one step (``paper``)
_SWEEPS = 4  # of Jacobi rotations; a 3×3 matrix is diagonal to float32 after three


@jax.named_scope("ipg.group")
def group(
    cloud: Cloud, config: GroupConfig, *, curvature_threshold: float | jax.Array | None = None
) -> PointGroups:
    """Centres of one cloud and the points around them; batch it with ``vmap`` or ``lax.map``.

    ``lax.map`` suits a CPU, ``vmap`` an accelerator.

    Args:
      cloud: one cloud of P points; fewer than G, K or 2K valid ones are fine, and so is none.
      config: static. ``expansion``: ``released`` (``expand_released``), ``paper`` (``expand_paper``) or
        ``none`` (the K nearest of every centre).
      curvature_threshold: C_thr, which may be traced; None: the configuration's.

    Returns:
      ``PointGroups``. A group without K different points is filled up with its centre. A group that is not
      valid has curvature 0 and only row 0 in it.
    """
    points, size = jnp.asarray(cloud.points), config.group_size
    center_index, valid = farthest_points(points, cloud.valid, config.groups, skip_origin=config.skip_origin)
    centers = points[center_index]
    reach = size if config.expansion == "none" else 2 * size
    index, distance = nearest(centers, points, cloud.valid, reach, query_valid=valid)
    first = index[:, :size], distance[:, :size]
    bend = jax.vmap(functools.partial(curvature, points))(centers, *first)
    bend = jnp.where(valid, bend, jnp.float32(0))

    indices = index[:, :size]
    if config.expansion != "none" and config.initial_size < size:
        expand = expand_released if config.expansion == "released" else expand_paper
        sizes = {"group_size": size, "initial_size": config.initial_size}
        grown = expand(points, cloud.valid, index, distance, **sizes)
        # In float32: a float64 threshold would call a curvature of exactly float32(0.01) flat.
        threshold = config.curvature_threshold if curvature_threshold is None else curvature_threshold
        curved = bend >= jnp.asarray(threshold, jnp.float32)
        indices = jnp.where(curved[:, None], grown, indices)
    return PointGroups(
        indices=indices,
        centers=centers,
        center_index=center_index,
        curvature=bend,
        pixel=jnp.asarray(cloud.pixel)[center_index],
        valid=valid,
    )


@jax.named_scope("ipg.curvature")
def curvature(points: jax.Array, center: jax.Array, index: jax.Array, distance: jax.Array) -> jax.Array:
    """Smallest eigenvalue's share of a neighbourhood's covariance (Eq. 1-2): () float32 in [0, 1/3].

    Args:
      points: (P, 3) float32.
      center: (3,) float32.
      index: (K,) int32, the nearest points, the centre itself first; it does not count.
      distance: (K,) float32, inf where there is no such point.

    Returns:
      λ_min / Σλ of the offsets from the centre, scaled by the longest, about their mean (ddof 1). 0 where
      fewer than two neighbours exist or all coincide with the centre.
    """
    points, there = jnp.asarray(points), jnp.isfinite(distance[1:])
    count = jnp.sum(there, dtype=jnp.float32)
    offsets = jnp.where(there[:, None], points[index[1:]] - center[None], jnp.float32(0))
    longest = jnp.sqrt(jnp.max(jnp.sum(offsets * offsets, axis=1), initial=0))
    offsets = offsets / jnp.where(longest > 0, longest, jnp.float32(1))
    mean = jnp.sum(offsets, axis=0) / jnp.maximum(count, 1)
    offsets = jnp.where(there[:, None], offsets - mean[None], jnp.float32(0))
    covariance = jnp.matmul(offsets.T, offsets, precision=lax.Precision.HIGHEST) / jnp.maximum(count - 1, 1)
    values = eigenvalues(covariance)
    total = jnp.sum(values)
    return jnp.where(total > 0, jnp.maximum(jnp.min(values), 0) / (total + jnp.float32(1e-8)), jnp.float32(0))


def eigenvalues(matrix: jax.Array) -> jax.Array:
    """Eigenvalues of a symmetric (3, 3) float32 matrix, unordered, by Jacobi rotations: (3,).

    As accurate as LAPACK, where the closed form loses half the digits of a double eigenvalue; and it needs
    no library call per matrix.
    """
    diagonal = [matrix[a, a] for a in range(3)]
    off = {(0, 1): matrix[0, 1], (0, 2): matrix[0, 2], (1, 2): matrix[1, 2]}
    for _ in range(_SWEEPS):
        for p, q, other in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
            apq = off[p, q]
            zero = apq == 0
            theta = (diagonal[q] - diagonal[p]) / (2 * jnp.where(zero, jnp.float32(1), apq))
            sign = jnp.where(theta < 0, jnp.float32(-1), jnp.float32(1))
            tangent = sign / (jnp.abs(theta) + jnp.sqrt(theta * theta + 1))
            tangent = jnp.where(zero, jnp.float32(0), tangent)
            cosine = lax.rsqrt(tangent * tangent + 1)
            sine = tangent * cosine
            diagonal[p], diagonal[q] = diagonal[p] - tangent * apq, diagonal[q] + tangent * apq
            off[p, q] = jnp.zeros_like(apq)
            left, right = _pair(p, other), _pair(q, other)
            off[left], off[right] = (
                cosine * off[left] - sine * off[right],
                sine * off[left] + cosine * off[right],
            )
    return jnp.stack(diagonal)


def _pair(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)


@jax.named_scope("ipg.expand_released")
def expand_released(
    points: jax.Array,
    valid: jax.Array,
    index: jax.Array,
    distance: jax.Array,
    *,
    group_size: int,
    initial_size: int,
) -> jax.Array:
    """Groups grown as the released code does: (G, K) int32, with repeats.

    The support of a group is its 2K nearest points minus its members. Each expansion takes the
    ``initial_size`` (or what is missing) smallest of *all* member-support distances: a support point that is
    close to several members is taken several times, and each time counts as a member afterwards. The picks
    of each expansion go in front, in no order of distance. Eq. 4 means ``expand_paper``.

    Args:
      points: (P, 3) float32.
      valid: (P,) bool; not read, every existing neighbour is valid.
      index: (G, 2K) int32 and distance (G, 2K) float32, from ``geometry.nearest`` around each centre.
      group_size: K, static.
      initial_size: K_iter, static; the number of expansions is ⌈K / K_iter⌉ - 1.
    """
    del valid
    points = jnp.asarray(points)

    def one(near):
        index, distance = near
        there, local = jnp.isfinite(distance), points[index]
        support, support_there = local[initial_size:], there[initial_size:]
        members = jnp.arange(initial_size, dtype=jnp.int32)
        places = jnp.arange(support.shape[0], dtype=jnp.int32)
        taken = jnp.zeros(support.shape[:1], bool)
        for add in expansions(group_size, initial_size):
            own = jnp.where(there[members][:, None], local[members], jnp.inf)
            closest = jnp.min(_squared(own, support), axis=0)
            closest = jnp.where(support_there & ~taken, closest, jnp.inf)
            # The smallest distances all lie in the columns whose own smallest are smallest.
            minimum, column = (a[0] for a in select(closest[None], places[None], add))
            pairs = jnp.where(jnp.isfinite(minimum)[None], _squared(own, support[column]), jnp.inf)
            last = kth_smallest(pairs.reshape(1, -1), add)[0]
            times = jnp.sum(pairs < last, axis=0, dtype=jnp.int32)
            # A member that counts twice has equal distances: they are one column's, in whole or in part.
            tied = jnp.sum((pairs == last) & jnp.isfinite(pairs), axis=0, dtype=jnp.int32)
            room = add - jnp.sum(times) - (jnp.cumsum(tied) - tied)
            times = times + jnp.clip(room, 0, tied)
            # Slot s of the picks belongs to the first column whose running count exceeds s.
            before = jnp.sum(jnp.cumsum(times)[None] <= jnp.arange(add)[:, None], axis=1)
            pick = column.at[before].get(mode="fill", fill_value=-1)
            taken = taken | jnp.any(places[:, None] == pick[None], axis=1)
            members = jnp.concatenate([jnp.where(pick >= 0, pick + initial_size, 0), members])
        return index[members]

    return _map_groups(one, (index, distance))


@jax.named_scope("ipg.expand_paper")
def expand_paper(
    points: jax.Array,
    valid: jax.Array,
    index: jax.Array,
    distance: jax.Array,
    *,
    group_size: int,
    initial_size: int,
) -> jax.Array:
    """Groups grown by Eq. 3-4: (G, K) int32, without repeats while the cloud has K points.

    The support is every other point of the cloud; each expansion takes the points that are nearest to any
    member. They are looked for among the 2K nearest of the centre first. A point beyond those is at least
    r_2K - r_group away from the group, which nearly always proves that it is not wanted; the groups without
    that proof are searched again in the whole cloud. Arguments and order as ``expand_released``.
    """
    steps = expansions(group_size, initial_size)
    points, valid = jnp.asarray(points), jnp.asarray(valid)
    rows = jnp.arange(points.shape[0], dtype=jnp.int32)

    def among(near):
        index, distance = near
        there, local = jnp.isfinite(distance), points[index]
        fresh = jnp.where(there[:initial_size, None], local[:initial_size], jnp.inf)
        free = there & (jnp.arange(index.shape[0]) >= initial_size)
        picks, reach = _grow(points, local, index, free, fresh, steps)
        # The radius of the group, about its centre, as it was before each expansion.
        radius = [jnp.max(jnp.where(there[:initial_size], distance[:initial_size], jnp.float32(0)))]
        for new in picks[:-1]:
            radius.append(jnp.maximum(radius[-1], jnp.sqrt(jnp.max(_squared(points[new], local[:1])))))
        proven = (reach + jnp.stack(radius) < distance[-1] * (1 - 1e-6)) | jnp.isinf(distance[-1])
        return _members(picks, index[:initial_size]), jnp.all(proven)

    def whole(near):
        index, distance = near
        start, there = index[:initial_size], jnp.isfinite(distance[:initial_size])
        member = jnp.zeros(valid.shape, bool).at[start].set(True)
        fresh = jnp.where(there[:, None], points[start], jnp.inf)
        picks, _ = _grow(points, points, rows, valid & ~member, fresh, steps)
        return _members(picks, start)

    def step(state):
        missing, members = state
        place = first_true(missing, min(_WHOLE, missing.shape[0]))
        slot = jnp.where(place >= 0, place, missing.shape[0])
        found = jax.vmap(whole)((index[place], distance[place]))
        return missing.at[slot].set(False, mode="drop"), members.at[slot].set(found, mode="drop")

    members, proven = _map_groups(among, (index, distance))
    _, members = lax.while_loop(lambda state: jnp.any(state[0]), step, (~proven, members))
    return members


def _grow(
    points: jax.Array,
    place: jax.Array,
    rows: jax.Array,
    free: jax.Array,
    fresh: jax.Array,
    steps: list[int],
) -> tuple[list[jax.Array], jax.Array]:
    """Repeatedly picks the free candidates that are nearest to the group.

    Args:
      points: (P, 3), the cloud.
      place: (n, 3) and rows (n,), the candidates; free (n,) bool, those that may be picked.
      fresh: (s, 3), the members so far, inf where there is none.
      steps: points to add in each expansion.

    Returns:
      the picks of each expansion, (add,) int32 with -1 where nothing was left; and for each the
      distance to the group of the last one, (steps,) float32.
    """
    closest = jnp.full(rows.shape, jnp.inf, jnp.float32)
    picks, reach = [], []
    for add in steps:
        closest = jnp.minimum(closest, jnp.min(_squared(fresh, place), axis=0))
        closest = jnp.where(free, closest, jnp.inf)
        value, pick = (a[0] for a in select(closest[None], rows[None], add))
        pick = jnp.where(jnp.isfinite(value), pick, -1)
        free = free & ~jnp.any(rows[:, None] == pick[None], axis=1)
        fresh = jnp.where(pick[:, None] >= 0, points[pick], jnp.inf)
        picks.append(pick)
        reach.append(jnp.sqrt(jnp.max(value)))
    return picks, jnp.stack(reach)


def _members(picks: list[jax.Array], start: jax.Array) -> jax.Array:
    """Newest picks first, then the start; the centre where nothing was left to pick."""
    members = jnp.concatenate([*reversed(picks), start])
    return jnp.where(members >= 0, members, start[0])


def expansions(group_size: int, initial_size: int) -> list[int]:
    """Points to add in each expansion: [48] for K = 128, K_iter = 80."""
    return [min(initial_size, group_size - size) for size in range(initial_size, group_size, initial_size)]


def _squared(a: jax.Array, b: jax.Array) -> jax.Array:
    """(n, 3) and (m, 3) to squared distances (n, m); inf where a row of either is inf."""
    dx, dy, dz = (a[:, None, axis] - b[None, :, axis] for axis in range(3))
    return dx * dx + dy * dy + dz * dz


def _map_groups(one: Callable[[Any], Any], groups: Any) -> Any:
    """``one`` over the leading axis, in batches that suit the device."""
    return lax.platform_dependent(
        groups,
        cpu=lambda xs: lax.map(one, xs, batch_size=_GROUPS_CPU),
        default=lambda xs: lax.map(one, xs, batch_size=_GROUPS),
    )
