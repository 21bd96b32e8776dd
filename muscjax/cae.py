"""Cross-modal anomaly enhancement (section III-C, Eq. 10-11), one sample and one stage at a time.

Each modality's distances to all references are aligned with the other's through the pixel of every group
centre, weighted by a confidence and fused on the scale of the modality's own distances.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from muscjax.config import CaeConfig
from muscjax.ordering import ascending, rank_match, stable_order


class Enhanced(NamedTuple):
    """One modality on its way through the enhancement; entries of references that do not count are 0."""

    aligned: Array  # (L, R) the other modality's distances at this one's positions
    confidence: Array  # (L,) λ; 1 where it is off
    rescaled: Array  # (L, R) ``aligned`` on the scale of the own distances
    enhanced: Array  # (L, R) E = λ · max(own, rescaled), Eq. 11
    matched: Array  # (L, R) E on the scale of the own distances; E itself with ``combine`` = sum
    fused: Array  # (L, R) the distances that go on; of what does not count the ones that came in


def align(image: Array, points: Array, patch: Array, group_valid: Array) -> tuple[Array, Array]:
    """Bring both modalities' distances to each other's positions (Eq. 10).

    Args:
        image: (M, R) float32. points: (G, R) float32. patch: (G,) int32, the patch of each group centre.
        group_valid: (G,) bool.

    Returns:
        P2I (M, R), the mean over the centres inside each patch, 0 where there is none; and
        I2P (G, R), the distances of the patch around each centre.
    """
    inside = jnp.where(group_valid, patch, image.shape[0])  # one past the end: dropped
    sums = jnp.zeros_like(image).at[inside].add(points, mode="drop")
    counts = jnp.zeros(image.shape[0], image.dtype).at[inside].add(1.0, mode="drop")
    return sums / jnp.maximum(counts, 1)[:, None], image[patch]


def deviation(rows: Array, ref_valid: Array) -> Array:
    """Standard deviation over the valid references, ddof 1: (L, R), (R,) -> (L,); 0 for one reference."""
    count = jnp.sum(ref_valid, dtype=rows.dtype)
    rows = jnp.where(ref_valid[None], rows, 0)
    centred = jnp.where(ref_valid[None], rows - (jnp.sum(rows, axis=1) / jnp.maximum(count, 1))[:, None], 0)
    return jnp.sqrt(jnp.sum(centred * centred, axis=1) / jnp.maximum(count - 1, 1))


def confidence(
    aligned: Array, own: Array, row_valid: Array, ref_valid: Array, *, scale: float | Array = 1.0
) -> Array:
    """λ = 1 - scale · rank_match(std(aligned), std(own)), the released form: (L, R) each -> (L,)."""
    spread = jnp.where(row_valid, deviation(own, ref_valid), jnp.inf)
    return 1 - scale * rank_match(deviation(aligned, ref_valid), ascending(spread), row_valid)


def match_range(cross: Array, own: Array, row_valid: Array, ref_valid: Array) -> Array:
    """Map each row's [min, max] over the references linearly onto the own row's (``paper``).

    A constant row goes to the lower end of the range; rows that are not valid stay 0.
    """

    def ends(rows: Array) -> tuple[Array, Array]:
        low = jnp.min(jnp.where(ref_valid[None], rows, jnp.inf), axis=1)
        high = jnp.max(jnp.where(ref_valid[None], rows, -jnp.inf), axis=1)
        return low[:, None], high[:, None]

    (low, high), (own_low, own_high) = ends(cross), ends(own)
    width = high - low
    unit = jnp.where(width > 0, (cross - low) / jnp.where(width > 0, width, 1), 0)
    return jnp.where(row_valid[:, None] & ref_valid[None], own_low + unit * (own_high - own_low), 0)


def _matched_rows(cross: Array, own: Array, own_order: Array, row_valid: Array, ref_valid: Array) -> Array:
    """Rank-match ``cross`` onto ``own`` over the entries of the same rows; the rest of ``cross`` stays.

    The source of those rows is the sorted source of all rows, stably partitioned: no second sort.
    """
    active = (row_valid[:, None] & ref_valid[None]).reshape(-1)
    kept = active[own_order]
    slot = jnp.where(kept, jnp.cumsum(kept) - 1, kept.shape[0])
    source = jnp.zeros(kept.shape[0], own.dtype).at[slot].set(own.reshape(-1)[own_order], mode="drop")
    return rank_match(cross.reshape(-1), source, active).reshape(cross.shape)


def _fuse(
    own: Array,
    cross: Array,
    row_valid: Array,
    cross_valid: Array,
    ref_valid: Array,
    config: CaeConfig,
    scale: float | Array,
) -> Enhanced:
    """Steps 3-5 for one modality.

    Args:
        own, cross: (L, R), the modality's distances and the other's aligned to them.
        row_valid: (L,) rows that exist. cross_valid: (L,) rows that the other modality reaches.
    """
    active = row_valid[:, None] & ref_valid[None]
    flat = jnp.where(active, own, jnp.inf).reshape(-1)
    own_order = stable_order(flat)
    weight = jnp.ones(own.shape[0], own.dtype)
    aligned = cross
    if config.confidence and config.confidence_from == "aligned":
        weight = confidence(cross, own, row_valid, ref_valid, scale=scale)
    if config.rescale == "rank":
        cross = _matched_rows(cross, own, own_order, cross_valid, ref_valid)
    else:
        cross = match_range(cross, own, cross_valid, ref_valid)
    if config.confidence and config.confidence_from == "rescaled":
        weight = 1 - scale * deviation(cross, ref_valid)
    enhanced = weight[:, None] * jnp.maximum(own, cross)
    if config.combine == "sum":
        return Enhanced(aligned, weight, cross, enhanced, enhanced, jnp.where(active, own + enhanced, own))
    ranked = rank_match(enhanced.reshape(-1), flat[own_order], active.reshape(-1)).reshape(own.shape)
    return Enhanced(aligned, weight, cross, enhanced, ranked, jnp.where(active, (own + ranked) / 2, own))


def steps(
    image: Array,
    points: Array,
    patch: Array,
    group_valid: Array,
    ref_valid: Array,
    config: CaeConfig,
    *,
    scale: float | Array = 1.0,
) -> tuple[Enhanced, Enhanced]:
    """What ``enhance`` does, with everything that it computes on the way. Arguments as there."""
    clean_image = jnp.where(ref_valid[None], image, 0)  # inf marks what does not count; keep it out of sums
    clean_points = jnp.where(ref_valid[None] & group_valid[:, None], points, 0)
    to_image, to_points = align(clean_image, clean_points, patch, group_valid)
    every = jnp.ones(image.shape[0], bool)
    reached = jnp.sum(to_image, axis=1) != 0
    new_image = _fuse(clean_image, to_image, every, reached, ref_valid, config, scale)
    new_points = _fuse(clean_points, to_points, group_valid, group_valid, ref_valid, config, scale)
    return (
        new_image._replace(fused=jnp.where(ref_valid[None], new_image.fused, image)),
        new_points._replace(
            fused=jnp.where(ref_valid[None] & group_valid[:, None], new_points.fused, points)
        ),
    )


@jax.named_scope("cae.enhance")
def enhance(
    image: Array,
    points: Array,
    patch: Array,
    group_valid: Array,
    ref_valid: Array,
    config: CaeConfig,
    *,
    scale: float | Array = 1.0,
) -> tuple[Array, Array]:
    """Enhance one sample's distances in each modality by the other's.

    Args:
        image: (M, R) float32, distances of every patch to every reference sample.
        points: (G, R) float32, distances of every group.
        patch: (G,) int32, the patch that holds each group's centre.
        group_valid: (G,) bool, groups that exist.
        ref_valid: (R,) bool, references that have both modalities; the others come back as they are.
        config: ``rescale``, ``confidence``, ``confidence_from`` and ``combine`` select the released code
            or the equations.
        scale: of the spread that λ is 1 less; 0 makes every λ 1. May be traced.

    Returns:
        (M, R) and (G, R) float32.
    """
    of_image, of_points = steps(image, points, patch, group_valid, ref_valid, config, scale=scale)
    return of_image.fused, of_points.fused
