"""Where on the part a group of points lies: two numbers that no turn about the camera's axis changes.

Descriptors of a surface say how it bends around a place, not where the place is: a dent in a flat face is
like the edge of a recess elsewhere on the same part, and mutual scoring finds that edge and calls the dent
normal. Beside the token stand, as another part of the same vector, how far from the middle of the cloud the
group lies and which way its surface faces, seen from there. With the middle they are what a point pair
feature holds of two points (Drost, Ulrich, Navab, Ilic, "Model globally, match locally", CVPR 2010); they
are not in the paper.

Other turns of the same points keep the numbers too, as long as the surface at the group still faces the
camera, since that is what settles the sign of its normal: a wall that tips through the line of sight keeps
the distance, but the other number changes its sign.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from muscjax.types import Array

_CENTERS = 16  # centres whose plane is a centre's surface: of 1024 they span about 120 points of a cloud
_FLAT = 1e-5  # of two smaller eigenvalues, trace 1: below it the centres lie on a line
_NEAR = 1e-6  # distance from the middle below which there is no direction from it


@jax.named_scope("place.of_groups")
def of_groups(centers: Array, valid: Array, *, distance: float, facing: float) -> Array:
    """The two numbers of each group, weighted: what is appended to a token of length 1.

    A difference of 1 in a number counts as much as its weight of the distance between two tokens. Centres
    turned about the camera's axis, z, give the same numbers. Turned otherwise, they keep the distance, and
    the other number too while the surface faces the camera; where n_z changes its sign, so does the number.

    Args:
      centers: (G, 3) float32, normalised: the cloud's centroid at 0, its farthest point at distance 1.
      valid: (G,) bool; only these are read.
      distance: weight of ‖c‖. facing: weight of n·c / ‖c‖, n as ``normals`` gives it.

    Returns:
      (G, 2) float32, in the same order; 0 for groups that are not valid and, facing, at the middle.
    """
    chex.assert_shape(centers, (None, 3))
    centers, valid = jnp.asarray(centers), jnp.asarray(valid)
    length = jnp.sqrt(jnp.sum(centers * centers, axis=1))
    outwards = jnp.sum(normals(centers, valid) * centers, axis=1)
    away = length > _NEAR
    faces = jnp.where(away, outwards / jnp.where(away, length, jnp.float32(1)), 0)
    both = jnp.stack([jnp.float32(distance) * length, jnp.float32(facing) * faces], axis=1)
    return jnp.where(valid[:, None], both, 0)


def normals(centers: Array, valid: Array) -> Array:
    """Unit normals of the surface that the centres lie on, towards a camera that looks along +z: (G, 3).

    The direction in which a centre and its fifteen nearest vary least. Where they span no plane, -z.
    Normals turn with the centres about z. About other axes they do while n_z keeps its sign; a wall that tips
    through the line of sight flips its normal, and on one that lies along it a little noise settles the sign.
    """
    others, exist = nearest_others(centers, valid, min(_CENTERS, centers.shape[0]) - 1)
    offsets = jnp.where(exist[..., None], centers[others] - centers[:, None], 0)  # the centre's own is 0
    count = jnp.sum(exist, axis=1, keepdims=True, dtype=jnp.float32) + 1
    mean = jnp.sum(offsets, axis=1) / count
    outer = jnp.einsum("gki,gkj->gij", offsets, offsets, precision=jax.lax.Precision.HIGHEST)
    covariance = outer - (count * mean)[:, :, None] * mean[:, None, :]
    trace = jnp.trace(covariance, axis1=1, axis2=2)[:, None, None]
    values, vectors = jnp.linalg.eigh(covariance / jnp.where(trace > 0, trace, jnp.float32(1)))
    normal = vectors[:, :, 0]
    normal = jnp.where(normal[:, 2:] > 0, -normal, normal)
    planar = values[:, 1:2] - values[:, :1] > _FLAT
    return jnp.where(planar, normal, jnp.asarray([[0, 0, -1]], jnp.float32))


def nearest_others(centers: Array, valid: Array, count: int) -> tuple[Array, Array]:
    """The ``count`` nearest other valid centres (G, count) of each centre, and whether they exist."""
    squared = sum((centers[:, None, axis] - centers[None, :, axis]) ** 2 for axis in range(3))
    squared = jnp.where(valid[None, :], squared, jnp.float32(jnp.inf))
    # A centre is its own first neighbour, also where an earlier one lies at the same place.
    squared = jnp.where(jnp.eye(centers.shape[0], dtype=bool), jnp.float32(-1), squared)
    # Without the barrier XLA folds the slices into the selection and sorts whole rows on a CPU.
    closeness, index = jax.lax.optimization_barrier(jax.lax.top_k(-squared, count + 1))
    return index[:, 1:], jnp.isfinite(closeness[:, 1:])
