"""Re-scoring with constrained neighbourhood (section III-D, Eq. 12-15): similar scans get similar scores."""

from __future__ import annotations

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from muscjax.errors import InputError
from muscjax.types import Array


def rescore(
    scores: Array,
    features: Array,
    *,
    windows: tuple[int, ...] = (1, 7),
    normalise: bool = True,
    form: Literal["windows", "half"] = "windows",
    valid: Array | None = None,
) -> Array:
    """Averages each scan's score with those of the scans that are most similar to it.

    W = F Fᵀ; M keeps the k largest of each row, the scan itself counted like any other, the lowest index
    first among ties; D holds the row sums of M∘W.

    ``windows`` (``released``): the mean of D⁻¹(M∘W)C over the k in ``windows``, to which 1 is appended when
    absent. ``half`` (``paper``, Eq. 15): (D⁻¹(M∘W)C + C) / 2, where a row whose sum is not positive leaves
    its score as it is; several windows are averaged. In the form ``windows`` only a row sum of exactly 0
    does so; the released code divides by it.

    Args:
        scores: (N,) float32, C.
        features: (N, D) float32, F, the feature of each scan's most salient patch.
        windows: every k at least 1; one that exceeds the number of valid scans means all of them.
        normalise: min-max normalise the scores over the valid scans first. Equal scores stay as they are
            (the released code divides by 0).
        form: as said above.
        valid: (N,) bool, rows that are scans; None: all.

    Returns:
        (N,) float32; 0 where not valid. Equal scores come back exactly equal.

    Raises:
        InputError: no window, a window below 1, or an unknown form.
    """
    chex.assert_rank([scores, features], [1, 2])
    if not windows or min(windows) < 1:
        raise InputError(f"rscon.windows: found {windows}, expected positive integers")
    if form not in ("windows", "half"):
        raise InputError(f"rscon.form: found {form!r}, expected one of windows, half")
    scores, features = jnp.asarray(scores), jnp.asarray(features)
    n = scores.shape[0]
    valid = jnp.ones(n, bool) if valid is None else jnp.asarray(valid)
    scores = jnp.where(valid, scores, 0)
    features = jnp.where(valid[:, None], features, 0)
    if normalise:
        scores = _min_max(scores, valid)
    if form == "windows" and 1 not in windows:
        windows = (*windows, 1)

    similarity = jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST)
    # Rows that are no scans come last, where every window's clamp leaves them out.
    masked = jnp.where(valid[None, :], similarity, -jnp.inf)
    order = jax.lax.top_k(masked, min(max(windows), n))[1]
    weight = jnp.take_along_axis(similarity, order, axis=1)
    # C + Σ w (C_j - C) / Σ w is D⁻¹(M∘W)C, written so that equal scores come back without rounding.
    difference = scores[order] - scores[:, None]
    count = jnp.sum(valid.astype(jnp.int32))
    place = jnp.arange(order.shape[1], dtype=jnp.int32)
    step = jnp.zeros_like(scores)
    for k in windows:
        inside = jnp.where(place < jnp.minimum(k, count), weight.dtype.type(1), 0)[None]
        total = jnp.sum(weight * inside, axis=1)
        usable = total > 0 if form == "half" else total != 0
        moved = jnp.sum(weight * inside * difference, axis=1)
        step += jnp.where(usable, moved / jnp.where(usable, total, 1), 0)
    step *= (0.5 if form == "half" else 1.0) / len(windows)
    return jnp.where(valid, scores + step, 0)


def _min_max(scores: Array, valid: Array) -> Array:
    """The valid scores on 0...1; as they are where they are all equal."""
    lowest = jnp.min(jnp.where(valid, scores, jnp.inf))
    span = jnp.max(jnp.where(valid, scores, -jnp.inf)) - lowest
    return jnp.where(span > 0, (scores - lowest) / jnp.where(span > 0, span, 1), scores)
