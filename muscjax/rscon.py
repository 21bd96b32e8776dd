"""Re-scoring with constrained neighbourhood (section III-D, Eq. 12-15): similar scans get similar scores."""

from __future__ import annotations

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from muscjax.errors import InputError
from muscjax.types import Array


@jax.named_scope("rscon.rescore")
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
    scores = jnp.asarray(scores)
    valid = jnp.ones(scores.shape[0], bool) if valid is None else jnp.asarray(valid)
    ids, weights = neighbours(features, windows=windows, form=form, valid=valid)
    scores = jnp.where(valid, scores, 0)
    if normalise:
        scores = min_max(scores, valid)
    # C + Σ w (C_j - C) is D⁻¹(M∘W)C, written so that equal scores come back without rounding.
    step = jnp.sum(weights * (scores[ids] - scores[:, None]), axis=1)
    return jnp.where(valid, scores + step, 0)


def neighbours(
    features: Array,
    *,
    windows: tuple[int, ...] = (1, 7),
    form: Literal["windows", "half"] = "windows",
    valid: Array | None = None,
) -> tuple[Array, Array]:
    """Whose scores ``rescore`` mixes into each scan's, and with which weights.

    ``rescore`` is C_i + Σ_j w_ij (C_j - C_i) over them: what a row's weights leave to 1 stays with the scan's
    own score, and so does the weight of the scan itself, which stands among its neighbours.

    Args:
        features, windows, form, valid: as for ``rescore``.

    Returns:
        (N, K) int32 rows, the most similar first, with K the largest window or N where that is smaller; and
        (N, K) float32 weights, the mean over windows of (M∘W)_ij / D_i, halved in the form ``half``. They are
        0 outside of every window, in rows that are not valid and towards them, and negative where products
        of features are.

    Raises:
        InputError: no window, a window below 1, or an unknown form.
    """
    chex.assert_rank(features, 2)
    windows = checked_windows(windows, form)
    features = jnp.asarray(features)
    n = features.shape[0]
    valid = jnp.ones(n, bool) if valid is None else jnp.asarray(valid)
    features = jnp.where(valid[:, None], features, 0)
    similarity = jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST)
    # Rows that are no scans come last, where every window's clamp leaves them out.
    masked = jnp.where(valid[None, :], similarity, -jnp.inf)
    ids = jax.lax.top_k(masked, min(max(windows), n))[1]
    products = jnp.take_along_axis(similarity, ids, axis=1)
    count = jnp.sum(valid.astype(jnp.int32))
    return ids, window_weights(products, count, windows=windows, form=form)


def checked_windows(windows: tuple[int, ...], form: str) -> tuple[int, ...]:
    """The windows that are averaged: with 1 among them in the form ``windows``; errors as ``neighbours``."""
    if not windows or min(windows) < 1:
        raise InputError(f"rscon.windows: found {windows}, expected positive integers")
    if form not in ("windows", "half"):
        raise InputError(f"rscon.form: found {form!r}, expected one of windows, half")
    return (*windows, 1) if form == "windows" and 1 not in windows else windows


def window_weights(
    products: Array, count: int | Array, *, windows: tuple[int, ...], form: Literal["windows", "half"]
) -> Array:
    """The weights of ``neighbours`` from the products of features with the K most similar scans.

    Args:
        products: (Q, K) float32, descending along the last axis. count: scans in the set.
        windows: from ``checked_windows``. form: as for ``rescore``.

    Returns:
        (Q, K) float32.
    """
    place = jnp.arange(products.shape[1], dtype=jnp.int32)
    weights = jnp.zeros_like(products)
    for k in windows:
        inside = jnp.where((place < jnp.minimum(k, count))[None], products, 0)
        total = jnp.sum(inside, axis=1, keepdims=True)
        usable = total > 0 if form == "half" else total != 0
        weights += jnp.where(usable, inside / jnp.where(usable, total, 1), 0)
    return weights * ((0.5 if form == "half" else 1.0) / len(windows))


def min_max(scores: Array, valid: Array) -> Array:
    """The valid scores on 0...1; as they are where they are all equal."""
    lowest = jnp.min(jnp.where(valid, scores, jnp.inf))
    span = jnp.max(jnp.where(valid, scores, -jnp.inf)) - lowest
    return jnp.where(span > 0, (scores - lowest) / jnp.where(span > 0, span, 1), scores)
